"""The scan as an exact engine: parametric programming, window after window, many lanes at once."""

import itertools
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax._compat import exact_arithmetic
from dal_jax._typing import Array, Float, Int
from dal_jax.affine import PieceStatus, affine_piece
from dal_jax.inference import as_intervals
from dal_jax.search._engine import EngineResult
from dal_jax.search._problem import LineProblem, Membership, operands, tree_spec

LANES = 8
# Each lane gets this many segments of its own, so that none waits for the longest.
SEGMENTS_PER_LANE = 4
# Windows a lane visits before the host collects them: the size of the records on the device.
ROUND = 64
# A lane looks this far (relative to max(1, |z|)) to the right of where the last window ended;
# whatever the next window then leaves uncovered is a gap.
NUDGE = 1e-10
# Two windows compute their common end from different numbers; this is rounding, not a gap.
ROUNDING = 1e-11


class Lanes(NamedTuple):
    """Where each of K lanes stands, and which segments are still to be taken."""

    at: Float[Array, " K"]  # standardized z up to which the lane is done
    end: Float[Array, " K"]  # the lane's segment ends here; at >= end: idle
    taken: Int[Array, ""]  # segments taken from the queue so far


class Record(NamedTuple):
    """The windows met in a round, one row a turn; rows not reached hold stop <= start."""

    start: Any  # (W, K) float: where the lane stood
    lo: Any  # (W, K) float: where the window begins
    stop: Any  # (W, K) float: where it ends
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


def _refilled(lanes: Lanes, queue: Array) -> Lanes:
    """Idle lanes take the next segments of the queue."""
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
    """Runs all lanes for up to `ROUND` windows each."""

    def piece(z: Array) -> Any:
        found = affine_piece(partial(membership, values), z)
        return found.lo, found.hi, found.value[0], found.status

    def turn(state: tuple[Lanes, Record, Array]) -> tuple[Lanes, Record, Array]:
        lanes, record, row = state
        lanes = _refilled(lanes, queue)
        nudge = NUDGE * jnp.maximum(1.0, jnp.abs(lanes.at))
        z = jnp.minimum(lanes.at + nudge, (lanes.at + lanes.end) / 2)
        busy = lanes.at < lanes.end
        lo, hi, inside, status = jax.vmap(piece)(z)
        # Where no window can be told the lane goes on, leaving a gap: past a tie, or to its end
        # where the score is not finite.
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
def _compiled(membership: Membership, description: Any) -> Any:
    del description  # functions of equal shapes share the entry
    return jax.jit(partial(_round, membership))


class ScanEngine:
    """Walks the windows of one line, in float64.

    Args:
        problem: the line.

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
        self._round = _compiled(problem.membership, tree_spec(self._values))

    @exact_arithmetic()
    def __call__(self, parts: Sequence[tuple[float, float]]) -> EngineResult:
        """Searches parts of the line.

        Args:
            parts: (lo, hi) pairs, standardized z, disjoint, ascending, finite.

        Returns:
            What was found within them.
        """
        queue = jnp.asarray(_segments(parts, LANES * SEGMENTS_PER_LANE))
        idle = jnp.zeros(LANES)
        lanes = Lanes(idle, idle, jnp.zeros((), jnp.int64))
        found = EngineResult(as_intervals([]), as_intervals([]), 0, 0, True)
        while True:
            lanes, record, turns = self._round(self._values, lanes, queue)
            if not turns:
                return found
            found += _collected(Record(*(np.asarray(column)[: int(turns)] for column in record)))


def _collected(record: Record) -> EngineResult:
    """What a round has found."""
    met = record.stop > record.start
    gaps, begin = _gaps(record, met)
    same = met & record.inside
    inside = np.stack([begin[same], record.stop[same]], axis=1)
    finite = not np.any(record.status[met] == PieceStatus.NON_FINITE)
    return EngineResult(
        as_intervals(inside), as_intervals(gaps), int(met.sum()), record.start.size, finite
    )


def _gaps(record: Record, met: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What lies between where a lane stood and where its next window began; where windows begin."""
    rounding = ROUNDING * np.maximum(1.0, np.abs(record.start))
    skipped = met & (record.lo > record.start + rounding)
    begin = np.minimum(np.where(skipped, record.lo, record.start), record.stop)
    return np.stack([record.start[skipped], begin[skipped]], axis=1), begin


def _segments(parts: Sequence[tuple[float, float]], count: int) -> np.ndarray:
    """Cuts parts into segments of nearly equal length, in order; empty ones fill up the rows.

    The rows are a multiple of `count`, so that few programs are compiled: one for up to `count`
    parts.
    """
    total = sum(hi - lo for lo, hi in parts)
    rows = []
    for lo, hi in parts:
        pieces = max(1, int((count - len(parts)) * (hi - lo) / total))
        edges = np.linspace(lo, hi, pieces + 1)
        rows += list(itertools.pairwise(edges))
    rows += [(0.0, 0.0)] * (-len(rows) % count)
    return np.asarray(rows, np.float64)
