"""Activation functions by name, with piecewise-linear approximations of smooth ones."""

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float

_SPAN = 8.0  # beyond +-8, silu and gelu are within 0.003 of their asymptotes 0 and x


def activation(name: str) -> Callable[[Array], Array]:
    """Look up an activation function; all but "silu" and "gelu" are piecewise linear.

    "pl-silu:K" and "pl-gelu:K" are `sum_i (s_i - s_{i-1}) max(x - k_i, 0)` with K knots `k_i` on
    [-8, 8], equal to 0 on the left of the first knot and to x on the right of the last.

    Args:
        name: "relu", "leaky_relu" (slope 0.01), "relu6", "hard_tanh", "silu", "gelu", or
            "pl-silu:K" or "pl-gelu:K" with K >= 3.

    Returns:
        A function of an array of any shape, which computes in the dtype of its argument.

    Raises:
        InputError: The name is unknown, or the number of knots is invalid.

    Example:
        >>> activation("relu")(jnp.array([-1.0, 2.0]))
        Array([0., 2.], dtype=float32)

    Source: C. de Boor, A Practical Guide to Splines, 1978, chapter 3 (knots at equal quantiles of
    sqrt|f''|).
    """
    if name in _PLAIN:
        return _PLAIN[name]
    stand_in = _stand_in(name)
    if stand_in is not None:
        return partial(_hinges, family=stand_in[0], count=stand_in[1])
    known = ", ".join([*_PLAIN, *(f"{f}:K" for f in _SMOOTH)])
    raise InputError(f"activation: got {name!r}, expected one of {known} (K >= 3)")


def hinge_table(name: str) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Return the knots and the changes of slope of a piecewise-linear approximation.

    Args:
        name: "pl-silu:K" or "pl-gelu:K".

    Returns:
        Knots (K,), increasing from -8 to 8, and slope changes (K,), which sum to 1.

    Raises:
        InputError: The name is not of this form.

    Example:
        >>> knots, changes = hinge_table("pl-silu:5")
        >>> knots[[0, -1]].tolist(), round(changes.sum().item(), 6)
        ([-8.0, 8.0], 1.0)
    """
    stand_in = _stand_in(name)
    if stand_in is None:
        raise InputError(f"activation: got {name!r}, expected pl-silu:K or pl-gelu:K (K >= 3)")
    return _table(*stand_in)


def is_piecewise_linear(name: str) -> bool:
    """Return whether an activation function is piecewise linear.

    Args:
        name: Name, as for `activation`.

    Returns:
        False for "silu" and "gelu", otherwise True.

    Raises:
        InputError: The name is unknown.
    """
    activation(name)
    return name not in ("silu", "gelu")


def _stand_in(name: str) -> tuple[str, int] | None:
    """Return family and number of knots of "pl-silu:K" or "pl-gelu:K"; None for other names."""
    family, _, count = str(name).partition(":")  # files may hold any value
    fits = family in _SMOOTH and count.isdecimal() and int(count) >= 3
    return (family, int(count)) if fits else None


@lru_cache(maxsize=64)
def _table(family: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    smooth = _SMOOTH[family]
    grid = np.linspace(-_SPAN, _SPAN, 16001)
    step = grid[1] - grid[0]
    curvature = np.abs(smooth(grid + step) - 2.0 * smooth(grid) + smooth(grid - step)) / step**2
    density = np.sqrt(curvature)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    knots = np.interp(np.linspace(0.0, mass[-1], count), mass, grid)
    values = smooth(knots)
    values[0], values[-1] = 0.0, knots[-1]  # the asymptotes, so that the tails join without a jump
    slopes = np.concatenate([[0.0], np.diff(values) / np.diff(knots), [1.0]])
    return knots, np.diff(slopes)


def _hinges(x: Array, family: str, count: int) -> Array:
    number = x.dtype.type
    knots, changes = _table(family, count)
    total = jnp.zeros_like(x)
    for knot, change in zip(knots, changes, strict=True):
        # max(x, k) - k rather than max(x - k, 0): a sweep then keeps x alone for all its knots.
        total = total + number(change) * (jnp.maximum(x, number(knot)) - number(knot))
    return total


def _relu(x: Array) -> Array:
    return jnp.maximum(x, x.dtype.type(0))


def _leaky_relu(x: Array) -> Array:
    return jnp.maximum(x, x * x.dtype.type(0.01))


def _relu6(x: Array) -> Array:
    return jnp.minimum(_relu(x), x.dtype.type(6))


def _hard_tanh(x: Array) -> Array:
    return jnp.maximum(jnp.minimum(x, x.dtype.type(1)), x.dtype.type(-1))


_PLAIN: dict[str, Callable[[Array], Array]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "relu6": _relu6,
    "hard_tanh": _hard_tanh,
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}
_SMOOTH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pl-silu": lambda x: x * special.expit(x),
    "pl-gelu": lambda x: x * special.ndtr(x),
}
