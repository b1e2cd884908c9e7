"""Preparation of images: the fit on training images, views, and maps put together again."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._views import (
    FOREGROUND,
    Fitted,
    Preparation,
    Views,
    as_channels,
    cut,
    cut_views,
    enlarge,
    flat_views,
    interior,
    own_foregrounds,
    shrink_mask,
    tile_weights,
    windows,
)

# Number of pixels that an image contributes to the quantiles.
_SAMPLED = 4096
# Least share of the training images in which a pixel of the foreground is foreground.
_IN_COMMON = 0.95
# Share of an image's pixels outside the range of the training pixels from which a warning is given:
# more than a defect takes, which is a ninth of the image in the experiments.
_STRANGE = 0.2
# Quantiles of the pixels that delimit the range of the training images.
_LOW, _HIGH = 0.001, 0.999


def fit(
    preparation: Preparation, images: Iterable[np.ndarray], names: Sequence[str] = ()
) -> Fitted:
    """Fit the statistics of a preparation on training images, and on nothing else.

    Args:
        preparation: Settings of the preparation.
        images: Training images (H, W, C), of any sizes; read once, and once more for each of scale
            "train" and a foreground, with one image in memory at a time.
        names: Names of the images, for errors, which otherwise give their numbers.

    Returns:
        The preparation with its statistics.

    Raises:
        InputError: There are no images; numbers of channels differ; `views` refuses an image (for
            scale "train"), or there is no brightness for intensity "log"; there is no common
            foreground; or images is an iterator, which ends after the first pass, with scale
            "train" or a foreground.

    Example:
        >>> ramp = np.arange(64.0).reshape(8, 8, 1) ** 3
        >>> fit(Preparation(size=4, intensity="raw"), [ramp]).channels
        1
    """
    again = preparation.scale == "train" or preparation.foreground != "none"
    if again and iter(images) is images:
        raise InputError("images: an iterator, expected a list or what can be gone through twice")
    fitted = _intensities(preparation, images, names)
    if preparation.intensity == "log" and fitted.floor <= 0:
        raise InputError("intensity 'log': the training images have no positive pixels")
    if preparation.foreground != "none":
        fitted = replace(fitted, foreground=_in_common(preparation, images, names))
    return _moments(fitted, images, names) if preparation.scale == "train" else fitted


def views(fitted: Fitted, image: np.ndarray) -> Views:
    """Cut an image into views and prepare them.

    Args:
        fitted: Preparation from `fit`.
        image: Image (H, W, C), finite, of any size that holds a view.

    Returns:
        The views; with view "tile" row by row.

    Raises:
        InputError: The image is too small, has another number of channels, NaN or infinite pixels,
            negative pixels with intensity "log", or a view without contrast.

    Example:
        >>> ramp = np.arange(48.0).reshape(6, 8, 1) ** 3
        >>> fitted = fit(Preparation(size=4, view="tile", intensity="raw"), [ramp])
        >>> views(fitted, ramp).corners.tolist()
        [[0, 0], [0, 4], [2, 0], [2, 4]]
    """
    pixels = as_channels(fitted.preparation, image)
    return cut_views(fitted, pixels, *windows(fitted.preparation, pixels.shape))


def random_views(fitted: Fitted, image: np.ndarray, count: int, seed: int) -> Views:
    """Cut crops at random places of the interior, for training.

    Args:
        fitted: Preparation from `fit`, with view "crop" or "tile".
        image: Image (H, W, C), as for `views`.
        count: Number of crops, 1 or more.
        seed: Seed of the places.

    Returns:
        The views, prepared as by `views`, but with the foreground of this image. A view without
        foreground holds zeros.

    Raises:
        InputError: As in `views`, or the view is "resize", or no view has foreground.

    Example:
        >>> ramp = np.arange(48.0).reshape(6, 8, 1) ** 3
        >>> fitted = fit(Preparation(size=4, view="crop", intensity="raw"), [ramp])
        >>> random_views(fitted, ramp, count=3, seed=0).pixels.shape
        (3, 4, 4, 1)
    """
    preparation = fitted.preparation
    if preparation.view == "resize" or count < 1:
        raise InputError(f"{count} random views of view {preparation.view!r}: there are none")
    pixels = as_channels(preparation, image)
    sides, extent = interior(preparation, pixels.shape), preparation.extent
    free = [side - extent + 1 for side in sides]
    corners = np.random.default_rng(seed).integers(0, free, (count, 2)) + preparation.border
    return cut_views(fitted, pixels, corners, np.full((count, 2), extent), own=True)


def foreign(fitted: Fitted, image: np.ndarray) -> str:
    """Describe how the pixels of an image lie outside the range of the training images.

    Args:
        fitted: Preparation from `fit`.
        image: Image (H, W, C), as for `views`.

    Returns:
        A warning, or "" if there is nothing to report.

    Raises:
        InputError: The image must be in other units: half of its pixels are above or below the
            training pixels by more than their whole range, or its brightest ones are below a
            quarter of those of the dimmest training image.

    Example:
        >>> images = 0.5 + np.random.default_rng(0).uniform(size=(4, 8, 8, 1))
        >>> fitted = fit(Preparation(size=8), images)
        >>> foreign(fitted, images[0])
        ''
    """
    pixels = as_channels(fitted.preparation, image)
    sides = np.array(interior(fitted.preparation, pixels.shape))
    inner = cut(pixels, np.full(2, fitted.preparation.border), sides)
    low, _, high = fitted.quantiles
    outside = float(((inner < low) | (inner > high)).mean())
    middle, top = (float(q) for q in np.quantile(inner, [0.5, _HIGH]))
    told = f"{outside:.0%} of its pixels are outside of {low:.3g} to {high:.3g}, the training's"
    if not 2 * low - high <= middle <= 2 * high - low:
        raise InputError(f"{told}, by far: an image in other units than the training images?")
    least = low if fitted.dimmest is None else fitted.dimmest
    dim = f"its brightest pixels, {top:.3g}, are below those of all training images, {least:.3g}"
    if top - low < (least - low) / 4:
        raise InputError(f"{dim}, by far: an image in other units than the training images?")
    if outside > _STRANGE:
        return told
    return dim if top - low < (least - low) / 2 else ""


def mask_views(fitted: Fitted, mask: np.ndarray, found: Views) -> np.ndarray:
    """Cut a mask in the same way as the views of its image.

    Args:
        fitted: Preparation from `fit`.
        mask: Mask of the image, bool (H, W).
        found: Views of the image.

    Returns:
        Masks of the views, bool (V, size, size): true where a pixel of the view touches a marked
        pixel of the image.

    Example:
        >>> ramp = np.arange(64.0).reshape(8, 8, 1) ** 3
        >>> fitted = fit(Preparation(size=4, intensity="raw"), [ramp])
        >>> int(mask_views(fitted, ramp[..., 0] == 27, views(fitted, ramp)).sum())
        1
    """
    places = zip(found.corners, found.extents, strict=True)
    size = fitted.preparation.size
    return np.stack([shrink_mask(cut(mask, corner, extent), size) for corner, extent in places])


def stitch(
    fitted: Fitted, maps: np.ndarray, found: Views, shape: tuple[int, ...], fill: float = np.nan
) -> np.ndarray:
    """Combine maps of the views into a map of the image.

    Where tiles overlap, their values are averaged with weights that fall off towards the edges, so
    that there is no seam; a pixel of a map that stands for several of the image is repeated.

    Args:
        fitted: Preparation from `fit`.
        maps: Maps (V, size, size), such as scores.
        found: Views of the image.
        shape: Shape of the image, whose first two entries are used.
        fill: Value of pixels that no view covers: the border, and the surroundings of a crop.

    Returns:
        The map, float64 (H, W).

    Raises:
        InputError: The number or size of the maps differs from that of the views.

    Example:
        >>> ramp = np.arange(48.0).reshape(6, 8, 1) ** 3
        >>> fitted = fit(Preparation(size=4, view="tile", intensity="raw"), [ramp])
        >>> float(stitch(fitted, np.ones((4, 4, 4)), views(fitted, ramp), ramp.shape).min())
        1.0
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
    np.divide(total, weight, out=total, where=covered)
    total[~covered] = fill
    return total


def _intensities(
    preparation: Preparation, images: Iterable[np.ndarray], names: Sequence[str]
) -> Fitted:
    """Return the quantiles of the pixels within the border; other statistics mean no scaling."""
    drawn, channels, count, dimmest = [], dict[int, str](), 0, np.inf
    for image in images:
        with _named(count, names):
            pixels = as_channels(preparation, image)
            sides = np.array(interior(preparation, pixels.shape))
        inner = cut(pixels, np.full(2, preparation.border), sides).reshape(-1)
        drawn.append(inner[:: max(1, len(inner) // _SAMPLED)])
        if np.ptp(inner):  # a black image is refused, and has no influence on the others
            dimmest = min(dimmest, float(np.quantile(inner, _HIGH)))
        channels.setdefault(pixels.shape[-1], _name(count, names))
        count += 1
    if not count:
        raise InputError("images: none given, expected the training images")
    if len(channels) > 1:
        told = " and ".join(f"{number} (image {name})" for number, name in channels.items())
        raise InputError(f"images with {told} channels, expected one number, or grey")
    low, middle, high = (float(q) for q in np.quantile(np.concatenate(drawn), [_LOW, 0.5, _HIGH]))
    number = next(iter(channels))
    least = dimmest if np.isfinite(dimmest) else None
    return Fitted(preparation, number, (low, middle, high), (0.0,) * number, 1.0, count, least)


def _in_common(
    preparation: Preparation, images: Iterable[np.ndarray], names: Sequence[str]
) -> tuple[int, ...]:
    """Return the runs of `Fitted.foreground`: pixels that are foreground in nearly all images."""
    counts, count = np.zeros((preparation.size, preparation.size), int), 0
    for k, image in enumerate(images):
        with _named(k, names):
            pixels = as_channels(preparation, image)
            places = list(zip(*windows(preparation, pixels.shape), strict=True))
            own = own_foregrounds(preparation, pixels, places)[0]
        counts, count = counts + own, count + own.any()  # images without foreground do not count
    shown = counts >= max(1, _IN_COMMON * count)
    if shown.sum() < FOREGROUND:
        raise InputError(
            f"foreground {preparation.foreground!r}: {shown.sum()} pixels of a view are foreground "
            f"in {_IN_COMMON:.0%} of the training images, expected {FOREGROUND} or more: is what "
            "they show in the same place?"
        )
    changes = np.flatnonzero(np.diff(shown.ravel(), prepend=False))
    return tuple(int(run) for run in np.diff(changes, prepend=0, append=shown.size))


def _moments(fitted: Fitted, images: Iterable[np.ndarray], names: Sequence[str]) -> Fitted:
    """Add the mean and deviation of the training views before scaling, merged image by image."""
    count, mean, squares = 0, np.zeros(fitted.channels), np.zeros(fitted.channels)
    for k, image in enumerate(images):
        with _named(k, names):
            values = _flattened(fitted, image)
        delta, total = values.mean(0) - mean, count + len(values)
        squares += values.var(0) * len(values) + delta**2 * count * len(values) / total
        mean, count = mean + delta * len(values) / total, total
    sd = float(np.sqrt(squares.sum() / (count * fitted.channels)))
    if not sd > 0:
        raise InputError("scale 'train': the training images have no contrast")
    return replace(fitted, mean=tuple(float(v) for v in mean), sd=sd)


def _flattened(fitted: Fitted, image: np.ndarray) -> np.ndarray:
    """Return all pixels (n, C) of an image that scaling counts."""
    pixels = as_channels(fitted.preparation, image)
    found = flat_views(fitted, pixels, *windows(fitted.preparation, pixels.shape))
    return np.concatenate([view[shown] for view, shown in found])


@contextlib.contextmanager
def _named(index: int, names: Sequence[str]) -> Iterator[None]:
    """Add the name of the training image to an error."""
    try:
        yield
    except InputError as error:
        raise InputError(f"training image {_name(index, names)}: {error}") from error


def _name(index: int, names: Sequence[str]) -> str:
    return repr(names[index]) if names else str(index)
