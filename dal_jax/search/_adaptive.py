"""Adaptive search of a line, which evaluates the score where the p-value is decided.

It works for any score function, smooth or piecewise linear, continuous or with jumps. The search
evaluates a coarse grid, then divides the cells in which interpolation does not decide membership,
down to `AdaptiveOptions.tolerance` at the ends of the set. Cells whose probability does not matter
at the requested precision stay undecided and widen the bounds. Finally it evaluates random points;
if one is not as predicted, the search continues with more safety until all are, or until the
evaluations are used up, with the status NOT_CONVERGED. The bounds hold if the interpolation errors
do. `dal_jax.search._choice` has the rules; the host keeps the points and the order of events.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dal_jax._arrays import power_of_2
from dal_jax._errors import InputError
from dal_jax.inference import (
    ALTERNATIVES,
    FOUND,
    NO_PERTURBATION,
    UNKNOWN,
    Effect,
    Intervals,
    Perturbation,
    SelectiveP,
    as_intervals,
    contains,
    on_line,
)
from dal_jax.search._choice import DEEPEST, Chosen, Judged, LineState, Nodes
from dal_jax.search._lanes import SearchedLine
from dal_jax.search._line_search import (
    Progress,
    SearchOptions,
    SearchResult,
    Status,
    is_decided,
    reach_limit,
    search_status,
)

# First grid: reach on both sides of 0 and around the observed value, in standard deviations.
CORE, AROUND, NEAR = 3.5, 1.0, 0.2
# Cells that are not divided any more leave about this much of p open.
FINEST = 1e-7
# A score is assumed to be accurate to this many roundings of the largest observed margin; in
# float32 to the first multiple by 2, 4, ... that reaches SPREAD times the error at the observed
# point: powers of 2, as that error is itself rounding, and every machine would search elsewhere.
ROUNDINGS, SPREAD = 16.0, 4.0
# Factor on the assumed error after each disagreement of random checks.
MORE_CAREFUL = 4.0


@dataclass(frozen=True)
class AdaptiveOptions:
    """Settings of the adaptive search.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> AdaptiveOptions(spacing=0.25).max_evaluations
        4000
    """

    # Spacing of the first grid, standard deviations of the statistic, in (0, 1].
    spacing: float = 0.5
    safety: float = 4.0  # factor on the estimated interpolation error, 1 or above
    sections: int = 3  # parts into which an undecided cell is divided at a time, 2 or more
    checks: int = 8  # random points at which the outcome is checked
    tolerance: float = 1e-6  # accuracy of the ends, standard deviations (relative beyond 1)
    # Evaluations of the score in one test; the last round may exceed this number.
    max_evaluations: int = 4000

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("spacing", 0 < self.spacing <= 1, "a number in (0, 1]"),
            ("safety", 1 <= self.safety < math.inf, "a number of 1 or above"),
            ("sections", self.sections >= 2, "2 or more"),
            ("checks", self.checks >= 0, "0 or more"),
            ("tolerance", 0 < self.tolerance <= 0.01, "a number in (0, 0.01]"),
            ("max_evaluations", self.max_evaluations >= 1, "1 or more"),
        ):
            if not fits:
                raise InputError(f"{name}: got {getattr(self, name)!r}, expected {expected}")


class AdaptiveResult(NamedTuple):
    """Result of an adaptive search.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> line = as_intervals([-4.0, 4.0])
        >>> searched = SearchResult(line, line, SelectiveP(0.05, 0.05, 0.05), 0, 40, Status.OK)
        >>> found = AdaptiveResult(searched, Effect(2.0, 0.1, 3.9), 0.5, 8, 0)
        >>> found.num_checks, found.num_disagreements
        (8, 0)
    """

    searched: SearchResult  # sets, bounds, counts and status
    effect: Effect  # estimate and interval, standard deviations of the tested statistic
    spacing: float  # the widest cell that was not divided, standardized
    num_checks: int  # random points, all as predicted in the end; 0 if some were not
    num_disagreements: int  # points of any check that were not as predicted, followed up or not


class LineRequest(NamedTuple):
    """Request to search a line for the set on which the region is the observed one.

    Example:
        >>> from dal_jax.search import margins, select_region
        >>> score, images = np.array([[2.0, 0.0]]), np.ones((2, 1, 2, 1))
        >>> selected = select_region(score, 1.0)
        >>> observed = margins(score[None], 1.0, selected)
        >>> line = SearchedLine(*images, selected, observed, 1.0, ())
        >>> LineRequest(line, 2.0, SearchOptions(), AdaptiveOptions()).confidence
        0.95
    """

    line: SearchedLine
    z_obs: float  # statistic that the selection saw, in units of its standard deviation
    options: SearchOptions  # alternative, precision, alpha, z_max and others
    how: AdaptiveOptions  # spacing, safety and others
    seed: int = 0  # of the random points
    wide_only: bool = False  # whether every evaluation is in float64
    perturbation: Perturbation = NO_PERTURBATION  # noise that was added for the selection
    confidence: float = 0.95  # of the interval of the mean
    progress: Progress | None = None  # function that is called after every round


class LineSearch:
    """The search of one line: its evaluated points, those that are being evaluated, and its end.

    Args:
        request: What to search.
        lane: Lane of the line.

    Raises:
        InputError: z_obs is not finite.
    """

    def __init__(self, request: LineRequest, lane: int = 0):
        self.request, self.lane = request, lane
        line, options, how = request.line, request.options, request.how
        observed = line.observed
        scale = float(np.abs(observed.margin).max())
        self._wide_noise = ROUNDINGS * float(np.finfo(np.float64).eps) * scale
        self.limit = reach_limit(request.z_obs, options.z_max)
        # In the order of evaluation: z, whether inside, lowest margin, noise; as `arrange` has it.
        self.points = np.zeros((4, 64))
        self.points[:, 0] = (
            request.z_obs,
            observed.inside[0],
            observed.margin.min(),
            self._wide_noise,
        )
        self.count = 1
        self._rng: np.random.Generator | None = None  # of the checks, once there were any
        self._expected: np.ndarray | None = None  # prediction of the points, if they are a check
        self._checks, self._disagreements, self._agreed = 0, 0, True
        self._result: AdaptiveResult | None = None
        self.ended = False  # whether only bounds and interval are missing
        self._static = LineState(
            z_obs=request.z_obs,
            spread=request.perturbation.spread,
            shift=request.perturbation.shift,
            alternative=ALTERNATIVES.index(options.alternative),
            limit=self.limit,
            precision=options.precision,
            width=max(options.precision, FINEST),
            alpha=math.nan if options.alpha is None else options.alpha,
            level=math.nan if options.level is None else options.level,
            shares=options.shares,
            pending=0,
            elsewhere=options.level is not None and bool(options.recalibrations),
            spacing=how.spacing,
            sections=how.sections,
            tolerance=how.tolerance,
            safety=how.safety,
            noise=self._wide_noise if request.wide_only else math.nan,
            wide_noise=self._wide_noise,
        )
        self.state = np.array(self._static, np.float64)
        grid = self._first()
        self._ask(grid, np.zeros(len(grid), bool))

    @property
    def needs_bounds(self) -> bool:
        """Whether the choice of points depends on the bounds, or a function wants to see them."""
        options = self.request.options
        decides = options.alpha is not None or options.level is not None
        return decides or self.request.progress is not None

    @property
    def result(self) -> AdaptiveResult | None:
        """Result of a search that ended."""
        return self._result

    @property
    def asked(self) -> int:
        """Number of points that were requested."""
        return self.count - 1 + (len(self.z) if self.missing else 0)

    def take(self, at: np.ndarray, facts: np.ndarray) -> bool:
        """Take the facts of points that were requested.

        Args:
            at: Their numbers (k,) in the request.
            facts: Facts (k, 3) of each, as `Lanes.store` returns them.

        Returns:
            Whether all points of the request have been evaluated.
        """
        self.points[1:, self.count + at] = facts.T
        self.missing -= len(at)
        return not self.missing

    def settle(self) -> bool:
        """Add the evaluated points; return whether the search goes on."""
        new = slice(self.count, self.count + len(self.z))
        _, inside, lowest, noise = self.points[:, new]
        self.count = new.stop
        if np.isnan(lowest).any():
            none, nan = as_intervals([]), math.nan
            self._end(none, none, SelectiveP(nan, nan, nan), Status.NON_FINITE, nan)
            return False
        if math.isnan(self._of("noise")):  # the observed point comes first, now in float32
            self._set("noise", self._narrow_noise(float(noise[0])))
        own = self._of("noise")
        noise[:] = np.where(self.wide, self._wide_noise, own)
        if self._expected is not None:
            wrong = (inside > 0) != self._expected
            wrong &= np.abs(lowest) > own  # else rounding may decide it
            count = int(wrong.sum())
            self._disagreements += count
            self._agreed, self._checks = not count, 0 if count else len(wrong)
            if count:
                self._set("safety", self._of("safety") * MORE_CAREFUL)
            self._expected = None
        return True

    def follow(
        self, chosen: Chosen, outcome: Callable[[], tuple[Nodes, Judged, np.ndarray]]
    ) -> bool:
        """Take the outcome of a round: there are new points to evaluate, or the search ended.

        Args:
            chosen: Next points, as numpy arrays.
            outcome: Function that returns evaluated points, cells and sets, and bounds on p (where
                `needs_bounds`), as numpy arrays.

        Returns:
            False if the choice has to be made again, with the state as it is now.
        """
        if self.request.progress is not None and not self._of("pending"):
            nodes, _, bounds = outcome()
            far = float(min(-nodes.z[0], nodes.z[nodes.count - 1]))
            self.request.progress(self._bounds(bounds), far)
        self._set("precision", float(chosen.precision))
        total, used_up = int(chosen.total), self.asked >= self.request.how.max_evaluations
        if total and not used_up:
            self._set("pending", 0)
            self._ask(chosen.z[:total], chosen.wide[:total])
            return True
        nodes, judged, _ = outcome()
        found, searched = _sets(judged)
        if self._of("elsewhere") and not self._of("pending") and not used_up:
            seen = on_line(self.request.z_obs, found, searched, self.request.perturbation)
            if not is_decided(seen, self.request.options) and self._of("precision") > DEEPEST:
                self._set("pending", 1)
                return False
        self._set("pending", 0)
        if not self._check(nodes, found, searched, used_up):
            self.ended = True
            ends = nodes.z[: nodes.count]
            self._last = found, searched, float((ends[1:] - ends[:-1]).max())
        return True

    def conclude(self, bounds: np.ndarray, interval: np.ndarray) -> None:
        """End the search with the bounds on p, and estimate and interval of the mean."""
        p = self._bounds(bounds)
        wanted = replace(self.request.options, precision=self._static.width)
        status = search_status(p, wanted)
        if status is Status.OK and not self._agreed:
            status = Status.NOT_CONVERGED
        none, nan = as_intervals([]), math.nan
        if status is Status.TIE:
            self._end(none, none, SelectiveP(nan, nan, nan), status, nan)
        else:
            found, searched, spacing = self._last
            self._end(found, searched, p, status, spacing, Effect(*interval.tolist()))

    def _end(
        self,
        found: Intervals,
        searched: Intervals,
        p: SelectiveP,
        status: Status,
        spacing: float,
        effect: Effect = Effect(math.nan, math.nan, math.nan),  # noqa: B008
    ) -> None:
        result = SearchResult(found, searched, p, 0, self.count - 1, status)
        checks = 0 if math.isnan(spacing) else self._checks
        self._result = AdaptiveResult(result, effect, spacing, checks, self._disagreements)

    def _of(self, name: str) -> float:
        return float(self.state[_PLACE[name]])

    def _set(self, name: str, value: float) -> None:
        self.state[_PLACE[name]] = value

    def _ask(self, z: np.ndarray, wide: np.ndarray) -> None:
        """Request the evaluation of points."""
        room = self.points.shape[1]
        if self.count + len(z) > room:
            more = power_of_2(self.count + len(z)) - room
            self.points = np.pad(self.points, ((0, 0), (0, more)))
        self.z, self.wide = z, wide | self.request.wide_only
        self.points[0, self.count : self.count + len(z)] = z
        self.missing = len(z)

    def _check(self, nodes: Nodes, found: Intervals, searched: Intervals, used_up: bool) -> bool:
        """Request random points of the searched part, unless those of the last check will do."""
        how = self.request.how
        if not how.checks or (self._rng is not None and (self._agreed or used_up)):
            return False
        if self._rng is None:
            words = np.array([self.request.z_obs]).view(np.uint32).tolist()
            self._rng = np.random.default_rng([self.request.seed, *words])
        z = self._rng.uniform(nodes.z[0], nodes.z[nodes.count - 1], how.checks)
        z = z[contains(searched, z)]
        if not len(z):
            return False
        self._ask(z, np.zeros(len(z), bool))
        self._expected = contains(found, z)
        return True

    def _bounds(self, bounds: np.ndarray) -> SelectiveP:
        if math.isnan(bounds[0]) and self.asked >= self.request.how.max_evaluations:
            return SelectiveP(0.0, 0.0, 1.0)  # not a tie yet: nothing is decided at z_obs
        return SelectiveP(*bounds.tolist())

    def _narrow_noise(self, difference: float) -> float:
        """Return the rounding error of a float32 margin, from the largest at the observed point."""
        ratio = float(np.finfo(np.float32).eps / np.finfo(np.float64).eps)
        least = max(ratio * self._wide_noise, float(np.finfo(np.float32).tiny))
        steps = SPREAD * difference / least
        return least * 2.0 ** max(0, math.ceil(math.log2(steps))) if steps > 0 else least

    def _first(self) -> np.ndarray:
        """Return a grid through z_obs over the range that probably matters, and two points near
        z_obs.
        """
        z_obs, how = self.request.z_obs, self.request.how
        reach = self.limit if self.request.options.precision == 0 else min(CORE, self.limit)
        spacing = how.spacing
        room = max(2 * CORE, spacing * how.max_evaluations)  # for a z_obs that is far out
        low = max(min(-reach, z_obs - AROUND), -self.limit, z_obs - room)
        high = min(max(reach, z_obs + AROUND), self.limit, z_obs + room)
        below = z_obs - spacing * np.arange(1, math.ceil((z_obs - low) / spacing))
        above = z_obs + spacing * np.arange(1, math.ceil((high - z_obs) / spacing))
        near = z_obs + NEAR * spacing * np.array([-1.0, 1.0])
        z = np.unique(np.concatenate([[low, high], below, above, near]))
        z = z[(z >= low) & (z <= high) & (z != z_obs)]
        if not self.request.wide_only:  # the observed point again, to measure float32's rounding
            z = np.concatenate([[z_obs], z])
        return z


_PLACE = {name: place for place, name in enumerate(LineState._fields)}


def _sets(judged: Judged) -> tuple[Intervals, Intervals]:
    """Return the truncation set that was found, and the part of the line where it is known."""
    count = int(judged.pieces.count)
    ends = np.stack([judged.pieces.low[:count], judged.pieces.high[:count]], axis=1)
    member = judged.pieces.member[:count]
    unknown = ends[member == UNKNOWN].reshape(-1)
    return ends[member == FOUND], unknown[1:-1].reshape(-1, 2)
