"""Exact search of a line, outwards until the p-value is precise enough."""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtri_exp

from dal_jax._config import check_choices, option
from dal_jax._errors import InputError
from dal_jax.inference import (
    ALTERNATIVES,
    NO_PERTURBATION,
    Intervals,
    NullLaw,
    Observed,
    Perturbation,
    Ranks,
    SelectiveP,
    as_intervals,
    check_level,
    decision,
    intersect,
    log_total_mass,
    on_line,
    recalibrate,
    subtract,
    union,
)
from dal_jax.search._engines import Engine, EngineResult

# The first round: this far on both sides of 0, and this far around the observed value.
CORE, AROUND = 2.5, 0.5
# Largest step outwards of a later round: its result may shorten the rest.
STRIDE = 1.0
# Beyond |z_obs| + this there is less than 1e-23 of the normal mass, counted as unsearched.
MARGIN = 10.0


class Status(StrEnum):
    """Status of a test; the p-value is a number only with OK and NOT_CONVERGED.

    Example:
        >>> Status("NO_REGION") is Status.NO_REGION
        True
    """

    OK = "OK"
    NO_REGION = "NO_REGION"  # nothing was flagged: there is nothing to test
    NOT_CONVERGED = "NOT_CONVERGED"  # the bounds are valid but wider than requested
    TIE = "TIE"  # the observed image lies on the boundary of its own region's set, to rounding
    NON_FINITE = "NON_FINITE"  # the score is NaN or infinite somewhere on the line
    INVALID_INPUT = "INVALID_INPUT"  # one image of a batch was refused; the message says why


class SearchResult(NamedTuple):
    """A searched line, in standardized z.

    Example:
        >>> line = as_intervals([-4.0, 4.0])
        >>> SearchResult(line, line, SelectiveP(0.05, 0.04, 0.06), 3, 9, Status.OK).bounds.high
        0.06
    """

    truncation: Intervals  # (k, 2) where the region is the observed one
    searched: Intervals  # (m, 2) where membership is known
    bounds: SelectiveP  # on p; NaN where the status has none
    num_windows: int  # affine pieces visited; exact engines only
    num_evaluations: int  # of the score function
    status: Status


Progress = Callable[[SelectiveP, float], None]  # bounds so far, |z| reached


@dataclass(frozen=True)
class SearchOptions:
    """How far a line is searched, and for which decisions.

    Raises:
        InputError: An option does not fit.

    Example:
        >>> SearchOptions(alpha=0.05).precision
        0.001
    """

    alternative: str = option(
        "two-sided", "Alternative hypothesis: which statistics are extreme.", choices=ALTERNATIVES
    )
    # Width of the bounds on p, in [0, 1); 0 searches all of the range.
    precision: float = option(
        1e-3, "Largest width of the bounds on p at which the search stops.", metavar="P"
    )
    # In (0, 1).
    alpha: float | None = option(None, "Stop as soon as the decision at this level is certain.")
    # Half the range, standard deviations, widened to |z_obs| + 0.5 if it would not hold z_obs;
    # None: 10 + |z_obs|.
    z_max: float | None = None
    # In (0, 1): the search goes on, however narrow the bounds are, until they tell the decision.
    level: float | None = None
    recalibrations: tuple[
        NullLaw | Ranks, ...
    ] = ()  # whose decisions at it must be certain as well
    shares = 1  # see `SharedSearchOptions`

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.precision < 1:
            raise InputError(f"precision: got {self.precision!r}, expected a number in [0, 1)")
        for name in ("alpha", "level"):
            value = getattr(self, name)
            if value is not None:
                check_level(name, value)
        if self.z_max is not None and not 0 < self.z_max < math.inf:
            raise InputError(f"z_max: got {self.z_max!r}, expected a positive finite number")


@dataclass(frozen=True)
class SharedSearchOptions(SearchOptions):
    """Options of one of several tests that share alpha and level.

    Raises:
        InputError: an option does not fit.

    Example:
        >>> SharedSearchOptions(alpha=0.05, shares=2).shares
        2
    """

    # Number of tests: decisions at the whole level, 1/2, ..., 1/shares of it must be certain,
    # between which Holm's procedure chooses.
    shares: int = 1


# Yields (lo, hi) parts of the line as an `Engine` takes them, and is sent their `EngineResult`.
ExactSearch = Generator[list[tuple[float, float]], EngineResult, SearchResult]


def search_line(engine: Engine, z_obs: float, **how: Any) -> SearchResult:
    """Search outwards from 0 and from z_obs until the bounds on p are tight.

    Args:
        engine: Engine that finds the observed region's set on given parts of the line.
        z_obs: Statistic that the selection saw, in units of its standard deviation.
        **how: Other arguments of `exact_search`.

    Returns:
        The sets, the bounds, the counts and the status.

    Raises:
        InputError: `z_obs` is not finite, the alternative is unknown, or precision, alpha, z_max or
            level is out of range.

    Example:
        >>> def engine(parts):  # the region is the observed one where z > 1
        ...     inside = intersect(as_intervals(list(parts)), as_intervals([1.0, np.inf]))
        ...     return EngineResult(inside, as_intervals([]), 1, 1, True)
        >>> round(search_line(engine, 2.0, precision=0).bounds.p, 4)
        0.1434

    Source: Early stopping on bounds: Katsuoka et al., arXiv 2402.11789.
    """
    search = exact_search(z_obs, **how)
    try:
        parts = next(search)
        while True:
            parts = search.send(engine(parts))
    except StopIteration as end:
        return end.value


def exact_search(
    z_obs: float,
    *,
    perturbation: Perturbation = NO_PERTURBATION,
    progress: Progress | None = None,
    **options: Any,
) -> ExactSearch:
    """Search as `search_line` does, with the parts of the line searched by whoever is asked.

    The search ends when `high - low <= precision` or, given alpha, when the decision at alpha is
    certain. Given a level, it does not end before the decisions at that level are certain. It ends
    in any case when |z| <= z_max is exhausted. The unsearched part widens the bounds.

    Args:
        z_obs: Statistic that the selection saw, in units of its standard deviation.
        perturbation: Noise that was added to the statistic for the selection.
        progress: Function that is called after every round.
        **options: Fields of `SearchOptions` or `SharedSearchOptions`.

    Yields:
        Parts of the line, disjoint and ascending; the generator is sent their `EngineResult`.

    Returns:
        The sets, the bounds, the counts and the status.

    Raises:
        InputError: As `search_line`, before the first part.

    Example:
        >>> [(lo, hi)] = next(exact_search(2.0))
        >>> lo, hi
        (-2.5, 2.5)

    Source: As `search_line`.
    """
    wanted = SharedSearchOptions(**options)
    precision = wanted.precision
    reach_max = reach_limit(z_obs, wanted.z_max)
    total = EngineResult(as_intervals([]), as_intervals([]), 0, 0, True)
    searched = as_intervals([])
    reach = reach_max if precision == 0 else min(CORE, reach_max)
    near = [max(z_obs - AROUND, -reach_max), min(z_obs + AROUND, reach_max)]
    while True:
        target = union(as_intervals([[-reach, reach]]), as_intervals([near]))
        parts = subtract(target, searched)
        total += yield [(float(lo), float(hi)) for lo, hi in parts]
        searched = target
        known = subtract(searched, total.gaps)
        observed = on_line(z_obs, total.inside, known, perturbation)
        bounds = NullLaw().p_value(observed, wanted.alternative)
        if progress is not None:
            progress(bounds, reach)
        status = search_status(bounds, wanted) if total.finite else Status.NON_FINITE
        if status is Status.OK and not is_decided(observed, wanted):
            status = Status.NOT_CONVERGED if reach < reach_max else status
        if status is not Status.NOT_CONVERGED or reach >= reach_max:
            break
        reach = _next_reach(reach, reach_max, precision, log_total_mass(total.inside))
    if status not in (Status.OK, Status.NOT_CONVERGED):
        bounds = SelectiveP(math.nan, math.nan, math.nan)
    truncation = intersect(total.inside, known)
    return SearchResult(truncation, known, bounds, total.num_windows, total.num_evaluations, status)


def reach_limit(z_obs: float, z_max: float | None) -> float:
    """Return the largest distance from 0 of a search.

    Args:
        z_obs: Observed statistic in units of its standard deviation.
        z_max: Half the width of the range, or None for 10 + |z_obs|.

    Returns:
        The limit in standard deviations; |z_obs| + 0.5 if z_max does not exceed |z_obs|.

    Raises:
        InputError: z_obs is not finite.

    Example:
        >>> reach_limit(2.0, None), reach_limit(2.0, 1.0)
        (12.0, 2.5)
    """
    if not math.isfinite(z_obs):
        raise InputError(f"z_obs: got {z_obs!r}, expected a finite number")
    if z_max is None:
        return MARGIN + abs(z_obs)
    return float(z_max) if abs(z_obs) < z_max else abs(z_obs) + AROUND


def search_status(bounds: SelectiveP, options: SearchOptions) -> Status:
    """Return the status that the bounds on p imply.

    Args:
        bounds: Bounds on p.
        options: Options with the precision, and with the level alpha whose decision suffices, or
            None.

    Returns:
        OK, NOT_CONVERGED, or TIE where the bounds are NaN.
    """
    if math.isnan(bounds.p):
        return Status.TIE
    # Exhausting the range leaves tails of less than 1e-20: a width of exactly 0 is out of reach.
    if bounds.high - bounds.low <= max(options.precision, 1e-12):
        return Status.OK
    if options.alpha is not None and _certain(bounds, options.alpha, options.shares):
        return Status.OK
    return Status.NOT_CONVERGED


def _certain(bounds: SelectiveP, level: float, shares: int) -> bool:
    """Return whether bounds determine the decisions at a level, its half, its third and so on."""
    return all(decision(bounds, level / k) != "undecided" for k in range(1, shares + 1))


def is_decided(observed: Observed, options: SearchOptions) -> bool:
    """Return whether the search determines every decision at the level of the options.

    Args:
        observed: Statistic, with the searched part of the line.
        options: Options with the level and the recalibrations.

    Returns:
        True also without a level, and where there is no p-value that more searching could settle.
    """
    if options.level is None:
        return True
    level, shares, alternative = options.level, options.shares, options.alternative
    raw = NullLaw().p_value(observed, alternative)
    if math.isnan(raw.p):
        return True
    return _certain(raw, level, shares) and all(
        _certain(recalibrate(by, observed, alternative, raw), level, shares)
        for by in options.recalibrations
    )


def _next_reach(reach: float, reach_max: float, precision: float, log_found: float) -> float:
    """Return the reach that the bounds need if no more is found, at most a stride further out."""
    log_unsearched = math.log(precision) + log_found - math.log(2)
    needed = float(-ndtri_exp(log_unsearched)) if math.isfinite(log_found) else math.inf
    return float(np.clip(needed, reach + STRIDE / 4, min(reach + STRIDE, reach_max)))


def misjudged_length(num_checks: int, num_disagreements: int = 0, delta: float = 0.05) -> float:
    """Return an upper limit on the misjudged share of the line's length, from random checks.

    The limit is Clopper and Pearson's with k disagreements among N + k points drawn uniformly in z.
    Checks are repeated until all points of a round agree, and each disagreement is followed up;
    every disagreement counts as if it had not been corrected. If there were any, points that agreed
    afterwards count as if they had been drawn before, so that the confidence is only approximately
    the stated one.

    The limit is about a length in z, not a probability: where the density of the statistic is high,
    a short misjudged piece may change p by more than its share, where it is low by less.

    Args:
        num_checks: Number N of points that agreed, of one line or of many.
        num_disagreements: Number k of points that disagreed, in any round.
        delta: 1 - confidence, in (0, 1).

    Returns:
        The largest share of the searched length, with this confidence, on which membership was
        misjudged before disagreements were followed up; 1 without checks.

    Example:
        >>> round(misjudged_length(8000), 5), round(misjudged_length(8000, 2), 5)
        (0.00037, 0.00079)

    Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    if not num_checks:
        return 1.0
    return float(betaincinv(num_disagreements + 1, num_checks, 1 - delta))
