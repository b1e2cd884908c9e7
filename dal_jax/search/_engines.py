"""Exact engines for parts of a line: the sweep, all windows at once, and the scan, one by one.

The sweep computes in float64, or in float32 with float64 around everything that decides. The scan
is parametric programming, window after window, on several lanes at once.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax._compat import exact_arithmetic
from dal_jax._typing import Array, Float, Int
from dal_jax.affine import PieceStatus, Sweep, Swept, affine_piece, sweep
from dal_jax.inference import Intervals, as_intervals, contains, intersect, subtract, union
from dal_jax.search._selection import (
    LineProblem,
    Membership,
    margins,
    operands,
    tree_from_spec,
    tree_spec,
)

# A float32 sweep places ends within 4e-6 of the float64 ones (measured on the reference cases).
POLISH_WIDTH = 2e-5
# Scores this close to the threshold (relative to it, or to 1) are evaluated again in float64; or
# this close in errors of the float32 score at the observed image, if that is further.
SUSPECT, SUSPECT_ERRORS = 1e-5, 8.0
# Number and factor of the extensions of a polished part whose ends contradict the float32 sweep.
POLISH_ROUNDS, POLISH_GROWTH = 6, 8.0
LANES = 8
# Each lane gets this many segments of its own, so that none waits for the longest.
SEGMENTS_PER_LANE = 4
# Windows a lane visits before the host collects them: the size of the records on the device.
ROUND = 64
# A lane evaluates this far (relative to max(1, |z|)) to the right of the last window's end; the
# part that the next window leaves uncovered is a gap.
NUDGE = 1e-10
# Two windows compute their common end from different numbers; this is rounding, not a gap.
ROUNDING = 1e-11


class EngineResult(NamedTuple):
    """The observed region's part of the line, within the requested parts.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> none = as_intervals([])
        >>> left = EngineResult(as_intervals([-1.0, 0.0]), none, 1, 2, True)
        >>> (left + EngineResult(as_intervals([0.0, 2.0]), none, 1, 2, True)).inside.tolist()
        [[-1.0, 2.0]]
    """

    inside: Intervals  # (k, 2) standardized z: the region is the observed one
    gaps: Intervals  # (g, 2) standardized z: skipped, with unknown membership
    num_windows: int  # affine pieces visited
    num_evaluations: int  # of the score function, with or without slopes
    finite: bool  # False: the score was NaN or infinite somewhere

    def __add__(self, other: "EngineResult") -> "EngineResult":  # type: ignore[override]
        """Return the union of two results."""
        return EngineResult(
            union(self.inside, other.inside),
            union(self.gaps, other.gaps),
            self.num_windows + other.num_windows,
            self.num_evaluations + other.num_evaluations,
            self.finite and other.finite,
        )


class Engine(Protocol):
    """Function that finds the observed region's part of the line.

    Example:
        >>> from dal_jax.inference import as_intervals, intersect
        >>> def engine(parts):  # the region is the observed one where z > 1
        ...     inside = intersect(as_intervals(list(parts)), as_intervals([1.0, 9.0]))
        ...     return EngineResult(inside, as_intervals([]), 1, 1, True)
        >>> engine([(-2.0, 2.0)]).inside.tolist()
        [[1.0, 2.0]]
    """

    def __call__(self, parts: Sequence[tuple[float, float]]) -> EngineResult:
        """Search parts of the line.

        Args:
            parts: (lo, hi) pairs, standardized z, disjoint, ascending, finite.

        Returns:
            The result within these parts.
        """
        ...


@lru_cache(maxsize=32)
def _prepare(membership: Membership, description: Any, dtype: str) -> Sweep:
    shape = jax.ShapeDtypeStruct((), np.dtype(dtype))
    return sweep(membership, tree_from_spec(description), shape)


@lru_cache(maxsize=32)
def _evaluation(membership: Membership) -> Any:
    return jax.jit(membership)


class SweepEngine:
    """Engine that sweeps parts of one line in one precision.

    Args:
        problem: Problem of the line.
        dtype: "float64", or "float32" for a float32 sweep that is polished in float64.

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> SweepEngine(problem)([(-4.0, 4.0)]).inside.round(6).tolist()
        [[1.0, 4.0]]
    """

    @exact_arithmetic()
    def __init__(self, problem: LineProblem, dtype: str = "float64"):
        self._problem, self._values = problem, operands(problem, dtype)
        self._sweep = _prepare(problem.membership, tree_spec(self._values), dtype)
        self._statics = self._sweep.bind(self._values)
        self._suspect = SUSPECT * max(1.0, problem.threshold)
        self._exact_engine = SweepEngine(problem) if dtype == "float32" else None
        if self._exact_engine is not None:
            error = np.nan_to_num(np.abs(self._score() - self._exact_engine._score())).max()
            self._suspect = max(self._suspect, SUSPECT_ERRORS * float(error))

    @exact_arithmetic()
    def __call__(self, parts: Sequence[tuple[float, float]]) -> EngineResult:
        """Search parts of the line.

        Args:
            parts: (lo, hi) pairs, standardized z, disjoint, ascending, finite.

        Returns:
            The result within these parts.
        """
        found, suspects = self._run(parts)
        if self._exact_engine is None:
            return found
        if not found.finite:  # perhaps only because float32 overflows
            return self._exact_engine(parts)
        return _polish(self._exact_engine, found, suspects, parts)

    def _score(self) -> np.ndarray:
        """Return the score map of the observed image, in this engine's precision."""
        z = np.asarray(self._problem.z_obs, self._values[-1].dtype)
        return np.asarray(_evaluation(self._problem.membership)(self._values, z)[1], np.float64)

    @np.errstate(invalid="ignore", over="ignore")  # non-finite values are detected below
    def _run(self, parts: Sequence[tuple[float, float]]) -> tuple[EngineResult, np.ndarray]:
        """Return the result, and the nodes at which rounding of the score may decide."""
        inside, suspects, windows, evaluations, finite = [], [], 0, 0, True
        for swept in self._sweep.run(self._statics, parts):
            same, score = swept.outputs
            inside.append(_intervals(swept, same))
            margin = margins(score, self._problem.threshold, self._problem.selected).margin
            near = np.abs(margin.min(axis=1)) < self._suspect
            suspects.append(swept.z[near])
            windows += int((~swept.closed).sum())
            evaluations += len(swept.z)
            finite &= bool(np.isfinite(score).all())
        merged = as_intervals(np.concatenate(inside))
        found = EngineResult(merged, as_intervals([]), windows, evaluations, finite)
        return found, np.concatenate(suspects)


def _intervals(swept: Swept, same: np.ndarray) -> np.ndarray:
    """Return the runs of open intervals on which the region is the observed one."""
    inside = same[:-1] & ~swept.closed
    # Intervals of width zero between two inside ones do not interrupt a run.
    keep = swept.z[1:] > swept.z[:-1]
    inside, lo, hi = inside[keep], swept.z[:-1][keep], swept.z[1:][keep]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return np.stack([lo[edges[::2]], hi[edges[1::2] - 1]], axis=1)


def _polish(
    exact_engine: SweepEngine,
    found: EngineResult,
    suspects: np.ndarray,
    parts: Sequence[tuple[float, float]],
) -> EngineResult:
    """Replace the result around its ends and near misses by that of the float64 sweep.

    A polished part grows while float64 contradicts float32 at its border; after some rounds it is
    left as a gap.
    """
    limits = as_intervals(list(parts))
    at_limit = np.isin(found.inside, limits)
    centres = np.concatenate([found.inside[~at_limit], suspects])
    width = POLISH_WIDTH * np.maximum(1.0, np.abs(centres))
    total, doubtful = found, as_intervals([])
    for _ in range(POLISH_ROUNDS):
        if not centres.size:
            return total
        around = as_intervals(np.stack([centres - width, centres + width], axis=1))
        around = intersect(around, limits)
        exact, _ = exact_engine._run([(float(lo), float(hi)) for lo, hi in around])
        total = EngineResult(
            union(subtract(found.inside, around), exact.inside),
            total.gaps,
            total.num_windows,
            total.num_evaluations + exact.num_evaluations,
            exact.finite,
        )
        doubtful = _contradictions(around, exact.inside, found.inside, limits)
        if not len(doubtful):
            return total
        wrong = (centres[:, None] >= doubtful[:, 0]) & (centres[:, None] <= doubtful[:, 1])
        width = np.where(wrong.any(1), POLISH_GROWTH * width, width)
    return total._replace(inside=subtract(total.inside, doubtful), gaps=doubtful)


def _contradictions(
    around: Intervals, exact: Intervals, rough: Intervals, limits: Intervals
) -> Intervals:
    """Return the polished parts at whose border float32 and float64 disagree."""
    step = 1e-3 * (around[:, 1] - around[:, 0])
    wrong = np.zeros(len(around), bool)
    for border, inwards in ((around[:, 0], step), (around[:, 1], -step)):
        free = ~np.isin(border, limits)
        differs = contains(exact, border + inwards) != contains(rough, border - inwards)
        wrong |= free & differs
    return around[wrong]


class Lanes(NamedTuple):
    """Positions of K lanes, and the number of segments taken from the queue."""

    at: Float[Array, " K"]  # standardized z up to which the lane is done
    end: Float[Array, " K"]  # the lane's segment ends here; at >= end: idle
    taken: Int[Array, ""]  # segments taken from the queue so far


class Record(NamedTuple):
    """Windows visited in a round, one row per turn; unused rows hold stop <= start."""

    start: Any  # (W, K) float: position of the lane
    lo: Any  # (W, K) float: left end of the window
    stop: Any  # (W, K) float: right end of the window
    inside: Any  # (W, K) bool: whether the region is the observed one
    status: Any  # (W, K) int: of the affine piece


def _empty(lanes: int) -> Record:
    zero = jnp.zeros((ROUND, lanes))
    return Record(
        zero,
        zero,
        zero,
        jnp.zeros((ROUND, lanes), bool),
        jnp.full((ROUND, lanes), PieceStatus.OK.value),
    )


def _refill(lanes: Lanes, queue: Array) -> Lanes:
    """Give the next segments of the queue to idle lanes."""
    idle = lanes.at >= lanes.end
    ticket = lanes.taken + jnp.cumsum(idle) - 1
    served = idle & (ticket < len(queue))
    segment = queue[jnp.clip(ticket, 0, len(queue) - 1)]
    return Lanes(
        jnp.where(served, segment[:, 0], lanes.at),
        jnp.where(served, segment[:, 1], lanes.end),
        lanes.taken + jnp.sum(served),
    )


def _round(
    membership: Membership, values: Any, lanes: Lanes, queue: Array
) -> tuple[Lanes, Record, Array]:
    """Run all lanes for up to `ROUND` windows each."""

    def piece(z: Array) -> Any:
        found = affine_piece(partial(membership, values), z)
        return found.lo, found.hi, found.value[0], found.status

    def turn(state: tuple[Lanes, Record, Array]) -> tuple[Lanes, Record, Array]:
        lanes, record, row = state
        lanes = _refill(lanes, queue)
        nudge = NUDGE * jnp.maximum(1.0, jnp.abs(lanes.at))
        z = jnp.minimum(lanes.at + nudge, (lanes.at + lanes.end) / 2)
        busy = lanes.at < lanes.end
        lo, hi, inside, status = jax.vmap(piece)(z)
        # Without a window the lane moves on and leaves a gap: past a tie, or to the end of its
        # segment if the score is not finite.
        ahead = jnp.where(hi > z, hi, z)
        ahead = jnp.where(status == PieceStatus.NON_FINITE.value, lanes.end, ahead)
        stop = jnp.clip(ahead, z, lanes.end)
        stop = jnp.where(busy, stop, lanes.at)
        new = Record(lanes.at, jnp.where(hi > z, lo, stop), stop, inside & busy, status)
        record = jax.tree.map(lambda rows, v: rows.at[row].set(v), record, new)
        return lanes._replace(at=stop), record, row + 1

    def busy(state: tuple[Lanes, Record, Array]) -> Array:
        lanes, _, row = state
        return (row < ROUND) & (jnp.any(lanes.at < lanes.end) | (lanes.taken < len(queue)))

    start = (lanes, _empty(len(lanes.at)), jnp.zeros((), jnp.int32))
    return lax.while_loop(busy, turn, start)


@lru_cache(maxsize=32)
def _compile_round(membership: Membership, description: Any) -> Any:
    del description  # functions of equal shapes share the entry
    return jax.jit(partial(_round, membership))


class ScanEngine:
    """Engine that walks the windows of one line, in float64.

    Args:
        problem: Problem of the line.

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> ScanEngine(problem)([(-4.0, 4.0)]).inside.round(6).tolist()
        [[1.0, 4.0]]
    """

    @exact_arithmetic()
    def __init__(self, problem: LineProblem):
        self._values = operands(problem, "float64")
        self._round = _compile_round(problem.membership, tree_spec(self._values))

    @exact_arithmetic()
    def __call__(self, parts: Sequence[tuple[float, float]]) -> EngineResult:
        """Search parts of the line.

        Args:
            parts: (lo, hi) pairs, standardized z, disjoint, ascending, finite.

        Returns:
            The result within these parts.
        """
        queue = jnp.asarray(_segments(parts, LANES * SEGMENTS_PER_LANE))
        idle = jnp.zeros(LANES)
        lanes = Lanes(idle, idle, jnp.zeros((), jnp.int64))
        found = EngineResult(as_intervals([]), as_intervals([]), 0, 0, True)
        while True:
            lanes, record, turns = self._round(self._values, lanes, queue)
            if not turns:
                return found
            found += _collect_round(
                Record(*(np.asarray(column)[: int(turns)] for column in record))
            )


def _collect_round(record: Record) -> EngineResult:
    """Return the result of a round."""
    met = record.stop > record.start
    gaps, begin = _gaps(record, met)
    same = met & record.inside
    inside = np.stack([begin[same], record.stop[same]], axis=1)
    finite = not np.any(record.status[met] == PieceStatus.NON_FINITE)
    return EngineResult(
        as_intervals(inside), as_intervals(gaps), int(met.sum()), record.start.size, finite
    )


def _gaps(record: Record, met: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gaps between lanes and their next windows, and the left ends of the windows."""
    rounding = ROUNDING * np.maximum(1.0, np.abs(record.start))
    skipped = met & (record.lo > record.start + rounding)
    begin = np.minimum(np.where(skipped, record.lo, record.start), record.stop)
    return np.stack([record.start[skipped], begin[skipped]], axis=1), begin


def _segments(parts: Sequence[tuple[float, float]], count: int) -> np.ndarray:
    """Cut parts into segments of nearly equal length, in order; empty segments fill up the rows.

    The number of rows is a multiple of `count`, so that few programs are compiled: one for up to
    `count` parts.
    """
    total = sum(hi - lo for lo, hi in parts)
    rows = []
    for lo, hi in parts:
        pieces = max(1, int((count - len(parts)) * (hi - lo) / total))
        edges = np.linspace(lo, hi, pieces + 1)
        rows += list(itertools.pairwise(edges))
    rows += [(0.0, 0.0)] * (-len(rows) % count)
    return np.asarray(rows, np.float64)
