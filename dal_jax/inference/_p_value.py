"""Selective p-values of a truncated normal statistic, with bounds for what was not searched."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from .._errors import InputError
from ._intervals import Intervals, as_intervals, complement, intersect, subtract
from ._normal import log_total_mass

ALTERNATIVES = ("two-sided", "equal-tailed", "greater", "less")

# z_obs may miss its interval by this share of max(1, |z_obs|): the rounding of a window's end.
_EDGE = 1e-9


class SelectiveP(NamedTuple):
    """A selective p-value and what it can become when the search is completed.

    Example:
        >>> bounds = selective_p(2.0, [1.0, 2.5], searched=[-1.5, 2.5])
        >>> bounds.low < bounds.p < bounds.high
        True
    """

    p: float  # from the truncation found so far; NaN when it is not valid
    low: float  # p if the unsearched rest lies in the truncation in the least favourable way
    high: float  # ... and in the most favourable way; low <= p <= high


def selective_p(
    z_obs: float,
    truncation: ArrayLike,
    searched: ArrayLike,
    alternative: str = "two-sided",
) -> SelectiveP:
    """Returns the p-value of z_obs under N(0, 1) truncated to a set Z, and bounds on it.

    With A the values at least as extreme as z_obs, `p = P(Z and A) / P(Z)`: A is `|z| >= |z_obs|`
    for "two-sided", `z >= z_obs` for "greater", `z <= z_obs` for "less"; "equal-tailed" is
    `2 min(F, 1 - F)` with F the p-value of "less". Only the part of Z inside `searched` is known.
    p falls when unsearched values outside A join Z and rises when those in A do, so all of the
    former give `low`, all of the latter `high`. F can take every value between its bounds, so
    for "equal-tailed" the same rule holds for `min(1, 2 min(less, greater))`.

    Args:
        z_obs: observed statistic in units of its standard deviation.
        truncation: (k, 2) the set Z found, standardized; taken inside `searched`.
        searched: (m, 2) where membership in Z is known; the rest of the line is not.
        alternative: "two-sided", "equal-tailed", "greater" or "less".

    Returns:
        SelectiveP(p, low, high), all in [0, 1]; all NaN when z_obs is not finite or not in the
        part of Z that was searched.

    Raises:
        InputError: unknown alternative, or intervals that are none.

    Example:
        >>> [round(v, 4) for v in selective_p(2.0, [[1.0, 3.0]], [[-4.0, 4.0]])]
        [0.136, 0.136, 0.1364]

    Source: Katsuoka et al., arXiv 2402.11789 (p); this project (bounds).
    """
    check_alternative(alternative)
    if alternative == "equal-tailed":
        less = selective_p(z_obs, truncation, searched, "less")
        greater = selective_p(z_obs, truncation, searched, "greater")
        return SelectiveP(*np.minimum(1.0, 2 * np.minimum(less, greater)).tolist())
    inside = as_intervals(searched)
    known, unknown = intersect(as_intervals(truncation), inside), complement(inside)
    if not _holds(known, z_obs):
        return SelectiveP(np.nan, np.nan, np.nan)
    tail = _tail(z_obs, alternative)
    extreme, rest = log_total_mass(intersect(known, tail)), log_total_mass(subtract(known, tail))
    more_extreme = np.logaddexp(extreme, log_total_mass(intersect(unknown, tail)))
    more_rest = np.logaddexp(rest, log_total_mass(subtract(unknown, tail)))
    p = _share(extreme, rest)
    low, high = _share(extreme, more_rest), _share(more_extreme, rest)
    return SelectiveP(p, low, high)


def decision(bounds: SelectiveP, alpha: float) -> Literal["reject", "accept", "undecided"]:
    """Returns what the bounds on p already say about the test at level alpha.

    Args:
        bounds: of a p-value; the test rejects when p <= alpha.
        alpha: level in (0, 1).

    Returns:
        "reject" when high <= alpha, "accept" when low > alpha, "undecided" otherwise (and for NaN).

    Raises:
        InputError: alpha not in (0, 1).

    Example:
        >>> decision(SelectiveP(p=0.02, low=0.01, high=0.03), alpha=0.05)
        'reject'

    Source: this project.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha!r}, expected a level between 0 and 1")
    if bounds.high <= alpha:
        return "reject"
    return "accept" if bounds.low > alpha else "undecided"


def check_alternative(alternative: str) -> None:
    """Refuses an alternative that is not known by an `InputError`."""
    if alternative not in ALTERNATIVES:
        raise InputError(
            f"alternative is {alternative!r}, expected one of {', '.join(ALTERNATIVES)}"
        )


def _holds(known: Intervals, z_obs: float) -> bool:
    if not np.isfinite(z_obs):
        return False
    slack = _EDGE * max(1.0, abs(z_obs))
    return bool(np.any((known[:, 0] - slack <= z_obs) & (z_obs <= known[:, 1] + slack)))


def _tail(z_obs: float, alternative: str) -> Intervals:
    """Values at least as extreme as z_obs."""
    if alternative == "two-sided":
        return as_intervals([[-np.inf, -abs(z_obs)], [abs(z_obs), np.inf]])
    return as_intervals([z_obs, np.inf] if alternative == "greater" else [-np.inf, z_obs])


def _share(log_part: float, log_rest: float) -> float:
    """Returns part / (part + rest): small shares keep their digits, part and rest swap to 1 - p."""
    with np.errstate(invalid="ignore"):  # nothing of nothing is NaN
        return float(expit(np.float64(log_part) - log_rest))
