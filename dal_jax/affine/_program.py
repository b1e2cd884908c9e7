"""Functions of (operands, z) recorded as straight-line operations and cuts, with loops unrolled.

The recorder is the second algebra of the walk: `PieceAlgebra` evaluates, the recorder writes down.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax import _compat
from dal_jax.affine import _networks
from dal_jax.affine._walk import walk

# Cheap enough to be recomputed rather than kept: one pass over the array, no reduction.
ELEMENTWISE = frozenset(
    {
        *("add", "add_any", "sub", "mul", "div", "neg", "max", "min", "abs", "clamp", "select_n"),
        *("convert_element_type", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "copy"),
    }
)
FLIPPED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge", "eq": "eq", "ne": "ne"}


class Kind(IntEnum):
    """Dependence of a recorded value on z."""

    STATIC = 0  # not at all: computed once
    STEP = 1  # by jumps only
    AFFINE = 2  # continuously, and affine between neighbouring nodes


class Slot(NamedTuple):
    """A recorded value."""

    number: int
    kind: Kind
    shape: tuple[int, ...]
    dtype: Any


class Cut(NamedTuple):
    """A condition that splits the line: an entry of `slot` crosses `level`."""

    slot: Slot
    level: Any  # a STATIC slot or a literal
    test: str | None  # None: a continuous choice; else the comparison that `out` holds
    out: Slot | None


class Op(NamedTuple):
    """An operation that needs no cutting of its own; `fn` maps arrays to a list of arrays."""

    fn: Callable[..., list[Any]]
    key: tuple[Any, ...]  # equal keys: equal functions
    ins: tuple[Any, ...]  # slots and literals
    outs: tuple[Slot, ...]
    guards: tuple[Cut, ...]  # the cuts that make the operation affine between nodes
    elementwise: bool


class Program(NamedTuple):
    """A recorded function."""

    records: tuple[Op | Cut, ...]
    operands: tuple[Slot, ...]  # the leaves of the operands, in order
    z: Slot
    outputs: tuple[Any, ...]  # slots and literals
    keep_alive: tuple[Any, ...]  # objects that the keys' identities refer to


class Recorder:
    """Algebra that records a walk; equal operations on equal inputs are recorded once."""

    def __init__(self) -> None:
        self.records: list[Op | Cut] = []
        self._count = 0
        self._known: dict[Any, Any] = {}
        self._shapes: dict[Any, list[jax.ShapeDtypeStruct]] = {}
        self._eqn: Any = None
        self._line = 0
        self._elementwise = False

    def slot(self, kind: Kind, shape: tuple[int, ...], dtype: Any) -> Slot:
        """Return a new slot."""
        self._count += 1
        dtype = dtype if _compat.is_extended(dtype) else np.dtype(dtype)
        return Slot(self._count, kind, tuple(shape), dtype)

    def begin(self, eqn: Any, ins: Sequence[Any]) -> None:
        """Names the operations to come by the equation and the kinds of its inputs."""
        self._eqn = (id(eqn), tuple(_kind(value) for value in ins))
        self._line = 0
        self._elementwise = eqn.primitive.name in ELEMENTWISE

    def entry(self, z: Slot) -> Slot:
        """Return z as a value that can be cut and returned like any other."""
        self._elementwise = True
        return self.linear(lambda v: [v], [z])[0]

    def moves(self, value: Any) -> bool:
        """Return whether a value is affine between nodes."""
        return _kind(value) == Kind.AFFINE

    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape of a value."""
        return value.shape

    def _record(self, fn: Any, ins: Sequence[Any], kind: Kind, guards: Any = ()) -> list[Any]:
        self._line += 1
        key = (self._eqn, self._line)
        known = (key, tuple(_identity(value) for value in ins))
        if known not in self._known:
            if key not in self._shapes:
                shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in ins]
                self._shapes[key] = jax.eval_shape(fn, *shapes)
            outs = tuple(self.slot(kind, s.shape, s.dtype) for s in self._shapes[key])
            op = Op(fn, key, tuple(ins), outs, tuple(guards), self._elementwise)
            self.records.append(op)
            self._known[known] = op
        return list(self._known[known].outs)

    def constant(self, fn: Callable[..., list[Any]], ins: Sequence[Any]) -> list[Any]:
        """Record an operation: static if every input is static, else a step function."""
        return self._record(fn, ins, max(map(_kind, ins), default=Kind.STATIC))

    def linear(self, fn: Callable[..., list[Any]], ins: Sequence[Any]) -> list[Any]:
        """Record an operation that is affine between nodes if an input is."""
        return self._record(fn, ins, max(map(_kind, ins)))

    def at_value(self, fn: Callable[..., list[Any]], ins: Sequence[Any]) -> list[Any]:
        """Record an operation as a step function, without any cut."""
        return self._record(fn, ins, Kind.STEP)

    def _cut(self, a: Any, b: Any, test: str | None) -> Cut:
        """Cut where a crosses b; a side that does not move serves as the level."""
        if _kind(b) == Kind.STATIC:
            slot, level = a, b
        elif _kind(a) == Kind.STATIC:
            slot, level, test = b, a, test and FLIPPED[test]
        else:
            slot = self.linear(lambda x, y: [_difference(x, y)], [a, b])[0]
            level = np.zeros((), slot.dtype)
        shape = np.broadcast_shapes(slot.shape, level.shape)
        if slot.shape != shape:
            slot = self.linear(lambda x: [jnp.broadcast_to(x, shape)], [slot])[0]
        known = ("cut", slot.number, _identity(level), test)
        if known not in self._known:
            out = self.slot(Kind.STEP, shape, np.bool_) if test else None
            self._known[known] = Cut(slot, level, test, out)
            self.records.append(self._known[known])
        return self._known[known]

    def switch(self, fn: Callable[..., list[Any]], a: Any, b: Any, pick: Callable[..., Any]) -> Any:
        """Record the choice itself, which is affine between nodes once its margin is cut."""
        if not (self.moves(a) or self.moves(b)):
            return self.constant(fn, [a, b])[0]
        return self._record(fn, [a, b], Kind.AFFINE, [self._cut(a, b, None)])[0]

    def compare(self, test: str, a: Any, b: Any) -> Any:
        """Record a comparison as a step function."""
        if not (self.moves(a) or self.moves(b)):
            return self.constant(lambda x, y: [_TESTS[test](x, y)], [a, b])[0]
        return self._cut(a, b, test).out

    def largest(self, x: Any) -> Any:
        """Return the maximum, by pairwise choices."""
        return _networks.largest(self, x)

    def index_of_largest(self, x: Any) -> Any:
        """Return the index of the maximum, by pairwise choices."""
        return _networks.index_of_largest(self, x)

    def running_largest(self, x: Any) -> Any:
        """Return the cumulative maximum, by pairwise choices."""
        return _networks.running_largest(self, x)

    def sort(self, key: Any, carried: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Sort by a network of pairwise exchanges."""
        return _networks.sort(self, key, carried)

    def scan(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        """Unroll a scan: every turn has its own nodes."""
        p = eqn.params
        first, count = _compat.scan_counts(eqn)
        consts, carry, xs = ins[:first], list(ins[first : first + count]), ins[first + count :]
        jaxpr, jaxpr_consts = _compat.open_jaxpr(p["jaxpr"])
        if not p["length"]:
            return [*carry, *(np.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars[count:])]
        turns = range(p["length"])[:: -1 if p["reverse"] else 1]
        stacks: dict[int, list[Any]] = {}
        for turn in turns:
            self._eqn, self._line, self._elementwise = ("turn", id(eqn), turn), 0, False
            x = [self.linear(lambda v, turn=turn: [v[turn]], [v])[0] for v in xs]
            outs = walk(self, jaxpr, jaxpr_consts, [*consts, *carry, *x])
            carry, stacks[turn] = outs[:count], outs[count:]
        self._eqn, self._line, self._elementwise = ("stack", id(eqn), ()), 0, False
        columns = zip(*(stacks[turn] for turn in sorted(stacks)), strict=True)
        return [*carry, *(self.linear(lambda *v: [jnp.stack(v)], column)[0] for column in columns)]

    def cond(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        """Record every branch and a selection; nodes of branches that are not taken do no harm."""
        index, *operands = ins
        branches = eqn.params["branches"]
        results = []
        for branch in branches:
            jaxpr, consts = _compat.open_jaxpr(branch)
            results.append(walk(self, jaxpr, consts, operands))
        self._eqn, self._line, self._elementwise = ("select", id(eqn), ()), 0, False
        top = len(branches) - 1

        def select(i: Any, *cases: Any) -> list[Any]:
            return [lax.select_n(jnp.clip(i.astype(jnp.int32), 0, top), *cases)]

        return [self.linear(select, [index, *v])[0] for v in zip(*results, strict=True)]


_TESTS: dict[str, Callable[[Any, Any], Any]] = {
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
}


def _kind(value: Any) -> Kind:
    return value.kind if isinstance(value, Slot) else Kind.STATIC


def _difference(x: Any, y: Any) -> Any:
    """Return x - y, and 0 where both are the same infinity."""
    return jnp.where(x == y, jnp.zeros_like(x), x - y)


def _identity(value: Any) -> Any:
    if isinstance(value, Slot):
        return value.number
    if _compat.is_extended(value.dtype):
        return id(value)
    value = np.asarray(value)
    return (value.dtype.str, value.shape, value.tobytes())


def record(f: Callable[[Any, Any], Any], operands: Any, z: Any) -> Program:
    """Records `f(operands, z)`.

    Args:
        f: A JAX function that is piecewise affine in its second argument.
        operands: Pytree of arrays (or of their shapes and dtypes), which do not depend on z.
        z: floating-point scalar; its dtype is that of the computation.

    Returns:
        The program. Its outputs are the leaves of f's output.

    Raises:
        NotPiecewiseAffineError: `f` is not piecewise affine in z.
    """
    closed, _ = _compat.trace(f, operands, z)
    jaxpr, consts = _compat.open_jaxpr(closed)
    recorder = Recorder()
    invars: list[Any] = list(jaxpr.invars)
    *leaves, z_var = invars
    inputs = [recorder.slot(Kind.STATIC, v.aval.shape, v.aval.dtype) for v in leaves]
    z_slot = recorder.slot(Kind.AFFINE, (), z_var.aval.dtype)
    consts = [c if _compat.is_extended(c.dtype) else np.asarray(c) for c in consts]
    outputs = walk(recorder, jaxpr, consts, [*inputs, recorder.entry(z_slot)])
    return Program(tuple(recorder.records), tuple(inputs), z_slot, tuple(outputs), (closed,))
