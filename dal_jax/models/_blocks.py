"""Shared parts of networks: first values of variables, normalizations and self-attention."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree


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
