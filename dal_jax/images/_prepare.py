"""Preparing images: fitting on training images, cutting views, and putting maps together again."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._geometry import (
    cut,
    enlarge,
    interior,
    shrink_mask,
    tile_weights,
    windows,
)
from dal_jax.images._preparation import Fitted, Preparation
from dal_jax.images._views import Views, checked, cut_views, flat_views

# Pixels that an image contributes to the quantiles.
_SAMPLED = 4096


def fit(preparation: Preparation, images: Iterable[np.ndarray]) -> Fitted:
    """Fits the statistics of a preparation on training images, and on nothing else.

    Args:
        preparation: what is to be done.
        images: training images (H, W, C), of any sizes; gone through once, for scale "train" twice,
            one image in memory at a time.

    Returns:
        The preparation with its statistics.

    Raises:
        InputError: no images; numbers of channels that differ; an image that `views` refuses (for
            scale "train"), or no brightness for intensity "log"; for scale "train" an iterator,
            which ends after the first time.

    Example:
        >>> ramp = np.arange(64.0).reshape(8, 8, 1) ** 3
        >>> fit(Preparation(size=4, intensity="raw"), [ramp]).channels
        1

    Source: this project.
    """
    if preparation.scale == "train" and iter(images) is images:
        raise InputError("images: an iterator, expected a list or what can be gone through twice")
    fitted = _intensities(preparation, images)
    if preparation.intensity == "log" and fitted.floor <= 0:
        raise InputError("intensity 'log': the training images have no positive pixels")
    return _moments(fitted, images) if preparation.scale == "train" else fitted


def views(fitted: Fitted, image: np.ndarray) -> Views:
    """Cuts an image into views and prepares them.

    Args:
        fitted: what `fit` returned.
        image: (H, W, C), finite, of any size that holds a view.

    Returns:
        The views; with view "tile" row by row. A tile without foreground holds zeros.

    Raises:
        InputError: too small, another number of channels, NaN or infinite pixels, negative pixels
            with intensity "log", or a view without contrast or an image without foreground.

    Example:
        >>> ramp = np.arange(48.0).reshape(6, 8, 1) ** 3
        >>> fitted = fit(Preparation(size=4, view="tile", intensity="raw"), [ramp])
        >>> views(fitted, ramp).corners.tolist()
        [[0, 0], [0, 4], [2, 0], [2, 4]]

    Source: this project.
    """
    pixels = checked(fitted.preparation, image)
    return cut_views(fitted, pixels, *windows(fitted.preparation, pixels.shape))


def random_views(fitted: Fitted, image: np.ndarray, count: int, seed: int) -> Views:
    """Cuts crops at random places of the interior, for training.

    Args:
        fitted: what `fit` returned, with view "crop" or "tile".
        image: (H, W, C), as for `views`.
        count: of crops, 1 or more.
        seed: of the places.

    Returns:
        The views, prepared as `views` does.

    Raises:
        InputError: as `views`, or the view is "resize".

    Example:
        >>> ramp = np.arange(48.0).reshape(6, 8, 1) ** 3
        >>> fitted = fit(Preparation(size=4, view="crop", intensity="raw"), [ramp])
        >>> random_views(fitted, ramp, count=3, seed=0).pixels.shape
        (3, 4, 4, 1)

    Source: this project.
    """
    preparation = fitted.preparation
    if preparation.view == "resize" or count < 1:
        raise InputError(f"{count} random views of view {preparation.view!r}: there are none")
    pixels = checked(preparation, image)
    sides, extent = interior(preparation, pixels.shape), preparation.extent
    free = [side - extent + 1 for side in sides]
    corners = np.random.default_rng(seed).integers(0, free, (count, 2)) + preparation.border
    return cut_views(fitted, pixels, corners, np.full((count, 2), extent))


def mask_views(fitted: Fitted, mask: np.ndarray, found: Views) -> np.ndarray:
    """Cuts a mask as the views of its image were cut.

    Args:
        fitted: what `fit` returned.
        mask: bool (H, W), of the image.
        found: the views of the image.

    Returns:
        bool (V, size, size): true where a pixel of the view touches a marked pixel of the image.

    Example:
        >>> ramp = np.arange(64.0).reshape(8, 8, 1) ** 3
        >>> fitted = fit(Preparation(size=4, intensity="raw"), [ramp])
        >>> int(mask_views(fitted, ramp[..., 0] == 27, views(fitted, ramp)).sum())
        1

    Source: this project.
    """
    places = zip(found.corners, found.extents, strict=True)
    size = fitted.preparation.size
    return np.stack([shrink_mask(cut(mask, corner, extent), size) for corner, extent in places])


def stitch(
    fitted: Fitted, maps: np.ndarray, found: Views, shape: tuple[int, ...], fill: float = np.nan
) -> np.ndarray:
    """Puts maps of the views together to a map of the image.

    Where tiles overlap their values are averaged with weights that fall off towards the edges, so
    that there is no seam; a pixel of a map that stands for several of the image is repeated.

    Args:
        fitted: what `fit` returned.
        maps: (V, size, size), such as scores.
        found: the views of the image.
        shape: of the image, of which the first two are used.
        fill: for pixels that no view covers: the border, and what is outside a crop.

    Returns:
        The map, float64 (H, W).

    Raises:
        InputError: another number or size of maps.

    Example:
        >>> ramp = np.arange(48.0).reshape(6, 8, 1) ** 3
        >>> fitted = fit(Preparation(size=4, view="tile", intensity="raw"), [ramp])
        >>> float(stitch(fitted, np.ones((4, 4, 4)), views(fitted, ramp), ramp.shape).min())
        1.0

    Source: this project.
    """
    maps, size = np.asarray(maps, np.float64), fitted.preparation.size
    if maps.shape != (len(found.corners), size, size):
        expected = (len(found.corners), size, size)
        raise InputError(f"maps of shape {maps.shape}, expected {expected}")
    total, weight = np.zeros(shape[:2]), np.zeros(shape[:2])
    weights = tile_weights(fitted.preparation)
    for grid, corner, extent in zip(maps, found.corners, found.extents, strict=True):
        part = enlarge(weights, extent)
        cut(total, corner, extent)[...] += part * enlarge(grid, extent)
        cut(weight, corner, extent)[...] += part
    covered = weight > 0
    return np.where(covered, total / np.where(covered, weight, 1), fill)


def _intensities(preparation: Preparation, images: Iterable[np.ndarray]) -> Fitted:
    """Quantiles of the pixels within the border; the other statistics are those of no scaling."""
    drawn, channels, count = [], set[int](), 0
    for image in images:
        with _numbered(count):
            pixels = checked(preparation, image)
            sides = np.array(interior(preparation, pixels.shape))
        inner = cut(pixels, np.full(2, preparation.border), sides).reshape(-1)
        drawn.append(inner[:: max(1, len(inner) // _SAMPLED)])
        channels.add(pixels.shape[-1])
        count += 1
    if not count:
        raise InputError("images: none given, expected the training images")
    if len(channels) > 1:
        raise InputError(f"images with {sorted(channels)} channels, expected one number or grey")
    low, middle, high = (float(q) for q in np.quantile(np.concatenate(drawn), [0.001, 0.5, 0.999]))
    number = channels.pop()
    return Fitted(preparation, number, (low, middle, high), (0.0,) * number, 1.0, count)


def _moments(fitted: Fitted, images: Iterable[np.ndarray]) -> Fitted:
    """Mean and deviation of the training views before scaling, merged image by image."""
    count, mean, squares = 0, np.zeros(fitted.channels), np.zeros(fitted.channels)
    for k, image in enumerate(images):
        with _numbered(k):
            values = _flattened(fitted, image)
        delta, total = values.mean(0) - mean, count + len(values)
        squares += values.var(0) * len(values) + delta**2 * count * len(values) / total
        mean, count = mean + delta * len(values) / total, total
    sd = float(np.sqrt(squares.sum() / (count * fitted.channels)))
    if not sd > 0:
        raise InputError("scale 'train': the training images have no contrast")
    return replace(fitted, mean=tuple(float(v) for v in mean), sd=sd)


def _flattened(fitted: Fitted, image: np.ndarray) -> np.ndarray:
    """All pixels (n, C) of an image that scaling counts."""
    pixels = checked(fitted.preparation, image)
    found = flat_views(fitted, pixels, *windows(fitted.preparation, pixels.shape))
    return np.concatenate([view[shown] for view, shown in found])


@contextlib.contextmanager
def _numbered(index: int) -> Iterator[None]:
    """Says which training image an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"training image {index}: {error}") from error
