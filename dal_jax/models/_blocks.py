"""Shared parts of networks: activations, first values of variables, normalizations, attention."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree

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


def draw_variables(shapes: PyTree, seed: int) -> PyTree:
    """Draw the variables of a new network.

    Kernels are normal with variance 1 / fan-in, biases and means are 0, scales and variances 1.
    They are drawn by numpy, so that they are the same on every device and release of JAX.

    Args:
        shapes: Pytree of dictionaries with `jax.ShapeDtypeStruct` as leaves.
        seed: Seed of the random numbers, 0 or above.

    Returns:
        The same pytree of numpy arrays, float32.

    Source: LeCun et al., Efficient BackProp, 1998, section 4.6.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            deviation = 1.0 / np.sqrt(np.prod(leaf.shape[:-1]))
            return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def check_image(shape: tuple[int, ...], channels: int, multiple: int) -> None:
    """Refuse an image shape (..., H, W, C) that a network cannot take.

    Args:
        shape: Shape of at least three numbers; the last three are H, W and C.
        channels: Required number of channels C.
        multiple: Number by which H and W must be divisible.

    Raises:
        InputError: The shape does not fit.
    """
    if len(shape) < 3 or shape[-1] != channels:
        raise InputError(f"image: got shape {tuple(shape)}, expected (..., H, W, {channels})")
    height, width = shape[-3:-1]
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise InputError(f"image: got sides {height} x {width}, expected multiples of {multiple}")


_MOST_GROUPS = 32
_FEWEST_CHANNELS = 4  # least number of channels in a group
_HEAD = 64  # channels of a head of attention
_EPSILON = 1e-5
_WIDTHS = {"qkv": 3, "proj": 1}  # widths of the layers of attention, in multiples of the channels


def group_count(channels: int) -> int:
    """Return the number of groups that share a mean and a variance.

    Args:
        channels: Number of channels of the map.

    Returns:
        The largest divisor up to 32 that leaves four channels or more in a group, or 1.

    Source: Wu and He, arXiv 1803.08494, section 4 (at most 32 groups).
    """
    most = min(_MOST_GROUPS, channels // _FEWEST_CHANNELS)
    return max((k for k in range(1, most + 1) if channels % k == 0), default=1)


def group_norm(x: Float[Array, "B H W C"], params: Mapping[str, Array]) -> Float[Array, "B H W C"]:
    """Normalize each group of channels of one image: `scale (x - mean) / sqrt(var + e) + bias`.

    Mean and variance are over the pixels and the channels of the group, never over the batch; e is
    1e-5.

    Args:
        x: Maps (B, H, W, C).
        params: Parameters "scale" and "bias" (C,).

    Returns:
        Maps (B, H, W, C) in the dtype of x; statistics are computed in float32 or better.

    Source: Wu and He, arXiv 1803.08494, equations 1, 2 and 6.
    """
    channels = x.shape[-1]
    groups = x.reshape(x.shape[0], -1, group_count(channels), channels // group_count(channels))
    scaled = _standardized(groups, (1, 3), _EPSILON).reshape(x.shape)
    return scaled * params["scale"].astype(x.dtype) + params["bias"].astype(x.dtype)


def layer_norm(
    x: Float[Array, "B N C"], params: Mapping[str, Array], epsilon: float
) -> Float[Array, "B N C"]:
    """Normalize the channels of each token: `scale (x - mean) / sqrt(var + e) + bias`.

    Args:
        x: Tokens (B, N, C).
        params: Parameters "scale" and "bias" (C,).
        epsilon: Number e added to the variance.

    Returns:
        Tokens (B, N, C) in the dtype of x; statistics are computed in float32 or better.

    Source: Ba et al., arXiv 1607.06450, equation 4.
    """
    scaled = _standardized(x, (2,), epsilon)
    return scaled * params["scale"].astype(x.dtype) + params["bias"].astype(x.dtype)


def attend(
    x: Float[Array, "B N C"], params: Mapping[str, Mapping[str, Array]], heads: int
) -> Float[Array, "B N C"]:
    """Replace each token by a weighted mean of all, `softmax(q k' / sqrt(C / heads)) v` a head.

    Args:
        x: Tokens (B, N, C).
        params: Parameters "qkv" with kernel (C, 3 C) and bias, and "proj" with kernel (C, C) and
            bias.
        heads: Number of heads, a divisor of C.

    Returns:
        Tokens (B, N, C) in the dtype of x.

    Source: Vaswani et al., arXiv 1706.03762, section 3.2.
    """
    batch, tokens, channels = x.shape
    parts = dense(x, params["qkv"]).reshape(batch, tokens, 3, heads, channels // heads)
    query, key, value = (parts[:, :, k] for k in range(3))
    size = x.dtype.type(1.0 / math.sqrt(channels // heads))
    weights = jnp.einsum("bqhc,bkhc->bhqk", query * size, key, precision="highest")
    weights = jax.nn.softmax(weights, axis=-1)
    mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value, precision="highest")
    return dense(mixed.reshape(x.shape), params["proj"])


def attend_pixels(x: Float[Array, "B H W C"], params: Mapping[str, Any]) -> Array:
    """Add self-attention between its pixels to a map: `x + attend(group_norm(x))`.

    Args:
        x: Maps (B, H, W, C); heads have 64 channels if that divides C, else there is one head.
        params: Parameters "norm", "qkv" and "proj".

    Returns:
        Maps (B, H, W, C) in the dtype of x.

    Source: Ho et al., arXiv 2006.11239, appendix B.
    """
    channels = x.shape[-1]
    heads = channels // _HEAD if channels % _HEAD == 0 else 1
    tokens = group_norm(x, params["norm"]).reshape(x.shape[0], -1, channels)
    return x + attend(tokens, params, heads).reshape(x.shape)


def dense(x: Array, layer: Mapping[str, Array]) -> Array:
    """Compute `x W + b` in the dtype of x.

    Args:
        x: Values (..., C).
        layer: Parameters "kernel" (C, D) and "bias" (D,).
    """
    product = jnp.matmul(x, layer["kernel"].astype(x.dtype), precision="highest")
    return product + layer["bias"].astype(x.dtype)


class Affine(nn.Module):
    """Module that declares a scale and a bias, and returns them."""

    @nn.compact
    def __call__(self, channels: int) -> dict[str, Array]:
        """Return {"scale": (channels,), "bias": (channels,)}."""
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return {"scale": scale, "bias": bias}


class Linear(nn.Module):
    """Module that declares a kernel and a bias, and returns them.

    Args:
        outputs: Number of output channels.
    """

    outputs: int

    @nn.compact
    def __call__(self, channels: int) -> dict[str, Array]:
        """Return {"kernel": (channels, outputs), "bias": (outputs,)}."""
        kernel = self.param("kernel", nn.initializers.zeros, (channels, self.outputs), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,), jnp.float32)
        return {"kernel": kernel, "bias": bias}


class Attention(nn.Module):
    """Module that declares the parameters of `attend`, and applies it.

    Args:
        heads: Number of heads, a divisor of the channels.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Mix tokens (B, N, C)."""
        channels = x.shape[-1]
        params = {name: Linear(k * channels, name=name)(channels) for name, k in _WIDTHS.items()}
        return attend(x, params, self.heads)


class PixelAttention(nn.Module):
    """Module that declares the parameters of `attend_pixels`, and applies it."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Mix the pixels of maps (B, H, W, C)."""
        channels = x.shape[-1]
        params = {name: Linear(k * channels, name=name)(channels) for name, k in _WIDTHS.items()}
        return attend_pixels(x, {"norm": Affine(name="norm")(channels), **params})


def _standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    wide = x.astype(jnp.float32) if np.dtype(x.dtype).itemsize < 4 else x
    centred = wide - jnp.mean(wide, axes, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axes, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + wide.dtype.type(epsilon))).astype(x.dtype)
