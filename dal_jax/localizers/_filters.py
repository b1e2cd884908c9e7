"""Linear filters that smooth or resize a map of differences before it is scored."""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float


def average_filter(x: Float[Array, "H W C"], size: int = 3) -> Float[Array, "H W C"]:
    """Average over a square around each pixel, zero outside of the image, per channel.

    `y_i = sum_{j in square of i} x_j / size^2`.

    Args:
        x: (H, W, C).
        size: Side of the square in pixels, odd.

    Returns:
        (H, W, C), in the dtype of x.

    Raises:
        InputError: The size is not odd.

    Example:
        >>> import jax
        >>> averaged = jax.jit(average_filter)(np.full((3, 3, 1), 9.0))
        >>> np.round(averaged[..., 0]).tolist()
        [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]

    Source: Katsuoka et al., arXiv 2402.11789, section 5 (a 3 x 3 averaging filter).
    """
    if size < 1 or size % 2 == 0:
        raise InputError(f"size: got {size}, expected an odd number")
    rows = _running_sum(_running_sum(x, size, 0), size, 1)
    return rows * x.dtype.type(1.0 / size**2)


def filtered_difference(
    normal: Float[Array, "H W C"], x: Float[Array, "H W C"], size: int
) -> Float[Array, "H W"]:
    """Return the filtered difference of an image and its counterpart: `sum_c |F(normal - x)|`.

    Args:
        normal: (H, W, C), the counterpart.
        x: (H, W, C), the image.
        size: Side of the averaging filter F, pixels, odd.

    Returns:
        (H, W), in the dtype of x.

    Source: Katsuoka et al., arXiv 2402.11789, section 5.
    """
    return jnp.sum(jnp.abs(average_filter(normal - x, size)), axis=-1)


def _running_sum(x: Array, size: int, axis: int) -> Array:
    half = size // 2
    padding = [(half, half) if i == axis else (0, 0) for i in range(x.ndim)]
    padded = jnp.pad(x, padding)
    total = x
    for offset in (o for o in range(size) if o != half):
        total = total + lax.slice_in_dim(padded, offset, offset + x.shape[axis], axis=axis)
    return total


def gaussian_filter(x: Float[Array, "*B H W"], sigma: float) -> Float[Array, "*B H W"]:
    """Blur maps by a Gaussian that is mirrored at the borders and cut at four deviations.

    `y = G_H x G_W^T`, a fixed linear map of each side, with the weights of
    `scipy.ndimage.gaussian_filter`.

    Args:
        x: (..., H, W).
        sigma: Standard deviation in pixels; 0 leaves the maps as they are.

    Returns:
        (..., H, W), in the dtype of x; a constant map does not change.

    Raises:
        InputError: `sigma` is negative or not finite.

    Example:
        >>> point = np.zeros((9, 9))
        >>> point[4, 4] = 1.0
        >>> blurred = np.asarray(gaussian_filter(point, sigma=1.0))
        >>> round(blurred[4, 4].item(), 2), round(blurred.sum().item(), 4)
        (0.16, 1.0)
    """
    if not 0.0 <= sigma < float("inf"):
        raise InputError(f"sigma: got {sigma}, expected a finite number of 0 or above")
    if not sigma:
        return x
    height, width = (_gaussian_matrix(side, sigma).astype(x.dtype) for side in x.shape[-2:])
    return _along_both(height, x, width)


def resize(x: Float[Array, "*B h w"], sides: tuple[int, int]) -> Float[Array, "*B H W"]:
    """Resize maps by bilinear interpolation, with half-pixel centres and clamped edges.

    Args:
        x: (..., h, w).
        sides: (H, W).

    Returns:
        (..., H, W), in the dtype of x.
    """
    down, across = (
        _bilinear_matrix(old, new).astype(x.dtype)
        for old, new in zip(x.shape[-2:], sides, strict=True)
    )
    return _along_both(down, x, across)


def _along_both(down: np.ndarray, x: Array, across: np.ndarray) -> Array:
    rows = jnp.matmul(down, x, precision="highest")
    return jnp.matmul(rows, across.T, precision="highest")


@lru_cache(maxsize=64)
def _gaussian_matrix(side: int, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect")


@lru_cache(maxsize=64)
def _bilinear_matrix(old: int, new: int) -> np.ndarray:
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(centres[:, None] - np.arange(old)), 0)
