"""Runs a segment on any number of nodes with one program, compiled beforehand."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from dal_jax.affine._plan import Segment
from dal_jax.affine._program import Slot

# Bytes of one array of a mini-batch: what stays in a core's cache.
CACHE_BYTES = 1 << 18
MIN_BATCH, MAX_BATCH = 4, 32


def compile_segments(segments: Sequence[Segment], statics: dict[int, Any]) -> dict[int, Any]:
    """Compiles every segment for its mini-batches, side by side.

    Args:
        segments: those of a plan; equal functions are compiled once.
        statics: slot number -> array, for its shape.

    Returns:
        {identity of the segment's function: the compiled function}.
    """
    lowered = {}
    for segment in segments:
        key = id(segment.fn)
        if key not in lowered:
            static = tuple(_described(statics[s.number]) for s in segment.statics)
            size = batch_size(segment)
            shapes = [jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for s in segment.inputs]
            lowered[key] = segment.fn.lower(static, tuple(shapes))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(
            zip(lowered, pool.map(lambda job: job.compile(), lowered.values()), strict=True)
        )


def _described(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(array), array.dtype)


def batch_size(segment: Segment) -> int:
    """Nodes in a mini-batch: few enough to stay in cache, enough to use the weights.

    Args:
        segment: of a plan.

    Returns:
        A power of two.
    """
    widest = max(map(_num_bytes, (*segment.inputs, *segment.outputs)))
    room = max(CACHE_BYTES, sum(map(_num_bytes, segment.statics)) // 2)
    return min(max(1 << (room // widest).bit_length() - 1, MIN_BATCH), MAX_BATCH)


def _num_bytes(slot: Slot) -> int:
    # A value without entries counts as one: it fits any cache.
    return max(1, math.prod(slot.shape) * slot.dtype.itemsize)


def apply(
    segment: Segment,
    compiled: dict[int, Any],
    statics: dict[int, Any],
    values: dict[int, np.ndarray],
) -> dict[int, np.ndarray]:
    """Evaluates a segment at all nodes.

    Args:
        segment: of a plan.
        compiled: from `compile_segments`.
        statics: slot number -> array without a node axis.
        values: slot number -> array with a leading node axis; the segment's inputs at least.

    Returns:
        {slot number: array (N, ...)} of the segment's outputs.
    """
    static = tuple(statics[s.number] for s in segment.statics)
    arrays = [values[s.number] for s in segment.inputs]
    count = len(arrays[0])
    outs = {o.number: np.empty((count, *o.shape), o.dtype) for o in segment.outputs}
    program, size, pending = compiled[id(segment.fn)], batch_size(segment), []
    for start in range(0, count, size):
        inputs = tuple(_padded(a[start : start + size], size) for a in arrays)
        pending.append(program(static, inputs))
    for start, results in zip(range(0, count, size), pending, strict=True):
        for out, result in zip(outs.values(), results, strict=True):
            out[start : start + size] = np.asarray(result)[: count - start]
    return outs


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
