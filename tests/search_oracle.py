"""The adaptive search by numpy, one line on its own, with which that of the devices is compared."""

import math
from collections.abc import Generator
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from cells_oracle import Cells
from scipy.special import ndtri_exp

from dal_jax._typing import Bool, Float, Int
from dal_jax.inference import (
    NO_PERTURBATION,
    Effect,
    Intervals,
    NullLaw,
    Observed,
    Perturbation,
    SelectiveP,
    as_intervals,
    contains,
    log_mass,
    log_total_mass,
    merge,
    on_line,
    subtract,
)
from dal_jax.search import (
    AdaptiveOptions,
    AdaptiveResult,
    Margins,
    SearchOptions,
    SearchResult,
    Status,
    reach_limit,
)
from dal_jax.search._adaptive import (
    AROUND,
    CORE,
    FINEST,
    MORE_CAREFUL,
    NEAR,
    ROUNDINGS,
    SPREAD,
)
from dal_jax.search._choice import (
    BORDER,
    CELLS_SHARE,
    DEEPER,
    DEEPEST,
    ESTIMATE_SHARE,
    GROWTH,
    INTERVAL_REACH,
    INTERVAL_SHARE,
    LONG,
    NARROWEST,
    STRIDE,
    TAILS_SHARE,
    WIDE_BELOW,
)
from dal_jax.search._line_search import Progress, is_decided, search_status

NO_EFFECT = Effect(math.nan, math.nan, math.nan)  # is computed afterwards


class _Nodes(NamedTuple):
    """Evaluated points of a line, ascending."""

    z: Float[np.ndarray, " N"]  # standardized
    slot: Int[np.ndarray, " N"]  # number in the order of evaluation
    inside: Bool[np.ndarray, " N"]  # the region is the observed one
    lowest: Float[np.ndarray, " N"]  # lowest margin, units of the score
    noise: Float[np.ndarray, " N"]  # largest rounding error of a margin, units of the score


class QueryPoints(NamedTuple):
    """Points of a line to be evaluated."""

    z: Float[np.ndarray, " k"]  # standardized
    wide: Bool[np.ndarray, " k"]  # in float64


class PointFacts(NamedTuple):
    """What the search learns of evaluated points."""

    inside: Bool[np.ndarray, " k"]  # the region is the observed one
    lowest: Float[np.ndarray, " k"]  # lowest margin, units of the score
    moved: Float[np.ndarray, " k"]  # largest distance of a margin from that at the observed point


class CellQuery(NamedTuple):
    """Points of a line whose cells are to be judged, ascending."""

    slot: Int[np.ndarray, " N"]  # number of each point in the order of evaluation; 0: the observed
    z: Float[np.ndarray, " N"]  # standardized
    inside: Bool[np.ndarray, " N"]
    noise: Float[np.ndarray, " N"]  # largest rounding error of a margin, units of the score
    safety: float  # factor on the interpolation error


def adaptive_search(
    z_obs: float,
    observed: Margins,
    options: SearchOptions,
    how: AdaptiveOptions,
    *,
    seed: int = 0,
    wide_only: bool = False,
    perturbation: Perturbation = NO_PERTURBATION,
    progress: Progress | None = None,
) -> Generator[QueryPoints | CellQuery, PointFacts | Cells, AdaptiveResult]:
    """Yield points to be evaluated, then all points whose cells are to be judged."""
    search = _Search(z_obs, observed, options, how, wide_only, perturbation, progress)
    yield from search.resolve()
    rng = np.random.default_rng([seed, *np.array([z_obs]).view(np.uint32).tolist()])
    while how.checks and search.finite:
        agreed = yield from search.check(rng)
        yield from search.resolve()  # the new points may have opened cells
        if agreed or search.asked >= how.max_evaluations:
            break
    return search.outcome()


Found = TypeVar("Found")
_Asking = Generator[QueryPoints | CellQuery, PointFacts | Cells, Found]


class _Search:
    """State of the search of one line, and the choice of the next points."""

    def __init__(
        self,
        z_obs: float,
        observed: Margins,
        options: SearchOptions,
        how: AdaptiveOptions,
        wide_only: bool,
        perturbation: Perturbation,
        progress: Progress | None,
    ):
        self.z_obs, self.options, self.how, self.wide_only = z_obs, options, how, wide_only
        self.progress, self.perturbation = progress, perturbation
        self.limit = reach_limit(z_obs, options.z_max)
        self.precision = options.precision  # that of the tails and cells; falls below the options'
        scale = float(np.abs(observed.margin).max())
        self.wide_noise = ROUNDINGS * float(np.finfo(np.float64).eps) * scale
        self.noise = self.wide_noise if wide_only else math.nan  # of points that are not wide
        lowest = observed.margin.min(axis=1)
        at, noise = np.array([z_obs]), np.array([self.wide_noise])
        self.nodes = _Nodes(at, np.zeros(1, int), observed.inside, lowest, noise)
        self.safety, self.asked = how.safety, 0
        self.checks, self.disagreements = 0, 0
        self.finite, self.agreed = True, True

    def resolve(self) -> _Asking[None]:
        """Request points until the bounds are tight and the ends are known, or no points are
        left.
        """
        points = self._first() if len(self.nodes.z) == 1 else self._next()
        while len(points.z) and self.asked < self.how.max_evaluations:
            yield from self._evaluate(points)
            if not self.finite:
                return
            points = self._next()

    def check(self, rng: np.random.Generator) -> _Asking[bool]:
        """Request random points of the searched part; return whether all are as predicted."""
        found, undecided = self.found, self.undecided
        z = rng.uniform(self.nodes.z[0], self.nodes.z[-1], self.how.checks)
        z = z[~contains(undecided, z)]
        points = self._points(z, np.zeros(len(z), bool))
        answer = (yield from self._evaluate(points)) if len(z) else None
        if answer is None:
            return True
        wrong = (answer.inside != contains(found, z)) & ~_doubtful(answer.lowest, self.noise)
        self.disagreements += int(wrong.sum())
        self.agreed = not wrong.any()
        self.checks = len(z) if self.agreed else 0
        if not self.agreed:
            self.safety *= MORE_CAREFUL
            yield from self._assess()
        return self.agreed

    def outcome(self) -> AdaptiveResult:
        """Return the result of the search."""
        if self.finite:
            bounds, status = self._bounds()
            if status is Status.OK and not self.agreed:
                status = Status.NOT_CONVERGED
        if not self.finite or status is Status.TIE:
            none, nan = as_intervals([]), math.nan
            status = Status.TIE if self.finite else Status.NON_FINITE
            searched = SearchResult(none, none, SelectiveP(nan, nan, nan), 0, self.asked, status)
            return AdaptiveResult(searched, NO_EFFECT, nan, 0, self.disagreements)
        known = subtract(self._span(), self.undecided)
        searched = SearchResult(self.found, known, bounds, 0, self.asked, status)
        spacing = float(np.diff(self.nodes.z).max())
        return AdaptiveResult(searched, NO_EFFECT, spacing, self.checks, self.disagreements)

    def _points(self, z: np.ndarray, wide: np.ndarray) -> QueryPoints:
        return QueryPoints(z, wide | self.wide_only)

    def _evaluate(self, points: QueryPoints) -> _Asking[PointFacts | None]:
        answer = yield points
        assert isinstance(answer, PointFacts)
        slot = self.asked + np.arange(1, 1 + len(points.z))
        self.asked += len(points.z)
        if np.isnan(answer.lowest).any():
            self.finite = False
            return None
        if math.isnan(self.noise):  # the observed point comes first, now in float32
            self.noise = self._narrow_noise(answer.moved[0])
        noise = np.where(points.wide, self.wide_noise, self.noise)
        new = _Nodes(points.z, slot, answer.inside, answer.lowest, noise)
        self.nodes = _with_points(self.nodes, new)
        yield from self._assess()
        if self.progress is not None:
            self.progress(self._bounds()[0], float(min(-self.nodes.z[0], self.nodes.z[-1])))
        return answer

    def _narrow_noise(self, difference: float) -> float:
        """Return the rounding error of a float32 margin, from the largest at the observed point."""
        ratio = float(np.finfo(np.float32).eps / np.finfo(np.float64).eps)
        least = max(ratio * self.wide_noise, float(np.finfo(np.float32).tiny))
        steps = SPREAD * difference / least
        return least * 2.0 ** max(0, math.ceil(math.log2(steps))) if steps > 0 else least

    def _assess(self) -> _Asking[None]:
        """Derive the cells and the known part of the set from the nodes."""
        nodes = self.nodes
        cells = yield CellQuery(nodes.slot, nodes.z, nodes.inside, nodes.noise, self.safety)
        assert isinstance(cells, Cells)
        self.cells = cells
        open_ = cells.start < cells.stop
        self.undecided = as_intervals(np.stack([cells.start, cells.stop], axis=1)[open_])
        left, right = nodes.inside[:-1], nodes.inside[1:]
        low = np.where(left, nodes.z[:-1], np.where(right, cells.root, nodes.z[1:]))
        high = np.where(right, nodes.z[1:], np.where(left, cells.root, nodes.z[1:]))
        self.found = merge(np.stack([low, high], axis=1))
        self.log_found = log_total_mass(self.found)

    def _bounds(self) -> tuple[SelectiveP, Status]:
        """Return p from the known part of the set, with bounds for undecided and unsearched
        parts.
        """
        searched = subtract(self._span(), self.undecided)
        bounds = self._p(searched)
        if math.isnan(bounds.p) and self.asked >= self.how.max_evaluations:
            bounds = SelectiveP(0.0, 0.0, 1.0)  # not a tie yet: nothing is decided at z_obs
        if not math.isnan(bounds.p):
            bounds = bounds._replace(p=self._p(self._span()).p)
        wanted = replace(self.options, precision=max(self.options.precision, FINEST))
        return bounds, search_status(bounds, wanted)

    def _span(self) -> Intervals:
        return self.nodes.z[[0, -1]][None]

    def _first(self) -> QueryPoints:
        """Return a grid through z_obs over the range that probably matters, and two points near
        z_obs.
        """
        reach = self.limit if self.options.precision == 0 else min(CORE, self.limit)
        spacing = self.how.spacing
        room = max(2 * CORE, spacing * self.how.max_evaluations)  # for a z_obs that is far out
        low = max(min(-reach, self.z_obs - AROUND), -self.limit, self.z_obs - room)
        high = min(max(reach, self.z_obs + AROUND), self.limit, self.z_obs + room)
        below = self.z_obs - spacing * np.arange(1, math.ceil((self.z_obs - low) / spacing))
        above = self.z_obs + spacing * np.arange(1, math.ceil((high - self.z_obs) / spacing))
        near = self.z_obs + NEAR * spacing * np.array([-1.0, 1.0])
        z = np.unique(np.concatenate([[low, high], below, above, near]))
        z = z[(z >= low) & (z <= high) & (z != self.z_obs)]
        if not self.wide_only:  # the observed point again, to measure the rounding of float32
            z = np.concatenate([[self.z_obs], z])
        return self._points(z, np.zeros(len(z), bool))

    def _next(self) -> QueryPoints:
        """Return points in the undecided cells that matter, or further out if there are none, or if
        a long line has less of the probability in them than further out.
        """
        if self.options.alpha is not None and self._bounds()[1] is Status.OK and self._decided():
            return self._points(np.zeros(0), np.zeros(0, bool))
        while True:
            points, further = self._divide(), self._further()
            cells_first = len(self.nodes.z) <= LONG or self._holds_more()
            if not len(points.z) or (len(further.z) and not cells_first):
                points = further
            if len(points.z) or self.precision <= DEEPEST or self._decided():
                return points
            self.precision *= DEEPER

    def _holds_more(self) -> bool:
        """Return whether the undecided cells hold more of the probability than lies further out."""
        outside = np.array([[-self.limit, self.nodes.z[0]], [self.nodes.z[-1], self.limit]])
        outside = as_intervals(outside[outside[:, 0] < outside[:, 1]])
        return log_total_mass(self.undecided) > log_total_mass(outside)

    def _decided(self) -> bool:
        if self.options.level is None:
            return True
        searched = subtract(self._span(), self.undecided)
        return is_decided(self._observed(searched), self.options)

    def _observed(self, searched: Intervals) -> Observed:
        return on_line(self.z_obs, self.found, searched, self.perturbation)

    def _p(self, searched: Intervals) -> SelectiveP:
        return NullLaw().p_value(self._observed(searched), self.options.alternative)

    def _divide(self) -> QueryPoints:
        cells, nodes = self.cells, self.nodes
        changes = nodes.inside[1:] != nodes.inside[:-1]
        scale = np.maximum(1.0, np.abs(cells.start))
        length = cells.stop - cells.start
        width = np.diff(nodes.z)
        needed = (length > 0) & (~self._negligible(length) | self._adjacent())
        needed |= changes & (length > self.how.tolerance * scale)
        needed &= width > NARROWEST * scale
        doubtful = (nodes.noise > self.wide_noise) & _doubtful(nodes.lowest, nodes.noise)
        # Interpolation errors below this are the effect of rounding on the slopes.
        rounding = 5 * self.safety * self.noise
        z, wide = [nodes.z[doubtful]], [np.ones(int(doubtful.sum()), bool)]
        for cell in np.flatnonzero(needed).tolist():
            inner = self._inner(cell, changes[cell], length[cell] < width[cell] / 2)
            exact = length[cell] < WIDE_BELOW or cells.error[cell] <= rounding
            z.append(inner)
            wide.append(np.full(len(inner), exact))
        return self._points(np.concatenate(z), np.concatenate(wide))

    def _adjacent(self) -> Bool[np.ndarray, " N-1"]:
        """Mark the two cells at the observed point while nothing is decided on one of its sides."""
        hidden = ((self.undecided - self.z_obs) * [-1, 1] > 0).all(axis=1).any()
        at = np.searchsorted(self.nodes.z, self.z_obs)
        cells = np.arange(len(self.nodes.z) - 1)
        return hidden & ((cells == at - 1) | (cells == at))

    def _inner(self, cell: int, changes: bool, narrowed: bool) -> np.ndarray:
        """Return the points that divide a cell: around the end of the set in it, or evenly."""
        low, high = self.nodes.z[cell], self.nodes.z[cell + 1]
        start, stop = self.cells.start[cell], self.cells.stop[cell]
        if changes and narrowed:
            points = np.array([start, stop])
        else:
            parts = self.how.sections if changes else max(self.how.sections - 1, 2)
            points = start + (stop - start) * np.arange(1, parts) / parts
        border = BORDER * (high - low)
        return np.clip(points, low + border, high - border)

    def _negligible(self, length: np.ndarray) -> Bool[np.ndarray, " N-1"]:
        """Mark the least probable undecided cells that precision and interval allow to stay
        open.
        """
        zones = np.stack([self.cells.start, np.maximum(self.cells.start, self.cells.stop)], axis=1)
        limits = [(0.0, _log(CELLS_SHARE * self.precision) + self.log_found)]
        limits += [self._limit(way) for way in (-1, 1) if self.perturbation.spread]
        negligible = np.ones(len(length), bool)
        for mean, allowed in limits:
            mass = np.where(length > 0, log_mass(zones - mean), -np.inf)
            order = np.argsort(mass)
            negligible[order] &= np.logaddexp.accumulate(mass[order]) <= allowed
        return negligible

    def _limit(self, way: int) -> tuple[float, float]:
        """Return the mean of z at the estimate (way 0) or an end, and the log probability to
        leave open.

        The estimate is close to the value of the statistic.
        """
        scale, shift = self.perturbation.scale, self.perturbation.shift
        mean = self.z_obs + (way * INTERVAL_REACH - shift) / scale
        share = INTERVAL_SHARE if way else ESTIMATE_SHARE
        return mean, _log(share) + log_total_mass(self.found - mean)

    def _needed(self) -> tuple[float, float]:
        """Return the range of z that p and the interval need to be searched."""
        reach = _quantile(_log(TAILS_SHARE * self.precision) + self.log_found)
        first, last = -reach, reach
        if self.perturbation.spread:
            middle, _ = self._limit(0)
            for way in (-1, 0, 1):
                mean, allowed = self._limit(way)
                reach = _quantile(allowed)
                # At the upper end small values are extreme: of the values above the statistic only
                # those that the randomization moved there count. The lower end is the mirror image.
                moved = reach * self.perturbation.spread / self.perturbation.scale
                first = min(first, max(mean - reach, middle - moved if way < 0 else -math.inf))
                last = max(last, min(mean + reach, middle + moved if way > 0 else math.inf))
        return max(first, -self.limit), min(last, self.limit)

    def _further(self) -> QueryPoints:
        """Return points in the tails that precision and interval still need, in steps of the
        grid.
        """
        first, last = self._needed()
        low, high, spacing = self.nodes.z[0], self.nodes.z[-1], self.how.spacing
        stride = max(STRIDE, GROWTH * (high - low) / 2)
        z = []
        if low > first:
            z.append(np.arange(low, max(first, low - stride), -spacing)[1:])
            z.append([max(first, low - stride)])
        if high < last:
            z.append(np.arange(high, min(last, high + stride), spacing)[1:])
            z.append([min(last, high + stride)])
        points = np.unique(np.concatenate(z)) if z else np.zeros(0)
        return self._points(points, np.zeros(len(points), bool))


def _with_points(nodes: _Nodes, new: _Nodes) -> _Nodes:
    """Add evaluated points; of two at one place the more accurate one stays."""
    every = _Nodes(*map(np.concatenate, zip(nodes, new, strict=True)))
    order = np.lexsort((every.noise, every.z))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(every.z[order]) > 0
    return _Nodes(*(column[order[first]] for column in every))


def _doubtful(
    lowest: Float[np.ndarray, " k"], noise: float | Float[np.ndarray, " k"]
) -> Bool[np.ndarray, " k"]:
    """Mark points whose membership rounding may decide: their lowest margin is within the noise."""
    return np.abs(lowest) <= noise


def _quantile(log_p: float) -> float:
    """Return the distance from 0 beyond which the normal tail has this log probability."""
    return float(-ndtri_exp(log_p)) if math.isfinite(log_p) else math.inf


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
