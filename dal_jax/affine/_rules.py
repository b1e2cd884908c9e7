"""Table of rules: how each primitive splits into affine operations and choices.

A primitive without a rule is refused as soon as it meets a moving value.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax import _compat
from dal_jax.affine._walk import Algebra, Rule, refusal

# Jointly affine in all their floating-point operands.
AFFINE_IN_ALL = (
    *("add", "add_any", "sub", "neg", "concatenate", "stack", "unstack", "pad", "reshape"),
    *("squeeze", "broadcast_in_dim", "transpose", "rev", "slice", "split", "tile", "copy"),
    *("reduce_sum", "cumsum", "reduce_window_sum", "select_n", "dynamic_slice", "gather"),
    *("dynamic_update_slice", "scatter", "scatter-add", "scatter-sub", "device_put"),
    *("sharding_constraint", "optimization_barrier", "name", "real", "imag", "complex", "conj"),
    "fft",
)
# Affine in any one operand, the others fixed.
AFFINE_IN_ONE = ("mul", "dot_general", "conv_general_dilated")
# Affine in the operand at one position only.
AFFINE_IN_POSITION = {"div": 0, "triangular_solve": 1}
COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")


def _bind(eqn: Any) -> Callable[..., list[Any]]:
    return lambda *args: _compat.bind(eqn, *args)


def _affine(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    return alg.linear(_bind(eqn), ins)


def _affine_in_one(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    if sum(alg.moves(value) for value in ins) > 1:
        raise refusal(eqn, "multiplies two values that both move with z")
    return alg.linear(_bind(eqn), ins)


def _affine_in_position(position: int) -> Rule:
    def rule(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        if any(alg.moves(value) for k, value in enumerate(ins) if k != position):
            raise refusal(eqn, f"is not affine in a moving operand other than number {position}")
        return alg.linear(_bind(eqn), ins)

    return rule


def _identity(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    # stop_gradient has a zero derivative rule, but its value moves: never differentiate it.
    return alg.linear(lambda x: [x], ins)


def _integer_pow(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    if eqn.params["y"] != 1:
        raise refusal(eqn, "is not piecewise affine in a value that moves with z")
    return alg.linear(lambda x: [x], ins)


def _convert(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    dtype = eqn.params["new_dtype"]
    if jnp.issubdtype(dtype, jnp.inexact):
        return alg.linear(_bind(eqn), ins)
    if dtype != np.bool_:
        raise refusal(eqn, f"rounds a value that moves with z to {np.dtype(dtype).name}")
    return RULES["ne"](alg, eqn, [ins[0], np.zeros((), eqn.invars[0].aval.dtype)])


def _maximum(alg: Algebra, a: Any, b: Any) -> Any:
    return alg.switch(
        lambda x, y: [lax.max(*_broadcast(x, y))], a, b, lambda s, x, y: _where(s, x, y)
    )


def _minimum(alg: Algebra, a: Any, b: Any) -> Any:
    return alg.switch(
        lambda x, y: [lax.min(*_broadcast(x, y))], a, b, lambda s, x, y: _where(s, y, x)
    )


def _where(side: Any, x: Any, y: Any) -> Any:
    return jnp.where(side, x, y)


def _broadcast(x: Any, y: Any) -> tuple[Any, Any]:
    """Broadcast both operands to one shape: a literal operand may be a scalar."""
    shape = np.broadcast_shapes(jnp.shape(x), jnp.shape(y))
    return jnp.broadcast_to(x, shape), jnp.broadcast_to(y, shape)


def _abs(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    zero = np.zeros((), eqn.invars[0].aval.dtype)
    return [
        alg.switch(lambda x, _: [lax.abs(x)], ins[0], zero, lambda s, x, _: jnp.where(s, x, -x))
    ]


def _clamp(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    low, x, high = ins
    return [_minimum(alg, _maximum(alg, x, low), high)]


def _sign(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    dtype = eqn.outvars[0].aval.dtype
    zero = np.zeros((), dtype)
    above, below = alg.compare("gt", ins[0], zero), alg.compare("lt", ins[0], zero)
    nan = alg.at_value(lambda v: [jnp.where(jnp.isnan(v), v, jnp.zeros_like(v))], ins)[0]
    sides = [above, below, nan]
    return alg.constant(lambda p, n, u: [p.astype(dtype) - n.astype(dtype) + u], sides)


def _compare(test: str) -> Rule:
    return lambda alg, eqn, ins: [alg.compare(test, ins[0], ins[1])]


def _negate(alg: Algebra, x: Any) -> Any:
    return alg.linear(lambda v: [-v], [x])[0]


def _merge_axes_first(alg: Algebra, x: Any, axes: Sequence[int]) -> Any:
    """Merge the reduced axes into one, in front."""
    shape = alg.shape(x)
    kept = [k for k in range(len(shape)) if k not in axes]
    merged = (math.prod(shape[k] for k in axes), *(shape[k] for k in kept))
    return alg.linear(lambda v: [v.transpose((*axes, *kept)).reshape(merged)], [x])[0]


def _reduction(negative: bool) -> Rule:
    def rule(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        x = _merge_axes_first(alg, ins[0], tuple(eqn.params["axes"]))
        if not alg.shape(x)[0]:
            return alg.at_value(_bind(eqn), ins)  # infinite for every z
        if not negative:
            return [alg.largest(x)]
        return [_negate(alg, alg.largest(_negate(alg, x)))]

    return rule


def _arg_reduction(negative: bool) -> Rule:
    def rule(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        x = _merge_axes_first(alg, ins[0], tuple(eqn.params["axes"]))
        index = alg.index_of_largest(_negate(alg, x) if negative else x)
        dtype = eqn.params["index_dtype"]
        return alg.constant(lambda i: [i.astype(dtype)], [index])

    return rule


def _cumulative(negative: bool) -> Rule:
    def rule(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        axis, reverse = eqn.params["axis"], eqn.params["reverse"]

        def turn(v: Any) -> list[Any]:
            v = jnp.moveaxis(-v if negative else v, axis, 0)
            return [v[::-1] if reverse else v]

        def turn_back(v: Any) -> list[Any]:
            v = v[::-1] if reverse else v
            return [jnp.moveaxis(-v if negative else v, 0, axis)]

        x = alg.running_largest(alg.linear(turn, ins)[0])
        return alg.linear(turn_back, [x])

    return rule


def _window_reduction(negative: bool) -> Rule:
    def rule(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        if any(d != 1 for d in eqn.params["base_dilation"]):
            raise refusal(eqn, f"has base_dilation {eqn.params['base_dilation']}; expected ones")
        stacked = alg.linear(lambda v: [_windows(-v if negative else v, eqn.params)], ins)[0]
        largest = alg.largest(stacked)
        return [_negate(alg, largest) if negative else largest]

    return rule


def _windows(x: Any, params: dict[str, Any]) -> Any:
    """Stack the strided slices of all offsets of a pooling window along a new axis 0."""
    lowest = np.asarray(-np.inf, x.dtype)
    x = lax.pad(x, lowest, [(lo, hi, 0) for lo, hi in params["padding"]])
    window, strides = params["window_dimensions"], params["window_strides"]
    dilation = params["window_dilation"]
    spans = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    counts = [(n - s) // t + 1 for n, s, t in zip(x.shape, spans, strides, strict=True)]
    slices = []
    for offset in np.ndindex(*window):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        stop = [a + (c - 1) * t + 1 for a, c, t in zip(start, counts, strides, strict=True)]
        slices.append(lax.slice(x, start, stop, strides))
    return jnp.stack(slices)


def _sort(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    if eqn.params["num_keys"] != 1:
        raise refusal(eqn, f"has num_keys {eqn.params['num_keys']}; expected 1")
    axis = eqn.params["dimension"]
    first = [_move_axis(alg, value, axis, 0) for value in ins]
    if not alg.moves(first[0]):
        raise refusal(eqn, "carries a moving value through the order of a key that does not move")
    key, carried = alg.sort(first[0], first[1:])
    return [_move_axis(alg, value, 0, axis) for value in (key, *carried)]


def _move_axis(alg: Algebra, x: Any, source: int, target: int) -> Any:
    apply = alg.linear if alg.moves(x) else alg.constant
    return apply(lambda v: [jnp.moveaxis(v, source, target)], [x])[0]


def _top_k(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    k = eqn.params["k"]
    axis = eqn.params.get("axis", len(alg.shape(ins[0])) - 1) % len(alg.shape(ins[0]))
    x = alg.linear(lambda v: [-jnp.moveaxis(v, axis, 0)], ins)[0]
    shape, dtype = alg.shape(x), eqn.outvars[1].aval.dtype
    index = np.broadcast_to(
        np.arange(shape[0], dtype=dtype).reshape(-1, *(1,) * (len(shape) - 1)), shape
    )
    key, (order,) = alg.sort(x, [index])
    values = alg.linear(lambda v: [jnp.moveaxis(-v[:k], 0, axis)], [key])
    return values + alg.constant(lambda v: [jnp.moveaxis(v[:k], 0, axis)], [order])


def _at_value(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
    return alg.at_value(_bind(eqn), ins)


def _of_real(rule: Rule) -> Rule:
    """Refuse complex values, whose order in JAX is no continuous choice."""

    def guarded(alg: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Any]:
        if jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.complexfloating):
            raise refusal(eqn, "of a complex value is not piecewise affine")
        return rule(alg, eqn, ins)

    return guarded


CHOICES: dict[str, Rule] = {
    **{name: _compare(name) for name in COMPARISONS},
    "max": lambda alg, eqn, ins: [_maximum(alg, *ins)],
    "min": lambda alg, eqn, ins: [_minimum(alg, *ins)],
    "abs": _abs,
    "clamp": _clamp,
    "sign": _sign,
    "reduce_max": _reduction(negative=False),
    "reduce_min": _reduction(negative=True),
    "argmax": _arg_reduction(negative=False),
    "argmin": _arg_reduction(negative=True),
    "cummax": _cumulative(negative=False),
    "cummin": _cumulative(negative=True),
    "reduce_window_max": _window_reduction(negative=False),
    "reduce_window_min": _window_reduction(negative=True),
    "sort": _sort,
    "top_k": _top_k,
}

RULES: dict[str, Rule] = {
    **{name: _affine for name in AFFINE_IN_ALL},
    **{name: _affine_in_one for name in AFFINE_IN_ONE},
    **{name: _affine_in_position(k) for name, k in AFFINE_IN_POSITION.items()},
    **{name: _of_real(rule) for name, rule in CHOICES.items()},
    "convert_element_type": _convert,
    "stop_gradient": _identity,
    "integer_pow": _integer_pow,
    "is_finite": _at_value,
}
