"""Localizers: a pure score function with its parameters, draws and threshold; filters of scores."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from dal_jax._arrays import cast_floats
from dal_jax._compat import enable_x64
from dal_jax._errors import InputError
from dal_jax._typing import Array, Bool, Float, PyTree
from dal_jax.search import HostScore

MapFunction = Callable[[PyTree, Any, Any], Array]

THRESHOLD = 0.8  # default threshold, in units of the score


class Localizer(NamedTuple):
    """A score function of images, with its arrays; the region is where `score > threshold`.

    The functions are pure and hashable and capture no arrays; equal functions share one compiled
    program. `score` and `reconstruct` compute in the dtype of the image (float64 without touching
    JAX's global setting).

    Example:
        >>> def brightness(params, draws, x):
        ...     return x.sum(-1)
        >>> localizer = from_score(brightness, (2, 2, 1), threshold=0.5)
        >>> localizer.region(np.eye(2)[..., None]).tolist()
        [[True, False], [False, True]]
    """

    score_fn: MapFunction  # (params, draws, x (H, W, C)) -> (H, W)
    reconstruct_fn: MapFunction  # (params, draws, x (H, W, C)) -> (H, W, C)
    params: PyTree  # of arrays
    draws: Any  # as the functions take them, for instance (1 + steps, H, W, C)
    threshold: float  # positive, in units of the score
    image_shape: tuple[int, int, int]  # (H, W, C)

    def score(self, x: np.ndarray | Array) -> Float[np.ndarray, "H W"]:
        """Compute the score map of an image.

        Args:
            x: (H, W, C) finite image; float32 or float64, other types are converted to float64.

        Returns:
            (H, W), in the dtype of x.

        Raises:
            InputError: `x` has another shape than `image_shape`, or values that are not finite.
        """
        return self._run(self.score_fn, x=x)[0]

    def reconstruct(self, x: np.ndarray | Array) -> Float[np.ndarray, "H W C"]:
        """Compute the normal-looking counterpart of an image.

        Args:
            x: (H, W, C) finite image; float32 or float64, other types are converted to float64.

        Returns:
            (H, W, C), in the dtype of x.

        Raises:
            InputError: `x` has another shape than `image_shape`, or values that are not finite.
        """
        return self._run(self.reconstruct_fn, x=x)[0]

    def evaluate(
        self, x: Float[np.ndarray, "H W C"]
    ) -> tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H W C"]]:
        """Compute the score map and the reconstruction together, for the price of one.

        Args:
            x: Image, as in `score`.

        Returns:
            (score, reconstruction), in the dtype of x.

        Raises:
            InputError: `x` has another shape than `image_shape`, or values that are not finite.
        """
        score, reconstruction = self._run(self.score_fn, self.reconstruct_fn, x=x)
        return score, reconstruction

    def region(self, x: np.ndarray | Array) -> Bool[np.ndarray, "H W"]:
        """Flag the pixels whose score is above the threshold.

        Args:
            x: (H, W, C) finite image.

        Returns:
            (H, W) bool.

        Raises:
            InputError: The image does not fit.
        """
        return self.score(x).astype(np.float64) > self.threshold

    def with_draws(self, draws: Any) -> "Localizer":
        """Return the same localizer with other draws.

        Args:
            draws: An array of the shape of the present draws, finite.

        Returns:
            A new localizer.

        Raises:
            InputError: The draws have another shape, or values that are not finite.
        """
        return self._replace(draws=check_draws(draws, np.shape(self.draws)))

    def with_threshold(self, threshold: float) -> "Localizer":
        """Return the same localizer with another threshold.

        Args:
            threshold: Threshold, positive and finite, in units of the score.

        Returns:
            A new localizer.

        Raises:
            InputError: The threshold is not positive and finite.
        """
        return self._replace(threshold=check_threshold(threshold))

    def _run(self, *functions: MapFunction, x: Any) -> list[np.ndarray]:
        image = np.asarray(x)
        if image.dtype != np.float32:
            image = image.astype(np.float64)
        if image.shape != tuple(self.image_shape):
            raise InputError(f"x: got shape {image.shape}, expected {tuple(self.image_shape)}")
        if not np.isfinite(image).all():
            raise InputError("x: got values that are not finite, expected finite pixels")
        if isinstance(self.score_fn, HostScore):
            score = self.score_fn.score_batch(image[None])[0].astype(image.dtype)
            none = np.full_like(image, np.nan)
            return [score if function is self.score_fn else none for function in functions]
        wide = enable_x64() if image.dtype == np.float64 else contextlib.nullcontext()
        with wide:
            params, draws = cast_floats((self.params, self.draws), image.dtype)
            return [np.asarray(v) for v in _call(functions, params, draws, image)]


@partial(jax.jit, static_argnums=0)
def _call(
    functions: tuple[MapFunction, ...], params: PyTree, draws: PyTree, x: Array
) -> list[Array]:
    # In one program the compiler computes the common part of the functions once.
    return [function(params, draws, x) for function in functions]


def check_draws(draws: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Check the shape of draws, and that they are finite.

    Args:
        draws: Draws to be checked.
        shape: Expected shape.

    Returns:
        The draws, as a numpy array of float32 or float64.

    Raises:
        InputError: The draws do not fit.

    Example:
        >>> check_draws([[0.5], [-1.0]], (2, 1)).dtype
        dtype('float64')
    """
    array = np.asarray(draws)
    if array.shape != tuple(shape):
        raise InputError(f"draws: got shape {array.shape}, expected {tuple(shape)}")
    if array.dtype != np.float32:
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError("draws: got values that are not finite, expected finite numbers")
    return array


def make_draws(draws: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Check an array of draws, or draw standard normal numbers from a seed.

    Args:
        draws: Array, seed, or None for seed 0.
        shape: Shape of the draws.

    Returns:
        The draws.

    Raises:
        InputError: The draws do not fit.
    """
    if draws is None or isinstance(draws, int | np.integer):
        if draws is not None and draws < 0:
            raise InputError(f"draws: got a seed of {draws}, expected 0 or above")
        return np.random.default_rng(draws or 0).standard_normal(shape)
    return check_draws(draws, shape)


def check_threshold(threshold: float) -> float:
    """Check that a threshold is positive and finite.

    Args:
        threshold: Threshold, in units of the score.

    Returns:
        The threshold as a float.

    Raises:
        InputError: The threshold is not positive and finite.

    Example:
        >>> check_threshold(1)
        1.0
    """
    if np.ndim(threshold) != 0 or not 0.0 < threshold < np.inf:
        raise InputError(f"threshold: got {threshold}, expected a positive finite number")
    return float(threshold)


def from_score(
    score_fn: MapFunction,
    image_shape: tuple[int, ...],
    threshold: float,
    params: PyTree = (),
    draws: Any = None,
    reconstruct_fn: MapFunction | None = None,
) -> Localizer:
    """Wrap any score function as a localizer.

    Args:
        score_fn: (params, draws, x (H, W, C)) -> score (H, W); pure, hashable, no captured arrays.
        image_shape: Shape (H, W, C) of the images.
        threshold: Threshold, positive, in units of the score.
        params: Pytree of arrays handed to the functions.
        draws: Array handed to the functions; None gives an empty one.
        reconstruct_fn: (params, draws, x) -> (H, W, C); None gives NaN as the reconstruction.

    Returns:
        The localizer.

    Raises:
        InputError: The image shape or the threshold does not fit.

    Example:
        >>> def brightness(params, draws, x):
        ...     return x.sum(-1)
        >>> from_score(brightness, (2, 2, 1), 0.5).region(np.eye(2)[..., None]).sum().item()
        2
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(f"image_shape: got {image_shape}, expected (H, W, C)")
    shape = (image_shape[0], image_shape[1], image_shape[2])
    if draws is None:
        draws = np.zeros((0, *shape))
    return Localizer(
        score_fn,
        reconstruct_fn or _no_reconstruction,
        params,
        draws,
        check_threshold(threshold),
        shape,
    )


def _no_reconstruction(params: PyTree, draws: PyTree, x: Array) -> Array:
    return jnp.full_like(x, jnp.nan)


@dataclass(frozen=True)
class _Rescaled:
    function: MapFunction

    def __call__(self, params: PyTree, draws: PyTree, x: Array) -> Array:
        return self.function(params, draws, x / jnp.sqrt(jnp.mean(x**2)))


@dataclass(frozen=True)
class _RescaledOnHost(_Rescaled):
    """The same for a `HostScore`, with the division in float64."""

    function: Any

    @property
    def batch_size(self) -> int:
        return self.function.batch_size

    @property
    def resolution(self) -> str:
        return self.function.resolution

    def score_batch(self, images: Float[np.ndarray, "k H W C"]) -> Float[np.ndarray, "k H W"]:
        wide = images.astype(np.float64)
        scales = np.sqrt(np.mean(wide**2, axis=(1, 2, 3), keepdims=True))
        constant = scales == 0  # their scores are NaN
        score = self.function.score_batch(wide / np.where(constant, 1, scales))
        return np.where(constant[..., 0], np.nan, score)


def with_rescaling(localizer: Localizer) -> Localizer:
    """Make the division of an image by its own deviation a part of the localizer.

    `score'(x) = score(x / sqrt(mean x^2))`, the mean over pixels and channels. An image that was
    divided by its own deviation has the same score as before. Along the line of a test the
    deviation changes; the new localizer divides again at each point. The score is no longer
    piecewise affine, so that only the adaptive engine applies.

    Args:
        localizer: Localizer of images (H, W, C) of mean 0 and deviation 1.

    Returns:
        A localizer whose score does not depend on an image's scale; NaN for an image of zeros.

    Example:
        >>> from dal_jax.localizers import from_score
        >>> localizer = from_score(lambda params, draws, x: abs(x[..., 0]), (1, 2, 1), 1.0)
        >>> with_rescaling(localizer).score([[[3.0], [-3.0]]]).tolist()
        [[1.0, 1.0]]
    """
    scaled: Any = _RescaledOnHost if isinstance(localizer.score_fn, HostScore) else _Rescaled
    score, reconstruct = scaled(localizer.score_fn), _Rescaled(localizer.reconstruct_fn)
    return localizer._replace(score_fn=score, reconstruct_fn=reconstruct)


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
