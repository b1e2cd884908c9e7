"""`affine_piece`: the value, slope and exact window of a piecewise-affine JAX function."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dal_jax import _compat
from dal_jax._typing import Array, Float, Int, PyTree
from dal_jax.affine._walk import walk


class PieceStatus(IntEnum):
    """Status of an affine piece.

    Example:
        >>> piece = affine_piece(lambda z: z * jnp.inf, 1.0)
        >>> PieceStatus(int(piece.status)).name
        'NON_FINITE'
    """

    OK = 0
    TIE = 1  # the window is narrower than rounding: no point lies strictly inside it
    NON_FINITE = 2  # a value or slope is infinite or NaN; lo and hi are NaN


class AffinePiece(NamedTuple):
    """A function around z: `f(t) = value + slope * (t - z)` for `lo <= t <= hi`.

    Example:
        >>> piece = affine_piece(jnp.abs, -2.0)
        >>> float(piece.slope), float(piece.lo), float(piece.hi)
        (-1.0, -inf, 0.0)
    """

    value: PyTree  # f(z), or its limit from the right
    slope: PyTree  # same shapes as value; zero for outputs that only jump
    lo: Float[Array, ""]  # units of z; -inf if nothing ever changes to the left
    hi: Float[Array, ""]  # units of z
    status: Int[Array, ""]  # a PieceStatus


class Moving(NamedTuple):
    """A value that varies continuously with z, and its derivative."""

    value: Array
    slope: Array


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Moving) else x


def _slope(x: Any) -> Any:
    return x.slope if isinstance(x, Moving) else jnp.zeros_like(x)


class PieceAlgebra:
    """Algebra of pairs (value, slope) and of one window, whose ends are offsets from z."""

    def __init__(self, lo: Any, hi: Any):
        self.lo, self.hi = lo, hi

    def moves(self, value: Any) -> bool:
        """Return whether a value carries a slope."""
        return isinstance(value, Moving)

    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape of a value."""
        return tuple(jnp.shape(_value(value)))

    def begin(self, eqn: Any, ins: Sequence[Any]) -> None:
        """Do nothing: no preparation is needed."""

    def constant(self, fn: Callable[..., list[Any]], ins: Sequence[Any]) -> list[Any]:
        """Evaluate the operation."""
        return fn(*ins)

    def linear(self, fn: Callable[..., list[Any]], ins: Sequence[Any]) -> list[Any]:
        """Push values and slopes through the derivative of an affine operation."""
        moving = [k for k, x in enumerate(ins) if isinstance(x, Moving)]

        def of_moving(*parts: Any) -> list[Any]:
            args = list(ins)
            for k, part in zip(moving, parts, strict=True):
                args[k] = part
            return fn(*args)

        values, slopes = [ins[k].value for k in moving], [ins[k].slope for k in moving]
        return [Moving(v, s) for v, s in zip(*jax.jvp(of_moving, values, slopes), strict=True)]

    def _cut(self, value: Any, slope: Any) -> Any:
        """Narrow the window to where no margin changes sign; return the side to the right of z."""
        value, slope = jnp.broadcast_arrays(value, slope)
        # Size and side are computed apart: XLA may evaluate a margin near 0 twice, with two signs.
        distance = jnp.abs(value / jnp.where(slope == 0, 1, slope))
        ahead = ((value < 0) & (slope > 0)) | ((value > 0) & (slope < 0))
        end = jnp.min(distance, where=ahead, initial=jnp.inf)
        self.hi = jnp.minimum(self.hi, end.astype(self.hi.dtype))
        behind = (slope != 0) & ~ahead
        end = jnp.max(-distance, where=behind, initial=-jnp.inf)
        self.lo = jnp.maximum(self.lo, end.astype(self.lo.dtype))
        return (value > 0) | ((value == 0) & (slope > 0))

    def _margin(self, a: Any, b: Any) -> tuple[Any, Any]:
        return _value(a) - _value(b), _slope(a) - _slope(b)

    def switch(self, fn: Callable[..., list[Any]], a: Any, b: Any, pick: Callable[..., Any]) -> Any:
        """Return the value with the slope of the side that holds to the right of z."""
        side = self._cut(*self._margin(a, b))
        return Moving(fn(_value(a), _value(b))[0], pick(side, _slope(a), _slope(b)))

    def compare(self, test: str, a: Any, b: Any) -> Any:
        """Return the comparison's limit from the right."""
        value, slope = self._margin(a, b)
        self._cut(value, slope)
        # The margin of equal infinities is NaN, so that the values themselves are compared. A NaN
        # among them compares as it does in JAX: false to everything, and unequal to itself.
        tie = _value(a) == _value(b)
        above = (_value(a) > _value(b)) | (tie & (slope > 0))
        below = (_value(a) < _value(b)) | (tie & (slope < 0))
        equal = tie & (slope == 0)
        return {
            "gt": above,
            "ge": above | equal,
            "lt": below,
            "le": below | equal,
            "eq": equal,
            "ne": ~equal,
        }[test]

    def at_value(self, fn: Callable[..., list[Any]], ins: Sequence[Any]) -> list[Any]:
        """Evaluate at the values and drop the slopes."""
        return fn(*map(_value, ins))

    def index_of_largest(self, x: Any) -> Any:
        """Return the index of the entry that is largest just to the right of z.

        Ties are broken by the value, then the slope, then the place.
        """
        best = (x.value == jnp.max(x.value, axis=0)) | jnp.isnan(x.value)
        steepest = jnp.where(best, x.slope, -jnp.inf)
        index = jnp.argmax(steepest, axis=0)
        winner = self._at_index(x, index)
        # The winner's margin over itself is left out: XLA may not compute it as exactly zero.
        itself = lax.broadcasted_iota(index.dtype, x.value.shape, 0) == index
        self._cut(winner.value - x.value, jnp.where(itself, 0, winner.slope - x.slope))
        return index

    def largest(self, x: Any) -> Any:
        """Return the value and slope of the largest entry."""
        return self._at_index(x, self.index_of_largest(x))

    def _at_index(self, x: Any, index: Any) -> Any:
        return Moving(*(jnp.take_along_axis(v, index[None], 0)[0] for v in x))

    def running_largest(self, x: Any) -> Any:
        """Compare each entry with the largest before it, which implies the other comparisons."""

        def later(p: tuple[Any, Any], q: tuple[Any, Any]) -> tuple[Any, Any]:
            (v, s), (w, t) = p, q
            wins = (w > v) | ((w == v) & (t > s)) | jnp.isnan(w)
            return jnp.where(wins, w, v), jnp.where(wins, t, s)

        value, slope = lax.associative_scan(later, (x.value, x.slope))
        self._cut(value[:-1] - x.value[1:], slope[:-1] - x.slope[1:])
        return Moving(value, slope)

    def sort(self, key: Any, carried: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Sort by value, then slope: the order just to the right of z."""
        places = lax.broadcasted_iota(jnp.int32, key.value.shape, 0)
        *_, order = lax.sort((key.value, key.slope, places), dimension=0, num_keys=2)

        def reorder(v: Any) -> Any:
            return jnp.take_along_axis(v, order, 0)

        key = Moving(reorder(key.value), reorder(key.slope))
        self._cut(key.value[1:] - key.value[:-1], key.slope[1:] - key.slope[:-1])
        return key, [jax.tree.map(reorder, value) for value in carried]

    def scan(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        """Run a scan whose carry holds slopes and the window beside the values."""
        p = eqn.params
        first, count = _compat.scan_counts(eqn)
        consts, carry, xs = ins[:first], list(ins[first : first + count]), ins[first + count :]
        jaxpr, jaxpr_consts = _compat.open_jaxpr(p["jaxpr"])

        def body(state: Any, x: Any) -> Any:
            lo, hi, carry = state
            inner = PieceAlgebra(lo, hi)
            outs = walk(inner, jaxpr, jaxpr_consts, [*consts, *carry, *x])
            carried, ys = outs[:count], outs[count:]
            carried = [
                _lift(_strong(new), isinstance(old, Moving))
                for new, old in zip(carried, carry, strict=True)
            ]
            return (inner.lo, inner.hi, carried), ys

        # A constant may start to move after some turns: repeat until nothing changes.
        carry = [_strong(value) for value in carry]
        row = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), list(xs))
        while True:
            (_, _, after), _ = jax.eval_shape(body, (self.lo, self.hi, carry), row)
            lifted = [_lift(c, isinstance(a, Moving)) for c, a in zip(carry, after, strict=True)]
            if list(map(self.moves, lifted)) == list(map(self.moves, carry)):
                break
            carry = lifted
        state = (self.lo, self.hi, carry)
        state, ys = lax.scan(body, state, list(xs), length=p["length"], reverse=p["reverse"])
        self.lo, self.hi, carry = state
        return [*carry, *ys]

    def cond(self, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        """Walk every branch; only the selected one cuts the window."""
        index, *operands = ins
        branches = eqn.params["branches"]
        index = jnp.clip(jnp.asarray(index).astype(jnp.int32), 0, len(branches) - 1)
        results, windows = [], []
        for branch in branches:
            inner = PieceAlgebra(self.lo, self.hi)
            jaxpr, consts = _compat.open_jaxpr(branch)
            results.append(walk(inner, jaxpr, consts, operands))
            windows.append((inner.lo, inner.hi))
        self.lo, self.hi = (lax.select_n(index, *ends) for ends in zip(*windows, strict=True))
        outs = []
        for column in zip(*results, strict=True):
            moving = any(isinstance(v, Moving) for v in column)
            lifted = [_lift(_strong(v), moving) for v in column]
            outs.append(jax.tree.map(lambda *v: lax.select_n(index, *v), *lifted))
        return outs


def _strong(x: Any) -> Any:
    """Remove JAX's weak type from a value: the types of a loop's carry are fixed."""
    return jax.tree.map(lambda v: lax.convert_element_type(v, jnp.asarray(v).dtype), x)


def _lift(x: Any, moving: bool) -> Any:
    return Moving(x, jnp.zeros_like(x)) if moving and not isinstance(x, Moving) else x


def affine_piece(
    f: Callable[[Float[Array, ""]], PyTree], z: Float[Array, ""] | float
) -> AffinePiece:
    """Return the affine piece of a function at a point, with the window on which it holds.

    One evaluation carries the value and the slope of every intermediate result along; each choice
    (max, abs, comparison, sort, ...) cuts the window where its margin `v + s (t - z)` changes
    sign, at `t = z - v / s`. Works under `jax.jit` and `jax.vmap`. At a breakpoint the piece to
    the right is returned. A value that does not move with z makes no cut.

    Args:
        f: A JAX function of one floating-point scalar that returns any tree of arrays.
        z: The point, a floating-point scalar; the computation has its precision.

    Returns:
        The piece; its `status` is OK, TIE (the window is narrower than rounding) or NON_FINITE.

    Raises:
        NotPiecewiseAffineError: A primitive of `f` is not piecewise affine in a moving value; the
            message names it and the line of source.
        TypeError: `z` is not a floating-point scalar.

    Example:
        >>> piece = affine_piece(lambda z: jax.nn.relu(2.0 * z - 1.0), 1.0)
        >>> float(piece.value), float(piece.slope), float(piece.lo), float(piece.hi)
        (1.0, 2.0, 0.5, inf)

    Source: Katsuoka et al., arXiv 2402.11789, section 3 (windows).
    """
    z = jnp.asarray(z)
    if z.shape != () or not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"z is {z.dtype} of shape {z.shape}; expected a floating-point scalar")
    closed, out_shape = _compat.trace(f, z)
    jaxpr, consts = _compat.open_jaxpr(closed)
    bound = jnp.asarray(jnp.inf, z.dtype)
    algebra = PieceAlgebra(-bound, bound)
    outs = walk(algebra, jaxpr, consts, [Moving(z, jnp.ones_like(z))])
    values = [_value(x) for x in outs]
    slopes = [x.slope if isinstance(x, Moving) else jnp.zeros(jnp.shape(x), z.dtype) for x in outs]
    finite = jnp.all(
        jnp.stack(
            [
                jnp.all(jnp.isfinite(v))
                for v in (*values, *slopes)
                if jnp.issubdtype(jnp.asarray(v).dtype, jnp.inexact)
            ]
            or [jnp.asarray(True)]
        )
    )
    finite &= jnp.isfinite(z) & ~jnp.isnan(algebra.lo) & ~jnp.isnan(algebra.hi)
    room = 4 * jnp.finfo(z.dtype).eps * jnp.maximum(1, jnp.abs(z))
    status = jnp.where(algebra.hi > room, PieceStatus.OK.value, PieceStatus.TIE.value)
    status = jnp.where(finite, status, PieceStatus.NON_FINITE.value)
    lo, hi = (jnp.where(finite, z + end, jnp.nan) for end in (algebra.lo, algebra.hi))
    tree = jax.tree.structure(out_shape)
    return AffinePiece(tree.unflatten(values), tree.unflatten(slopes), lo, hi, status)
