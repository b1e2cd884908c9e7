"""Halving and doubling of image sides in plain slices and sums, linear and cheap on a CPU."""

import jax.numpy as jnp
from jax import lax

from dal_jax._typing import Array, Float


def mean_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
    """Halves the sides of an image by 2x2 means.

    Args:
        x: (B, H, W, C), H and W even.

    Returns:
        (B, H/2, W/2, C).

    Example:
        >>> mean_pool(jnp.array([[1.0, 3.0], [5.0, 7.0]]).reshape(1, 2, 2, 1)).item()
        4.0
    """
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.sum(cells, axis=(2, 4)) * x.dtype.type(0.25)


def upsample(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Doubles the sides of an image by bilinear interpolation.

    Half-pixel centres with the edge clamped: `y_{2i} = (3 x_i + x_{i-1}) / 4`,
    `y_{2i+1} = (3 x_i + x_{i+1}) / 4` along each side.

    Args:
        x: (B, H, W, C).

    Returns:
        (B, 2H, 2W, C), equal to `jax.image.resize(x, ..., "bilinear")`.

    Example:
        >>> import jax
        >>> jax.jit(upsample)(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1))[0, 0, :, 0].tolist()
        [0.0, 1.0, 3.0, 4.0]
    """
    return double(double(x, 1), 2)


def double(x: Array, axis: int) -> Array:
    """Doubles one side of an array, as `upsample` does two.

    Args:
        x: of any shape.
        axis: of the side.

    Returns:
        The array with twice as many entries along the axis.
    """
    size = x.shape[axis]
    first = lax.slice_in_dim(x, 0, 1, axis=axis)
    last = lax.slice_in_dim(x, size - 1, size, axis=axis)
    before = lax.concatenate([first, lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    after = lax.concatenate([lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
    near, far = x.dtype.type(0.75), x.dtype.type(0.25)
    columns = (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :])
    even, odd = near * x + far * before, near * x + far * after
    pair = lax.concatenate([even.reshape(columns), odd.reshape(columns)], axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def undouble(x: Array, axis: int) -> Array:
    """The transpose of `double`, written out: XLA is slow at the one that JAX derives.

    Args:
        x: of any shape, with an even number of entries along the axis.
        axis: of the side.

    Returns:
        The array with half as many entries along the axis.
    """
    size = x.shape[axis] // 2
    pair = x.reshape(*x.shape[:axis], size, 2, *x.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pair, k, axis + 1, keepdims=False) for k in range(2))
    first = lax.slice_in_dim(even, 0, 1, axis=axis)
    last = lax.slice_in_dim(odd, size - 1, size, axis=axis)
    after = lax.concatenate([lax.slice_in_dim(even, 1, size, axis=axis), last], axis)
    before = lax.concatenate([first, lax.slice_in_dim(odd, 0, size - 1, axis=axis)], axis)
    near, far = x.dtype.type(0.75), x.dtype.type(0.25)
    return near * (even + odd) + far * (before + after)
