"""The walk over the windows of many lines: one compiled loop on each device.

A lane walks the windows of one segment of one line. The lanes of a device take the segments of all
lines from one queue until it is empty; then each has records of the runs of windows on which the
region is the observed one. A lane whose records are full stops where it is.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dal_jax._arrays import memory_of
from dal_jax._compat import split_known
from dal_jax._typing import Array, Bool, Float, Int, PyTree
from dal_jax.affine import PieceStatus, affine_piece
from dal_jax.search._evaluator import TRIAL_LANES, lanes_within
from dal_jax.search._selection import Membership, tree_from_spec

# Pixels and lanes of a CPU: a turn of more leaves its cache.
CPU_PIXELS, CPU_LANES = 512, 8
# Each lane gets this many segments of its own, so that none waits for the longest.
SEGMENTS_PER_LANE = 4
# Smallest number of segments that the queue of a device holds.
QUEUE = 256
# A lane evaluates this far (relative to max(1, |z|)) to the right of the last window's end; the
# part that the next window leaves uncovered is a gap.
NUDGE = 1e-10
# Two windows compute their common end from different numbers; this is rounding, not a gap.
ROUNDING = 1e-11
# Kinds of records: runs on which the region is the observed one, gaps, and windows of points.
INSIDE, GAP, POINT = 1, 2, 3


class Lines(NamedTuple):
    """Operands of L lines, or of the line of each lane."""

    draws: PyTree  # (L, ...) where every line has its own
    base: Any  # (L, H, W, C)
    direction: Any  # (L, H, W, C)
    selected: Any  # masks (L, H, W)
    threshold: Any  # (L,)


class _Lanes(NamedTuple):
    """Positions of K lanes."""

    line: Int[Array, " K"]
    at: Float[Array, " K"]  # standardized z up to which the lane is done
    end: Float[Array, " K"]  # the lane's segment ends here; a point begins here, too
    busy: Bool[Array, " K"]
    joins: Bool[Array, " K"]  # the lane's last record is a run that ends where the lane is


class _Records(NamedTuple):
    """Records of K lanes."""

    kind: Int[Array, "K R"]
    line: Int[Array, "K R"]
    lo: Float[Array, "K R"]
    hi: Float[Array, "K R"]
    count: Int[Array, " K"]


class Walk(NamedTuple):
    """State of a device."""

    lanes: _Lanes
    records: _Records
    taken: Int[Array, ""]  # segments taken from the queue
    turns: Int[Array, ""]
    windows: Int[Array, " L"]  # visited, by line
    finite: Bool[Array, " L"]  # by line


class Queue(NamedTuple):
    """Segments that wait for a lane."""

    line: Any  # (Q,)
    lo: Any  # (Q,)
    hi: Any  # (Q,)
    used: Any  # (1,) number of segments; the other rows are empty


def _begin(lanes: int, records: int, lines: int) -> Walk:
    zero, none, no = jnp.zeros(lanes), jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes, bool)
    place = jnp.zeros((lanes, records), jnp.int32)
    number, rows = jnp.zeros((lanes, records)), jnp.zeros((), jnp.int32)
    return Walk(
        _Lanes(none, zero, zero, no, no),
        _Records(place, place, number, number, none),
        rows,
        rows,
        jnp.zeros(lines, jnp.int32),
        jnp.ones(lines, bool),
    )


def _full(records: _Records) -> Array:
    return records.count > records.kind.shape[1] - 2


def _refill(walk: Walk, queue: Queue) -> Walk:
    """Give the next segments of the queue to idle lanes."""
    lanes = walk.lanes
    idle = ~lanes.busy & ~_full(walk.records)
    ticket = walk.taken + jnp.cumsum(idle, dtype=walk.taken.dtype) - 1
    served = idle & (ticket < queue.used[0])
    row = jnp.clip(ticket, 0, len(queue.lo) - 1)
    taken = _Lanes(queue.line[row], queue.lo[row], queue.hi[row], served, jnp.zeros_like(served))
    lanes = jax.tree.map(partial(jnp.where, served), taken, lanes)
    number = walk.taken + jnp.sum(served, dtype=walk.taken.dtype)
    return walk._replace(lanes=lanes, taken=number)


def _lane(which: Array) -> Array:
    return jnp.arange(len(which), dtype=jnp.int32)


def _append(records: _Records, which: Array, kind: int, line: Array, lo: Any, hi: Any) -> _Records:
    """Add a record to some of the lanes."""
    at = _lane(which), jnp.where(which, records.count, records.kind.shape[1])
    new = (jnp.full_like(line, kind), line, lo, hi)
    columns = [old.at[at].set(v, mode="drop") for old, v in zip(records[:4], new, strict=True)]
    kinds, lines, los, his = columns
    count = records.count + which.astype(records.count.dtype)
    return _Records(kinds, lines, los, his, count)


def _extend(records: _Records, which: Array, hi: Array) -> _Records:
    """Move the end of the last record of some of the lanes."""
    at = _lane(which), jnp.where(which, records.count - 1, records.kind.shape[1])
    return records._replace(hi=records.hi.at[at].set(hi, mode="drop"))


def _turn(piece: Any, lines: Lines, queue: Queue, walk: Walk) -> Walk:
    """Let every lane visit one window."""
    walk = _refill(walk, queue)
    lanes, records = walk.lanes, walk.records
    line, at, end = lanes[:3]
    active = lanes.busy & ~_full(records)
    point = at == end
    nudge = NUDGE * jnp.maximum(1.0, jnp.abs(at))
    z = jnp.where(point, at, jnp.minimum(at + nudge, (at + end) / 2))
    lo, hi, same, status = piece(jax.tree.map(lambda v: v[line], lines), z)
    broken = status == PieceStatus.NON_FINITE.value
    # Without a window the lane moves on and leaves a gap: past a tie, or to the end of its segment
    # if the score is not finite.
    ahead = jnp.where(broken, end, jnp.where(hi > z, hi, z))
    stop = jnp.clip(ahead, z, end)
    stop = jnp.where(stop > at, stop, end)
    met = active & ~point
    left = jnp.where(hi > z, lo, stop)
    skipped = met & (left > at + ROUNDING * jnp.maximum(1.0, jnp.abs(at)))
    begin = jnp.minimum(jnp.where(skipped, left, at), stop)
    inside = met & same & (begin < stop)
    joins = inside & lanes.joins & ~skipped
    records = _append(records, active & point, POINT, line, lo, hi)
    records = _append(records, skipped, GAP, line, at, begin)
    records = _append(records, inside & ~joins, INSIDE, line, begin, stop)
    records = _extend(records, joins, stop)
    own = jnp.where(met, line, len(walk.windows))
    return walk._replace(
        lanes=_Lanes(
            line,
            jnp.where(met, stop, at),
            end,
            jnp.where(active, ~point & (stop < end), lanes.busy),
            jnp.where(met, inside, lanes.joins),
        ),
        records=records,
        turns=walk.turns + 1,
        windows=walk.windows.at[own].add(1, mode="drop"),
        finite=walk.finite.at[jnp.where(broken, own, len(walk.windows))].set(False, mode="drop"),
    )


def _goes_on(turns: int, queue: Queue, walk: Walk) -> Array:
    free = ~_full(walk.records)
    waiting = (walk.taken < queue.used[0]) & jnp.any(free)
    return (walk.turns < turns) & (waiting | jnp.any(walk.lanes.busy & free))


class Limits(NamedTuple):
    """Capacities of a device."""

    lanes: int
    queue: int
    records: int
    turns: int
    lines: int


class Program(NamedTuple):
    prepare: Any  # parameters and shared draws -> values that need no line
    walk: Any  # (prepared, lines, queue) -> `Walk` of each device
    limits: Limits


def traced_walk(
    membership: Membership,
    fixed: Any,
    line: Any,
    devices: tuple[Any, ...],
    limits: Limits,
) -> tuple[Any, Any]:
    """Trace the walk over the windows of many lines.

    Args:
        membership: Function that decides whether the observed region is selected.
        fixed: Parameters and shared draws, as `tree_spec` describes them.
        line: Operands of one line as a tuple, in the same way.
        devices: Devices, which need not be there.
        limits: Capacities of each device.

    Returns:
        The function that prepares the parameters, and the traced program, not yet compiled.
    """
    own_draws = bool(jax.tree.leaves(tree_from_spec(line)[0]))

    def pieces(given: Any, moving: Any) -> Any:
        params, shared = given

        def one(own: Lines, z: Array) -> Any:
            draws = own.draws if own_draws else shared
            found = affine_piece(partial(membership, (params, draws, *own[1:])), z)
            return found.lo, found.hi, found.value[0], found.status

        return jax.vmap(one)(*moving)

    def stacked(count: int) -> Any:
        one = Lines(*tree_from_spec(line))
        return jax.tree.map(lambda v: jax.ShapeDtypeStruct((count, *v.shape), v.dtype), one)

    z = jax.ShapeDtypeStruct((limits.lanes,), np.dtype("float64"))
    with jax.default_device(devices[0]):  # traced for these, not for the default platform
        prepare, apply = split_known(pieces, tree_from_spec(fixed), (stacked(limits.lanes), z))

    def walk(known: Any, lines: Lines, queue: Queue) -> Walk:
        begun = _begin(limits.lanes, limits.records, limits.lines)
        turn = partial(_turn, lambda own, z: apply(known, (own, z)), lines, queue)
        done = lax.while_loop(partial(_goes_on, limits.turns, queue), turn, begun)
        return jax.tree.map(lambda v: v[None], done)

    mesh = Mesh(np.array(devices), ("lanes",))
    everywhere, apart = NamedSharding(mesh, P()), NamedSharding(mesh, P("lanes"))
    specs = P(), P(), P("lanes")
    mapped = jax.shard_map(walk, mesh=mesh, in_specs=specs, out_specs=P("lanes"), check_vma=False)
    program = jax.jit(mapped, in_shardings=(everywhere, everywhere, apart), out_shardings=apart)

    def rows(count: int, dtype: str) -> Any:
        return jax.ShapeDtypeStruct((len(devices) * count,), np.dtype(dtype))

    length = rows(limits.queue, "float64")
    queue = Queue(rows(limits.queue, "int32"), length, length, rows(1, "int32"))
    prepare = jax.jit(prepare, out_shardings=everywhere)
    known = jax.eval_shape(prepare, tree_from_spec(fixed))
    return prepare, program.trace(known, stacked(limits.lines), queue)


def queue_length(lanes: int) -> int:
    """Return the number of segments that the queue of a device with so many lanes holds."""
    return max(QUEUE, SEGMENTS_PER_LANE * lanes)


@lru_cache(maxsize=32)
def program_for(
    membership: Membership,
    fixed: Any,
    line: Any,
    devices: tuple[Any, ...],
    lines: int,
    records: int,
    turns: int,
) -> Program:
    def compiled(lanes: int) -> tuple[Program, int]:
        limits = Limits(lanes, queue_length(lanes), records, turns, lines)
        prepare, traced = traced_walk(membership, fixed, line, devices, limits)
        program = traced.lower().compile()
        analysis = program.memory_analysis()
        return Program(prepare, program, limits), getattr(analysis, "temp_size_in_bytes", 0)

    pixels = int(np.prod(tree_from_spec(line)[1].shape[:2]))
    if devices[0].platform == "cpu":
        return compiled(int(np.clip(CPU_PIXELS // pixels, 1, CPU_LANES)))[0]
    memory = memory_of(devices[0])
    needed = compiled(TRIAL_LANES)[1] / TRIAL_LANES
    return compiled(lanes_within(memory, needed, pixels))[0]
