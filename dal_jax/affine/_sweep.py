"""Sweeps a planned program over parts of the line, layer by layer, in bounded memory."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dal_jax.affine._batches import apply, compile_segments
from dal_jax.affine._nodes import Nodes, insert_crossings, split_jumps, take
from dal_jax.affine._plan import Plan
from dal_jax.affine._plan import plan as make_plan
from dal_jax.affine._program import Program, Slot, record

# A part of the line with more nodes than twice this is halved and done one half after the other.
MIN_CHUNK = 192


class Swept(NamedTuple):
    """What a function does on a part of the line: affine between neighbouring nodes.

    Example:
        >>> made = sweep(lambda a, z: abs(a * z), np.float32(2.0), np.float32(0.0))
        >>> swept = next(made.run(made.bind(np.float32(2.0)), [(-1.0, 3.0)]))
        >>> swept.z.tolist(), swept.outputs[0].tolist()
        ([-1.0, 0.0, 3.0], [2.0, 0.0, 6.0])
    """

    z: np.ndarray  # (N,) ascending
    closed: np.ndarray  # (N - 1,) bool: intervals of width zero or not asked for
    outputs: list[np.ndarray]  # leaves of the output, (N, ...); limits at a doubled node


class Sweep(NamedTuple):
    """A function of (operands, z) made ready for sweeping.

    Example:
        >>> made = sweep(lambda a, z: abs(z - a), np.float32(0.0), np.float32(0.0))
        >>> statics = made.bind(np.float32(2.0))  # another operand needs no other preparation
        >>> [part.z.tolist() for part in made.run(statics, [(-1.0, 3.0)])]
        [[-1.0, 2.0, 3.0]]
    """

    program: Program  # what the function does, operation by operation
    plan: Plan  # in which order, and what may be forgotten when
    compiled: dict[int, Any]  # of `compile_segments`; empty until the first `bind`

    def bind(self, operands: Any) -> dict[int, Any]:
        """Computes all that does not move with z; the first time, compiles everything.

        Args:
            operands: of the shapes and dtypes that `sweep` was given.

        Returns:
            The values, for `run`.
        """
        statics = self.plan.statics(*jax.tree.leaves(operands))
        if not self.compiled:
            segments = [step.segment for step in self.plan.steps if step.segment is not None]
            self.compiled.update(compile_segments(segments, statics))
        return statics

    def run(self, statics: dict[int, Any], parts: Sequence[tuple[float, float]]) -> Iterator[Swept]:
        """Sweeps disjoint parts of the line.

        Args:
            statics: from `bind`.
            parts: (lo, hi) pairs, ascending, disjoint, finite.

        Yields:
            What was found, from left to right, a bounded number of nodes at a time.

        Source: Sotoudeh and Thakur, arXiv 1908.06223, section 3; in parts: this project.
        """
        if not len(parts):
            return
        z = np.asarray(parts, np.float64).reshape(-1)
        closed = np.zeros(z.size - 1, bool)
        closed[1::2] = True
        stack = [(0, Nodes(z, closed, {}))]
        while stack:
            finished = self._advance(*stack.pop(), statics, stack)
            if finished is not None:
                yield finished

    def _advance(
        self, step: int, nodes: Nodes, statics: dict[int, Any], stack: list[tuple[int, Nodes]]
    ) -> Swept | None:
        """Takes nodes to the end, or until they are too many: then pushes both halves."""
        while step < len(self.plan.steps):
            if len(nodes.z) > 2 * MIN_CHUNK:
                middle = len(nodes.z) // 2
                stack.append((step, take(nodes, middle, len(nodes.z))))
                stack.append((step, take(nodes, 0, middle + 1)))
                return None
            segment, cut, dead = self.plan.steps[step]
            if segment is not None:
                z = {self.plan.z.number: nodes.z.astype(self.plan.z.dtype)}
                new = apply(segment, self.compiled, statics, {**nodes.values, **z})
                if not all(_is_known(value, nodes.closed) for value in new.values()):
                    return self._unknown(nodes, statics)
                nodes = nodes._replace(values={**nodes.values, **new})
            # What is not needed any more is forgotten before it would have to grow.
            gone = {slot.number for slot in dead}
            kept = {cut.slot.number} if cut is not None else set()
            nodes = _without(nodes, gone - kept)
            if cut is not None:
                level = statics[cut.level.number] if isinstance(cut.level, Slot) else cut.level
                nodes = insert_crossings(nodes, cut.slot.number, np.asarray(level))
                if cut.test is not None and cut.out is not None:
                    nodes, out = split_jumps(nodes, cut.slot.number, np.asarray(level), cut.test)
                    nodes.values[cut.out.number] = out
            nodes = _without(nodes, gone)
            step += 1
        return self._swept(nodes, statics)

    def _unknown(self, nodes: Nodes, statics: dict[int, Any]) -> Swept:
        """NaN for every output: where a value on the way is not known, no crossing can be told."""
        missing = {
            out.number: np.full(
                (len(nodes.z), *out.shape),
                0 if out.dtype.kind in "biu" else np.nan,
                out.dtype,
            )
            for out in self.plan.outputs
            if isinstance(out, Slot) and out.number not in statics
        }
        return self._swept(nodes._replace(values=missing), statics)

    def _swept(self, nodes: Nodes, statics: dict[int, Any]) -> Swept:
        outputs = []
        for out in self.plan.outputs:
            if isinstance(out, Slot) and out.number in nodes.values:
                outputs.append(nodes.values[out.number])
            else:
                value = np.asarray(statics[out.number] if isinstance(out, Slot) else out)
                outputs.append(np.broadcast_to(value, (len(nodes.z), *value.shape)))
        return Swept(nodes.z, nodes.closed, outputs)


def sweep(f: Any, operands: Any, z: Any) -> Sweep:
    """Prepares a function for sweeping.

    Args:
        f: (operands, z) -> tree of arrays; piecewise affine in the scalar z.
        operands: pytree of arrays; only their shapes and dtypes are used.
        z: a scalar of the dtype to compute in.

    Returns:
        The sweep; nothing is compiled yet.

    Raises:
        NotPiecewiseAffineError: f is not piecewise affine in z.

    Example:
        >>> made = sweep(lambda a, z: a * abs(z), np.ones(5, np.float32), np.float32(0.0))
        >>> swept = next(made.run(made.bind(np.ones(5, np.float32)), [(-1.0, 3.0)]))
        >>> swept.outputs[0].shape  # three nodes
        (3, 5)
    """
    program = record(f, operands, z)
    return Sweep(program, make_plan(program), {})


def _is_known(array: np.ndarray, closed: np.ndarray) -> bool:
    """Whether no entry is NaN, and none changes between nodes from or to infinity.

    Infinite entries that stay are masks and padding.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        # A sum is not finite where an entry is not, and is cheaper than a test of each.
        if array.dtype.kind in "biu" or np.isfinite(array.sum()):
            return True
    finite = np.isfinite(array)
    stays = array[1:] == array[:-1]
    stays[closed] = True
    return not np.isnan(array).any() and bool(np.all(stays | (finite[1:] & finite[:-1])))


def _without(nodes: Nodes, gone: set[int]) -> Nodes:
    return nodes._replace(values={k: v for k, v in nodes.values.items() if k not in gone})
