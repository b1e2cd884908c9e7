"""Fast arithmetic of maps: halving and doubling of the sides, convolution with few products.

On a CPU the multiplications dominate the cost. The method of Toom and Cook takes 9 for a 2 x 2 map
and 36 for each 4 x 4 tile, in place of 36 and 144; after a bilinear doubling of the sides, 9 for
each pixel before it are enough, in place of 36. The computation consists of sums, products with
constants and one batched matrix product.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax._compat import target_platform
from dal_jax._typing import Array, Float


def mean_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
    """Halve the sides of an image by 2x2 means.

    Args:
        x: Images (B, H, W, C), with H and W even.

    Returns:
        Images (B, H/2, W/2, C).

    Example:
        >>> mean_pool(jnp.array([[1.0, 3.0], [5.0, 7.0]]).reshape(1, 2, 2, 1)).item()
        4.0
    """
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.sum(cells, axis=(2, 4)) * x.dtype.type(0.25)


def upsample(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Double the sides of an image by bilinear interpolation.

    Half-pixel centres with the edge clamped: `y_{2i} = (3 x_i + x_{i-1}) / 4`,
    `y_{2i+1} = (3 x_i + x_{i+1}) / 4` along each side.

    Args:
        x: Images (B, H, W, C).

    Returns:
        Images (B, 2H, 2W, C), equal to `jax.image.resize(x, ..., "bilinear")`.

    Example:
        >>> import jax
        >>> jax.jit(upsample)(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1))[0, 0, :, 0].tolist()
        [0.0, 1.0, 3.0, 4.0]
    """
    return double(double(x, 1), 2)


def double(x: Array, axis: int) -> Array:
    """Double one side of an array, by the rule of `upsample`.

    Args:
        x: Array of any shape.
        axis: Axis of the side.

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
    """Return the transpose of `double`, written out: XLA is slow at the one that JAX derives.

    Args:
        x: Array of any shape, with an even number of entries along the axis.
        axis: Axis of the side.

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


# Points where a tile's signal is evaluated, besides infinity. Their squares are exact, and this
# choice rounds five times less than the customary 0, +-1, +-2: about like a plain sum in float32.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
# With fewer channels than this, the sums cost more than the products save.
_MIN_CHANNELS = 32
# The same holds for maps with more bytes in a channel, which leave the cache with all the sums.
_MAX_BYTES = 1 << 14
# Taps that meet the map, at its first pixel, at those between, and at its last; by side, up to 3.
_TAPS_MET = {
    1: np.array([[0.0, 1.0, 0.0]]),
    2: np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]),
    3: np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]),
}


class Scheme(NamedTuple):
    """Three-tap convolution of a tile of a row: `y = output ((kernel w) * (image x))`."""

    halo: int  # pixels read beyond either end of the tile
    image: Float[np.ndarray, "P tile_and_halo"]
    kernel: Float[np.ndarray, "P 3"]
    output: Float[np.ndarray, "tile P"]


@lru_cache(maxsize=64)
def scheme(side: int) -> Scheme | None:
    """Return the products that convolve a row of pixels, padded with one zero at either end.

    Args:
        side: Number of pixels in the row.

    Returns:
        A scheme with one product for 1 pixel, three for 2, six for every 4; None for other lengths.

    Source: Karatsuba and Ofman, 1962 (2 pixels); Winograd, Arithmetic Complexity of Computations,
    1980, and Lavin and Gray, arXiv 1509.09308 (4 pixels).
    """
    if side == 1:
        return Scheme(0, np.ones((1, 1)), np.array([[0.0, 1.0, 0.0]]), np.ones((1, 1)))
    if side == 2:
        return Scheme(
            0,
            np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]),
            np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 1.0], [1.0, -1.0, 0.0]]),
            np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]),
        )
    if side % 4:
        return None
    points = np.array(_POINTS)
    others = [np.delete(points, k) for k in range(5)]
    image = np.zeros((6, 6))
    image[:5, :5] = [np.poly(other)[::-1] for other in others]
    image[5] = np.poly(points)[::-1]
    weight = [np.prod(point - other) for point, other in zip(points, others, strict=True)]
    kernel = np.vstack([np.vander(points, 3, True) / np.array(weight)[:, None], [0.0, 0.0, 1.0]])
    output = np.hstack([np.vander(points, 4, True).T, [[0.0], [0.0], [0.0], [1.0]]])
    if side == 4:  # in a row of one tile all the padding is zero
        return Scheme(0, image[:, 1:5], kernel, output)
    return Scheme(1, image, kernel, output)


def on_cpu() -> bool:
    """Return whether the program that is being traced is for a CPU."""
    return target_platform() == "cpu"


def by_products(height: int, width: int, kernel: Any) -> bool:
    """Return whether `convolve` uses few products, not the library: a matter of speed alone.

    The library is faster on a GPU, with few channels, for large maps and for sides without a
    `scheme`; on many maps of up to 2 x 2 pixels it is some twenty times slower on a CPU.

    Args:
        height: Height of the maps in pixels.
        width: Width of the maps in pixels.
        kernel: Kernel (..., C, D), laid out or not; tiles of 4 round too much below float32.

    Returns:
        True for products, False for the library.
    """
    itemsize = kernel.dtype.itemsize
    if not on_cpu() or None in (scheme(height), scheme(width)):
        return False
    fits = height * width * itemsize <= _MAX_BYTES and min(kernel.shape[-2:]) >= _MIN_CHANNELS
    return max(height, width) <= 2 or (fits and itemsize >= 4)


def lay_out(kernel: Float[Array, "3 3 C D"], height: int, width: int) -> Float[Array, "P Q C D"]:
    """Lay out a kernel for `convolve` on maps of `height` by `width` pixels.

    Returns:
        A kernel (P, Q, C, D) for P products down and Q across, or the unchanged one for the
        library.

    Source: the sources of `scheme`.
    """
    if not by_products(height, width, kernel):
        return kernel
    return _evaluated_kernel(kernel, _known(height).kernel, _known(width).kernel)


def convolve(x: Float[Array, "B H W C"], kernel: Array) -> Float[Array, "B H W D"]:
    """Convolve maps with a 3 x 3 kernel, padding with zeros.

    Args:
        x: Maps (B, H, W, C).
        kernel: Kernel from `lay_out` for maps of this size.

    Source: the sources of `scheme`.
    """
    if by_products(x.shape[1], x.shape[2], kernel):
        return _convolve_by_products(x, kernel)
    return _by_library(x, kernel)


def _by_library(x: Array, kernel: Array) -> Array:
    padding, names = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=names, precision="highest"
    )


def _convolve_by_products(x: Array, kernel: Array) -> Array:
    rows, columns = _known(x.shape[1]), _known(x.shape[2])
    tiles = _evaluated(_evaluated(x, rows, 1, 0), columns, 3, 1)
    products = jnp.einsum("pqbhwc,pqcd->pqbhwd", tiles, kernel, precision="highest")
    # Written as one product with a small matrix, because XLA is slow at sums that it interleaves.
    output = np.kron(rows.output, columns.output).astype(x.dtype)
    sums = jnp.matmul(output, products.reshape(output.shape[1], -1), precision="highest")
    sums = sums.reshape(len(rows.output), len(columns.output), *products.shape[2:])
    return sums.transpose(2, 3, 0, 4, 1, 5).reshape(*x.shape[:3], -1)


def lay_out_doubled(kernel: Float[Array, "3 3 C D"], height: int, width: int) -> Array:
    """Lay out a kernel for `convolve_doubled`.

    Args:
        kernel: Kernel (3, 3, C, D).
        height: Height of the maps before doubling, in pixels.
        width: Width of the maps before doubling, in pixels.

    Returns:
        A kernel (C, P, Q, D) for P products down and Q across: one for each tap, or for each of the
        two pixels to which a single one is doubled.
    """
    down, across = (_TAPS_MET[2] if side == 1 else np.eye(3) for side in (height, width))
    return jnp.moveaxis(_evaluated_kernel(kernel, down, across), 2, 0)


def convolve_doubled(
    x: Float[Array, "B H W C"], kernel: Float[Array, "C P Q D"]
) -> Float[Array, "B 2*H 2*W D"]:
    """Double the sides of maps by bilinear interpolation and convolve, padding with zeros.

    Mixing of channels commutes with interpolation: the channels are mixed first, once per tap.

    Args:
        x: Maps (B, H, W, C).
        kernel: Kernel from `lay_out_doubled` for maps of this size.

    Returns:
        Maps (B, 2H, 2W, D), equal to `convolve(upsample(x), ...)` up to rounding.
    """
    mixed = jnp.einsum("bhwc,cpqd->bhwpqd", x, kernel, precision="highest")
    rows = _doubled_sum([mixed[:, :, :, k] for k in range(kernel.shape[1])], 1)
    return _doubled_sum([rows[:, :, :, k] for k in range(kernel.shape[2])], 2)


def transpose_kernel(kernel: Float[Array, "3 3 C D"]) -> Float[Array, "3 3 D C"]:
    """Return the kernel of the transposed convolution."""
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


@jax.custom_vjp
def convolve_one_gradient(
    x: Float[Array, "B H W C"], kernel: Array, back: Array
) -> Float[Array, "B H W D"]:
    """Convolve as `convolve`, with a gradient that is one convolution of the library.

    XLA takes five times longer for the transpose of the products, because it computes each entry
    anew wherever that is read. Derivatives by the kernels or in forward mode do not exist.

    Args:
        x: Maps (B, H, W, C).
        kernel: Kernel from `lay_out`.
        back: Kernel from `transpose_kernel`.
    """
    return convolve(x, kernel)


@jax.custom_vjp
def convolve_doubled_one_gradient(
    x: Float[Array, "B H W C"], kernel: Array, back: Array
) -> Float[Array, "B 2*H 2*W D"]:
    """Double and convolve as `convolve_doubled`, with a gradient as in `convolve_one_gradient`.

    Args:
        x: Maps (B, H, W, C).
        kernel: Kernel from `lay_out_doubled`.
        back: Kernel from `transpose_kernel`.
    """
    return convolve_doubled(x, kernel)


convolve_one_gradient.defvjp(
    lambda x, kernel, back: (convolve(x, kernel), back),
    lambda back, g: (_by_library(g, back), None, None),
)
convolve_doubled_one_gradient.defvjp(
    lambda x, kernel, back: (convolve_doubled(x, kernel), back),
    lambda back, g: (undouble(undouble(_by_library(g, back), 2), 1), None, None),
)


def border_kernel(kernel: Float[Array, "3 3 C D"], height: int, width: int) -> Array:
    """Sum the taps that meet each pixel of constant maps of `height` by `width` pixels.

    Constant maps are padded with zeros as well.

    Returns:
        Sums (I, J, C, D), with I and J at most 3: for the first row, those between, and the last;
        likewise for columns.
    """
    return _evaluated_kernel(kernel, _TAPS_MET[min(height, 3)], _TAPS_MET[min(width, 3)])


def spread(borders: Float[Array, "... I J D"], height: int, width: int) -> Array:
    """Repeat the middle row and column of a result of `border_kernel`, to (..., H, W, D)."""
    for axis, side in ((borders.ndim - 3, height), (borders.ndim - 2, width)):
        if side > 3:
            first, middle, last = (lax.slice_in_dim(borders, k, k + 1, axis=axis) for k in range(3))
            many = (*borders.shape[:axis], side - 2, *borders.shape[axis + 1 :])
            borders = jnp.concatenate([first, jnp.broadcast_to(middle, many), last], axis)
    return borders


def _known(side: int) -> Scheme:
    found = scheme(side)
    assert found is not None, side  # `by_products` is checked before
    return found


def _combination(weights: np.ndarray, parts: Any) -> Array:
    """Return `sum_k weights[k] parts[k]`, without the terms of weight zero."""
    terms = []
    for weight, part in zip(weights, parts, strict=True):
        if weight:
            terms.append(part if weight == 1.0 else part.dtype.type(weight) * part)
    return sum(terms[1:], start=terms[0])


def _evaluated_kernel(kernel: Array, down: np.ndarray, across: np.ndarray) -> Array:
    """Evaluate a kernel (3, 3, C, D) along both axes, to (P, Q, C, D)."""
    rows = jnp.stack([_combination(w, kernel) for w in down], axis=1)  # (3 across, P, C, D)
    return jnp.stack([_combination(w, rows) for w in across], axis=1)


def _evaluated(x: Array, rule: Scheme, axis: int, front: int) -> Array:
    """Divide an axis into tiles, with the factors of each tile along a new axis `front`."""
    tile, taps = rule.output.shape[0], rule.image.shape[1]
    count = x.shape[axis] // tile
    padding = [(rule.halo, rule.halo, 0) if k == axis else (0, 0, 0) for k in range(x.ndim)]
    x = lax.pad(x, x.dtype.type(0), padding)
    span = (count - 1) * tile + 1
    parts = [lax.slice_in_dim(x, k, k + span, tile, axis) for k in range(taps)]
    return jnp.stack([_combination(w, parts) for w in rule.image], axis=front)


def _doubled_sum(products: Sequence[Array], axis: int) -> Array:
    """Double the products with each tap along an axis, and add them where the taps lie."""
    if len(products) == 2:
        return jnp.concatenate(products, axis=axis)
    before, here, after = (double(v, axis) for v in products)

    def moved(v: Array, by: int) -> Array:
        padding = [(by, -by, 0) if k == axis else (0, 0, 0) for k in range(v.ndim)]
        return lax.pad(v, v.dtype.type(0), padding)

    return moved(before, 1) + here + moved(after, -1)
