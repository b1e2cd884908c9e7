"""Arrangement of a recorded program for a sweep: one compiled segment before each cut.

A segment computes, for a batch of nodes, everything that its cut needs from the values kept so far.
A value that several segments need is kept, unless one elementwise pass over a kept value yields it
again.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from dal_jax.affine._program import Cut, Kind, Op, Program, Slot

# Bytes of one array of a mini-batch: what stays in a core's cache.
CACHE_BYTES = 1 << 18
MIN_BATCH, MAX_BATCH = 4, 32


class Segment(NamedTuple):
    """A compiled piece of the program; `fn(statics, inputs)` maps batches of nodes."""

    fn: Callable[..., tuple[Any, ...]]
    statics: tuple[Slot, ...]  # without a node axis
    inputs: tuple[Slot, ...]  # with a leading node axis
    outputs: tuple[Slot, ...]  # with a leading node axis


class Step(NamedTuple):
    """One step of a sweep: run the segment, make the cut, then drop the dead values."""

    segment: Segment | None
    cut: Cut | None
    dead: tuple[Slot, ...]


class Plan(NamedTuple):
    """A program ready to be swept."""

    statics: Callable[..., dict[int, Any]]  # operands' leaves -> {slot number: array}
    steps: tuple[Step, ...]
    z: Slot
    outputs: tuple[Any, ...]


def plan(program: Program) -> Plan:
    """Group the operations of a program into segments.

    Args:
        program: Program from `record`.

    Returns:
        The plan; its functions are compiled on first use.
    """
    maker = {out.number: op for op in program.records if isinstance(op, Op) for out in op.outs}
    maker |= {c.out.number: c for c in program.records if isinstance(c, Cut) and c.out is not None}
    cuts = _needed_cuts(program, maker)
    chosen = [out for out in program.outputs if _moving(out)]
    kept = {program.z.number}
    kept |= {c.slot.number for c in cuts} | {c.out.number for c in cuts if c.out is not None}
    kept |= {out.number for out in chosen}
    made: dict[int, int] = {}  # identity of an op -> the first step that performs it
    groups = []
    for step, goals in enumerate([*[(c.slot,) for c in cuts], chosen]):
        groups.append(_group(goals, step, maker, made, kept))
    segments = _segments(groups, kept, program)
    last = _last_use(segments, cuts, chosen)
    steps = []
    for k, segment in enumerate(segments):
        dead = tuple(slot for slot, use in last.items() if use == k)
        steps.append(Step(segment, cuts[k] if k < len(cuts) else None, dead))
    levels = [c.level for c in cuts if isinstance(c.level, Slot)]
    static = [s for segment in segments if segment for s in segment.statics]
    outputs = [out for out in program.outputs if isinstance(out, Slot) and not _moving(out)]
    wanted = {s.number: s for s in (*levels, *static, *outputs)}
    return Plan(_static_part(program, maker, wanted), tuple(steps), program.z, program.outputs)


def _moving(value: Any) -> bool:
    return isinstance(value, Slot) and value.kind != Kind.STATIC


def _needed_cuts(program: Program, maker: dict[int, Any]) -> list[Cut]:
    """The cuts that the outputs depend on, in order."""
    seen: set[int] = set()
    stack = [out for out in program.outputs if isinstance(out, Slot)]
    while stack:
        slot = stack.pop()
        if slot.number in seen:
            continue
        seen.add(slot.number)
        source = maker.get(slot.number)
        if isinstance(source, Op):
            stack += [v for v in source.ins if isinstance(v, Slot)]
            for guard in source.guards:
                seen.add(id(guard))
                stack.append(guard.slot)
        elif isinstance(source, Cut):
            seen.add(id(source))
            stack.append(source.slot)
    return [c for c in program.records if isinstance(c, Cut) and id(c) in seen]


def _group(
    goals: Sequence[Slot],
    step: int,
    maker: dict[int, Any],
    made: dict[int, int],
    kept: set[int],
) -> list[Op]:
    """Return the operations of a step, in order; mark the values that earlier steps must keep."""
    ops: dict[int, Op] = {}

    # Depth first, inputs before what they make; a long loop would exhaust Python's own stack.
    stack = [(goal, False) for goal in reversed(goals)]
    while stack:
        slot, inputs_done = stack.pop()
        op = maker.get(slot.number)
        if not isinstance(op, Op) or id(op) in ops:
            continue
        if inputs_done:
            ops[id(op)] = op
            continue
        earlier = made.get(id(op), step) < step
        if earlier and (slot.number in kept or not _is_cheap(op, maker, kept)):
            kept.add(slot.number)
            continue
        made.setdefault(id(op), step)
        stack.append((slot, True))
        stack += [(value, False) for value in reversed(op.ins) if _moving(value)]
    return list(ops.values())


def _is_cheap(op: Op, maker: dict[int, Any], kept: set[int]) -> bool:
    """Return whether a value is a chain of elementwise operations on a single kept value."""
    bases: set[int] = set()
    seen: set[int] = set()
    stack = [*op.ins]
    while stack and op.elementwise and len(bases) <= 1:
        value = stack.pop()
        if not _moving(value) or value.number in seen:
            continue
        seen.add(value.number)
        source = maker.get(value.number)
        if value.number in kept or not isinstance(source, Op):
            bases.add(value.number)
        elif source.elementwise:
            stack += source.ins
        else:
            return False
    return op.elementwise and len(bases) <= 1


def _segments(groups: list[list[Op]], kept: set[int], program: Program) -> list[Segment | None]:
    compiled: dict[Any, Callable[..., tuple[Any, ...]]] = {}
    have = {program.z.number}
    segments: list[Segment | None] = []
    for ops in groups:
        made = {out.number for op in ops for out in op.outs}
        values = {
            v.number: v
            for op in ops
            for v in op.ins
            if isinstance(v, Slot) and v.number not in made
        }
        statics = tuple(v for v in values.values() if not _moving(v))
        inputs = tuple(v for v in values.values() if _moving(v))
        outputs = tuple(o for op in ops for o in op.outs if o.number in kept - have)
        have |= {o.number for o in outputs}
        if not outputs:
            segments.append(None)
            continue
        signature = _signature(ops, statics, inputs, outputs)
        if signature not in compiled:
            compiled[signature] = _batch_function(ops, statics, inputs, outputs)
        segments.append(Segment(compiled[signature], statics, inputs, outputs))
    return segments


def _signature(ops: Sequence[Op], *slots: Sequence[Slot]) -> Any:
    """Return a key that is equal for groups with equal operations, such as the turns of a loop."""
    local = {s.number: (k, j) for k, group in enumerate(slots[:2]) for j, s in enumerate(group)}
    local |= {o.number: (-1 - k, j) for k, op in enumerate(ops) for j, o in enumerate(op.outs)}
    wiring = tuple(
        (op.key, tuple(local[v.number] if isinstance(v, Slot) else v.tobytes() for v in op.ins))
        for op in ops
    )
    shapes = tuple((s.shape, s.dtype.str) for group in slots for s in group)
    return wiring, shapes, tuple(local[s.number] for s in slots[2])


def _batch_function(
    ops: Sequence[Op], statics: Sequence[Slot], inputs: Sequence[Slot], outputs: Sequence[Slot]
) -> Callable[..., tuple[Any, ...]]:
    def one_node(static: Sequence[Any], moving: Sequence[Any]) -> tuple[Any, ...]:
        env = dict(zip([s.number for s in (*statics, *inputs)], (*static, *moving), strict=True))
        _evaluate(ops, env)
        return tuple(env[o.number] for o in outputs)

    return jax.jit(jax.vmap(one_node, in_axes=(None, 0)))


def _evaluate(ops: Sequence[Op], env: dict[int, Any]) -> None:
    for op in ops:
        args = [env[v.number] if isinstance(v, Slot) else v for v in op.ins]
        env.update(zip([o.number for o in op.outs], op.fn(*args), strict=True))


def _last_use(
    segments: Sequence[Segment | None], cuts: Sequence[Cut], chosen: Sequence[Slot]
) -> dict[Slot, int]:
    """Return the last step in which each kept value is read; outputs are never dropped."""
    last: dict[Slot, int] = {}
    for k, segment in enumerate(segments):
        for slot in (*segment.inputs, *segment.outputs) if segment else ():
            last[slot] = k
        if k < len(cuts):
            last[cuts[k].slot] = k
            if (out := cuts[k].out) is not None:
                last[out] = k
    for slot in chosen:
        last.pop(slot, None)
    return last


def _static_part(
    program: Program, maker: dict[int, Any], wanted: dict[int, Slot]
) -> Callable[..., dict[int, Any]]:
    """Return one compiled function for all values that do not move with z."""
    needed: set[int] = set()
    stack = list(wanted.values())
    while stack:
        op = maker.get(stack.pop().number)
        if isinstance(op, Op) and id(op) not in needed:
            needed.add(id(op))
            stack += [v for v in op.ins if isinstance(v, Slot)]
    ops = [op for op in program.records if isinstance(op, Op) and id(op) in needed]

    def statics(*leaves: Any) -> dict[int, Any]:
        env = dict(zip([s.number for s in program.operands], leaves, strict=True))
        _evaluate(ops, env)
        return {number: env[number] for number in wanted}

    return jax.jit(statics)


def compile_segments(segments: Sequence[Segment], statics: dict[int, Any]) -> dict[int, Any]:
    """Compile every segment for its mini-batches, side by side.

    Args:
        segments: Segments of a plan; equal functions are compiled once.
        statics: Slot number -> array, for its shape.

    Returns:
        {identity of the segment's function: the compiled function}.
    """
    lowered = {}
    for segment in segments:
        key = id(segment.fn)
        if key not in lowered:
            arrays = [statics[s.number] for s in segment.statics]
            static = tuple(jax.ShapeDtypeStruct(np.shape(a), a.dtype) for a in arrays)
            size = batch_size(segment)
            shapes = [jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for s in segment.inputs]
            lowered[key] = segment.fn.lower(static, tuple(shapes))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(
            zip(lowered, pool.map(lambda job: job.compile(), lowered.values()), strict=True)
        )


def batch_size(segment: Segment) -> int:
    """Return the number of nodes in a mini-batch, which stays in cache and reuses the weights.

    Args:
        segment: Segment of a plan.

    Returns:
        A power of two.
    """
    widest = max(map(_num_bytes, (*segment.inputs, *segment.outputs)))
    room = max(CACHE_BYTES, sum(map(_num_bytes, segment.statics)) // 2)
    return min(max(1 << (room // widest).bit_length() - 1, MIN_BATCH), MAX_BATCH)


def _num_bytes(slot: Slot) -> int:
    # An empty value counts as one byte: the sizes are divided by it.
    return max(1, math.prod(slot.shape) * slot.dtype.itemsize)


def apply(
    segment: Segment,
    compiled: dict[int, Any],
    statics: dict[int, Any],
    values: dict[int, np.ndarray],
) -> dict[int, np.ndarray]:
    """Evaluate a segment at all nodes.

    Args:
        segment: Segment of a plan.
        compiled: Functions from `compile_segments`.
        statics: Slot number -> array without a node axis.
        values: Slot number -> array with a leading node axis; the segment's inputs at least.

    Returns:
        {slot number: array (N, ...)} of the segment's outputs.
    """
    static = tuple(statics[s.number] for s in segment.statics)
    arrays = [values[s.number] for s in segment.inputs]
    count = len(arrays[0])
    outs = {o.number: np.empty((count, *o.shape), o.dtype) for o in segment.outputs}
    program, size, pending = compiled[id(segment.fn)], batch_size(segment), []
    for start in range(0, count, size):
        inputs = tuple(_pad(a[start : start + size], size) for a in arrays)
        pending.append(program(static, inputs))
    for start, results in zip(range(0, count, size), pending, strict=True):
        for out, result in zip(outs.values(), results, strict=True):
            out[start : start + size] = np.asarray(result)[: count - start]
    return outs


def _pad(rows: np.ndarray, size: int) -> np.ndarray:
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
