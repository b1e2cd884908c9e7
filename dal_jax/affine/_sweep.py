"""Sweep of a planned program over parts of the line, layer by layer, in bounded memory.

Between neighbouring nodes every value is affine, so that the values of an inserted node are
interpolated. A value that jumps at z has two nodes there: the limit from the left and the limit
from the right.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dal_jax.affine._plan import Plan, apply, compile_segments
from dal_jax.affine._plan import plan as make_plan
from dal_jax.affine._program import Program, Slot, record

# A part of the line with more than twice this number of nodes is halved.
MIN_CHUNK = 192


class Nodes(NamedTuple):
    """N nodes z_1 <= ... <= z_N of a part of the line."""

    z: np.ndarray  # (N,) float64
    closed: np.ndarray  # (N - 1,) bool: of width zero, or between parts to be searched
    values: dict[int, np.ndarray]  # slot number -> (N, ...)


def take(nodes: Nodes, start: int, stop: int) -> Nodes:
    """Return the nodes start, ..., stop - 1 as views."""
    values = {k: v[start:stop] for k, v in nodes.values.items()}
    return Nodes(nodes.z[start:stop], nodes.closed[start : stop - 1], values)


def insert_crossings(nodes: Nodes, slot: int, level: np.ndarray) -> Nodes:
    """Insert a node wherever an entry of a value crosses its level between two nodes.

    At `z_i + t (z_{i+1} - z_i)`, `t = d_i / (d_i - d_{i+1})`, with d the value minus the level.

    Args:
        nodes: Nodes that hold the value.
        slot: Number of the value.
        level: Level that the entries are compared with, a scalar or of the value's shape.

    Returns:
        The nodes, old and new; the crossing entries are exactly at their level.

    Source: Sotoudeh and Thakur, arXiv 1908.06223, section 3.
    """
    count = len(nodes.z)
    flat = nodes.values[slot].reshape(count, -1)
    level = np.broadcast_to(level, nodes.values[slot].shape[1:]).reshape(-1)
    above = flat > level
    flips = above[1:] != above[:-1]
    flips[nodes.closed] = False
    left, unit = np.divmod(np.flatnonzero(flips), flat.shape[1])
    if not left.size:
        return nodes
    before = flat[left, unit].astype(np.float64) - level[unit]
    after = flat[left + 1, unit].astype(np.float64) - level[unit]
    t = before / (before - after)
    inside = (t > 0) & (t < 1)  # a crossing at a node needs no other
    left, unit, t = left[inside], unit[inside], t[inside]
    if not left.size:
        return nodes
    order = np.lexsort((t, left))
    left, unit, t = left[order], unit[order], t[order]
    new = np.ones(left.size, bool)
    new[1:] = (left[1:] != left[:-1]) | (t[1:] != t[:-1])
    place = np.cumsum(new) - 1  # entries that cross at the same point share a node
    grown, at = _insert(nodes, left[new], t[new])
    grown.values[slot].reshape(len(grown.z), -1)[at[place], unit] = level[unit]
    return grown


def _insert(nodes: Nodes, left: np.ndarray, t: np.ndarray) -> tuple[Nodes, np.ndarray]:
    """Insert nodes at fractions t of the intervals `left` (sorted); return all and their places."""
    at = left + 1 + np.arange(left.size)
    source = np.repeat(np.arange(len(nodes.z)), np.bincount(left, minlength=len(nodes.z)) + 1)

    def grow(array: np.ndarray) -> np.ndarray:
        out = array[source]
        if (
            array.dtype.kind not in "biu"
        ):  # others jump: they are constant between neighbouring nodes
            weight = t.astype(array.dtype).reshape(-1, *(1,) * (array.ndim - 1))
            change = _change(array, left)
            change *= weight  # in place: allocation dominates the cost
            out[at] += change
        return out

    z = grow(nodes.z)
    z[at] = np.minimum(z[at], nodes.z[left + 1])  # rounding must not leave the interval
    closed = np.append(nodes.closed, False)[source][:-1] | (z[1:] <= z[:-1])
    return Nodes(z, closed, {k: grow(v) for k, v in nodes.values.items()}), at


def _change(array: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return the change of a value from the nodes `left` to the next ones."""
    change = array[left + 1]
    with np.errstate(invalid="ignore", over="ignore"):
        change -= array[left]
        if not np.isfinite(change.sum()):  # infinite values (masks, padding) stay as they are
            change[array[left] == array[left + 1]] = 0
    return change


def split_jumps(nodes: Nodes, slot: int, level: np.ndarray, test: str) -> tuple[Nodes, np.ndarray]:
    """Double every node at which a comparison changes, after its crossings were inserted.

    Args:
        nodes: Nodes with no crossing strictly between neighbours.
        slot: Number of the value compared.
        level: Level that the value is compared with.
        test: "gt", "ge", "lt", "le", "eq" or "ne".

    Returns:
        The nodes, and the comparison at each, (N, ...) bool: constant on every open interval.
    """
    value = nodes.values[slot]
    level = np.broadcast_to(level, value.shape[1:])
    with np.errstate(invalid="ignore", over="ignore"):
        margin = np.where(value == level, 0, value - level)  # also of equal infinities
        between = TESTS[test](margin[:-1] + margin[1:])
    open_left, open_right = ~nodes.closed[:-1], ~nodes.closed[1:]
    changes = (between[1:] != between[:-1]).any(tuple(range(1, between.ndim)))
    double = np.flatnonzero(changes & open_left & open_right) + 1
    at_node = TESTS[test](margin)
    source = np.repeat(np.arange(len(nodes.z)), 1 + np.isin(np.arange(len(nodes.z)), double))
    closed = nodes.closed
    if double.size:
        closed = np.insert(closed, double, True)
        values = {k: v[source] for k, v in nodes.values.items()}
        nodes = Nodes(nodes.z[source], closed, values)
        between = np.insert(between, double, False, axis=0)
        at_node = at_node[source]
    # A node takes the value of the open interval on its right; the last node, and the left one of a
    # pair, that of the interval on its left.
    out = at_node
    left_open, right_open = np.flatnonzero(~closed) + 1, np.flatnonzero(~closed)
    out[left_open] = between[left_open - 1]
    out[right_open] = between[right_open]
    return nodes, out


TESTS: dict[str, Any] = {
    "gt": lambda d: d > 0,
    "ge": lambda d: d >= 0,
    "lt": lambda d: d < 0,
    "le": lambda d: d <= 0,
    "eq": lambda d: d == 0,
    "ne": lambda d: d != 0,
}


class Swept(NamedTuple):
    """Values of a function on a part of the line, affine between neighbouring nodes.

    Example:
        >>> made = sweep(lambda a, z: abs(a * z), np.float32(2.0), np.float32(0.0))
        >>> swept = next(made.run(made.bind(np.float32(2.0)), [(-1.0, 3.0)]))
        >>> swept.z.tolist(), swept.outputs[0].tolist()
        ([-1.0, 0.0, 3.0], [2.0, 0.0, 6.0])
    """

    z: np.ndarray  # (N,) ascending
    closed: np.ndarray  # (N - 1,) bool: intervals of width zero, or between requested parts
    outputs: list[np.ndarray]  # leaves of the output, (N, ...); limits at a doubled node


class Sweep(NamedTuple):
    """A function of (operands, z) that is prepared for sweeping.

    Example:
        >>> made = sweep(lambda a, z: abs(z - a), np.float32(0.0), np.float32(0.0))
        >>> statics = made.bind(np.float32(2.0))  # another operand needs no other preparation
        >>> [part.z.tolist() for part in made.run(statics, [(-1.0, 3.0)])]
        [[-1.0, 2.0, 3.0]]
    """

    program: Program  # the recorded operations
    plan: Plan  # their order, and the steps after which values are dropped
    compiled: dict[int, Any]  # of `compile_segments`; empty until the first `bind`

    def bind(self, operands: Any) -> dict[int, Any]:
        """Compute all values that do not move with z; the first call compiles the program.

        Args:
            operands: Operands of the shapes and dtypes that `sweep` was given.

        Returns:
            The values, for `run`.
        """
        statics = self.plan.statics(*jax.tree.leaves(operands))
        if not self.compiled:
            segments = [step.segment for step in self.plan.steps if step.segment is not None]
            self.compiled.update(compile_segments(segments, statics))
        return statics

    def run(self, statics: dict[int, Any], parts: Sequence[tuple[float, float]]) -> Iterator[Swept]:
        """Sweep disjoint parts of the line.

        Args:
            statics: Values from `bind`.
            parts: (lo, hi) pairs, ascending, disjoint, finite.

        Yields:
            Swept parts from left to right, a bounded number of nodes at a time.

        Source: Sotoudeh and Thakur, arXiv 1908.06223, section 3.
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
        """Carry nodes to the last step; push both halves onto the stack once they are too many."""
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
                if not all(_is_usable(value, nodes.closed) for value in new.values()):
                    return self._nan_result(nodes, statics)
                nodes = nodes._replace(values={**nodes.values, **new})
            # Dead values are dropped before an insertion would copy them.
            gone = {slot.number for slot in dead}
            kept = {cut.slot.number} if cut is not None else set()
            nodes = _drop(nodes, gone - kept)
            if cut is not None:
                level = statics[cut.level.number] if isinstance(cut.level, Slot) else cut.level
                nodes = insert_crossings(nodes, cut.slot.number, np.asarray(level))
                if cut.test is not None and cut.out is not None:
                    nodes, out = split_jumps(nodes, cut.slot.number, np.asarray(level), cut.test)
                    nodes.values[cut.out.number] = out
            nodes = _drop(nodes, gone)
            step += 1
        return self._result(nodes, statics)

    def _nan_result(self, nodes: Nodes, statics: dict[int, Any]) -> Swept:
        """Return NaN for every output: no crossing can be located past a non-finite value."""
        missing = {
            out.number: np.full(
                (len(nodes.z), *out.shape),
                0 if out.dtype.kind in "biu" else np.nan,
                out.dtype,
            )
            for out in self.plan.outputs
            if isinstance(out, Slot) and out.number not in statics
        }
        return self._result(nodes._replace(values=missing), statics)

    def _result(self, nodes: Nodes, statics: dict[int, Any]) -> Swept:
        outputs = []
        for out in self.plan.outputs:
            if isinstance(out, Slot) and out.number in nodes.values:
                outputs.append(nodes.values[out.number])
            else:
                value = np.asarray(statics[out.number] if isinstance(out, Slot) else out)
                outputs.append(np.broadcast_to(value, (len(nodes.z), *value.shape)))
        return Swept(nodes.z, nodes.closed, outputs)


def sweep(f: Any, operands: Any, z: Any) -> Sweep:
    """Prepare a function for sweeping.

    Args:
        f: (operands, z) -> tree of arrays; piecewise affine in the scalar z.
        operands: Pytree of arrays; only their shapes and dtypes are used.
        z: A scalar of the dtype to compute in.

    Returns:
        The sweep; nothing is compiled yet.

    Raises:
        NotPiecewiseAffineError: `f` is not piecewise affine in z.

    Example:
        >>> made = sweep(lambda a, z: a * abs(z), np.ones(5, np.float32), np.float32(0.0))
        >>> swept = next(made.run(made.bind(np.ones(5, np.float32)), [(-1.0, 3.0)]))
        >>> swept.outputs[0].shape  # three nodes
        (3, 5)
    """
    program = record(f, operands, z)
    return Sweep(program, make_plan(program), {})


def _is_usable(array: np.ndarray, closed: np.ndarray) -> bool:
    """Return whether no entry is NaN, and none changes between nodes from or to infinity.

    Infinite entries that stay are masks and padding.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        # A sum is not finite if an entry is not, and is cheaper than a test of each.
        if array.dtype.kind in "biu" or np.isfinite(array.sum()):
            return True
    finite = np.isfinite(array)
    stays = array[1:] == array[:-1]
    stays[closed] = True
    return not np.isnan(array).any() and bool(np.all(stays | (finite[1:] & finite[:-1])))


def _drop(nodes: Nodes, gone: set[int]) -> Nodes:
    return nodes._replace(values={k: v for k, v in nodes.values.items() if k not in gone})
