"""The views of an image: their places, and the foreground, background and scale of each."""

import importlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._preparation import Fitted, Preparation


def interior(preparation: Preparation, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the height and width of the image without its border."""
    height, width = (n - 2 * preparation.border for n in shape[:2])
    least = 2 if preparation.view == "resize" else preparation.extent
    if min(height, width) < least:
        border = f" without a border of {preparation.border}" if preparation.border else ""
        raise InputError(
            f"image of {shape[0]} by {shape[1]} pixels{border}: "
            f"view {preparation.view!r} needs {least} by {least}"
        )
    return height, width


def windows(preparation: Preparation, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return corners and extents (V, 2) of the views, in pixels of the image."""
    sides = interior(preparation, shape)
    if preparation.view == "resize":
        return np.array([[preparation.border] * 2]), np.array([sides])
    extent = preparation.extent
    if preparation.view == "crop":
        corners = np.array([[(side - extent) // 2 for side in sides]])
    else:
        stride = (preparation.size - preparation.overlap) * preparation.reduce
        rows, columns = (starts(side, extent, stride) for side in sides)
        corners = np.array([(row, column) for row in rows for column in columns])
    return corners + preparation.border, np.full((len(corners), 2), extent)


def starts(side: int, extent: int, stride: int) -> list[int]:
    """Return the first pixel of each tile of a side; the last tile is moved inwards to fit."""
    return sorted({min(at, side - extent) for at in range(0, side - extent + stride, stride)})


def cut(pixels: np.ndarray, corner: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Cut out the part of an image that a view covers.

    Args:
        pixels: Image (H, W, ...).
        corner: Row and column of the first pixel of the view.
        extent: Height and width of the view, in pixels of the image.

    Returns:
        The part (height, width, ...), a view of the array.

    Example:
        >>> cut(np.arange(6).reshape(2, 3), np.array([0, 1]), np.array([2, 2])).tolist()
        [[1, 2], [4, 5]]
    """
    (top, left), (height, width) = corner, extent
    return pixels[top : top + height, left : left + width]


def shrink(part: np.ndarray, preparation: Preparation) -> np.ndarray:
    """Resize the pixels (h, w, C) of a window to the size of a view, anti-aliased."""
    size, each = preparation.size, preparation.reduce
    if part.shape[:2] == (size * each, size * each):
        return part.reshape(size, each, size, each, -1).mean((1, 3))
    # Imported late: the import is slow, and only resizing needs it.
    transform = importlib.import_module("skimage.transform")
    return transform.resize(
        part, (size, size), order=1, mode="reflect", anti_aliasing=True, preserve_range=True
    )


def shrink_mask(part: np.ndarray, size: int) -> np.ndarray:
    """Mark each pixel of a view that touches a marked pixel (h, w) of its window."""
    rows = np.stack([part[low:high].any(0) for low, high in _cells(part.shape[0], size)])
    return np.stack([rows[:, low:high].any(1) for low, high in _cells(part.shape[1], size)], axis=1)


def enlarge(grid: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Enlarge a map of a view to the pixels of the image that the view covers.

    Args:
        grid: Map (h, w) of the view.
        extent: Height and width of the view, in pixels of the image.

    Returns:
        Map (height, width); each pixel has the value of the view's pixel that it lies in.

    Example:
        >>> enlarge(np.array([[0, 1], [2, 3]]), np.array([2, 4])).tolist()
        [[0, 0, 1, 1], [2, 2, 3, 3]]
    """
    sides = zip(extent, grid.shape[:2], strict=True)
    rows, columns = (((2 * np.arange(n) + 1) * size) // (2 * n) for n, size in sides)
    return grid[np.ix_(rows, columns)]


def footprint(region: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Mark the pixels of the image that a region of a view covers.

    Args:
        region: Mask (h, w) of the view.
        extent: Height and width of the view, in pixels of the image.

    Returns:
        Mask (height, width): `enlarge` of the region. Where a view has more pixels than its image
        and nothing of the region is left, the pixels in which the region's pixels have their
        centres; never empty unless the region is.

    Example:
        >>> fine = np.array([[False, True, False], [False] * 3, [False] * 3])
        >>> enlarge(fine, np.array([1, 1])).any().item()
        False
        >>> footprint(fine, np.array([1, 1])).tolist()
        [[True]]
    """
    covered = enlarge(region, extent)
    if not covered.any():
        rows, columns = (
            (2 * at + 1) * side // (2 * size)
            for at, side, size in zip(np.nonzero(region), extent, region.shape, strict=True)
        )
        covered[rows, columns] = True
    return covered


def tile_weights(preparation: Preparation) -> np.ndarray:
    """Return weights (size, size) of a tile where tiles meet, which fall off towards its edges."""
    edge = np.minimum(np.arange(preparation.size), np.arange(preparation.size)[::-1]) + 1
    ramp = np.minimum(edge, preparation.overlap + 1) / (preparation.overlap + 1)
    return np.outer(ramp, ramp)


def _cells(side: int, size: int) -> list[tuple[int, int]]:
    """Return the first and last + 1 pixel of a side that each of `size` cells touches."""
    return [(k * side // size, -((k + 1) * side // -size)) for k in range(size)]


# Least foreground of a view in pixels: twice the number of coefficients of its background.
FOREGROUND = 12
# A deviation below this share of the largest value is rounding.
_CONTRAST = 1e-9


class Views(NamedTuple):
    """The views of one image.

    Example:
        >>> from dal_jax.images import fit, views
        >>> ramp = np.arange(48.0).reshape(6, 8, 1) ** 3
        >>> found = views(fit(Preparation(size=4, view="tile", intensity="raw"), [ramp]), ramp)
        >>> found.pixels.shape, found.corners[-1].tolist(), found.extents[-1].tolist()
        ((4, 4, 4, 1), [2, 4], [4, 4])
    """

    pixels: np.ndarray  # (V, size, size, C) float64
    corners: np.ndarray  # (V, 2) row and column of the first pixel of the image covered
    extents: np.ndarray  # (V, 2) height and width covered, in pixels of the image
    scale: np.ndarray  # (V,) divisor of the pixels; NaN for a view without foreground
    foreground: np.ndarray  # (V, size, size) bool, pixels that may be tested


def as_channels(preparation: Preparation, image: np.ndarray) -> np.ndarray:
    """Return the image as float64 (H, W, C), averaged over channels if the settings ask for it."""
    pixels = np.asarray(image, np.float64)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise InputError(f"image of shape {pixels.shape}, expected (H, W, C)")
    if not np.isfinite(pixels).all():
        raise InputError("image with NaN or infinite pixels")
    if preparation.intensity == "log" and pixels.min() < 0:
        raise InputError("image with negative pixels, expected none for intensity 'log'")
    return pixels.mean(-1, keepdims=True) if preparation.grey else pixels


def cut_views(
    fitted: Fitted,
    pixels: np.ndarray,
    corners: np.ndarray,
    extents: np.ndarray,
    own: bool = False,
) -> Views:
    """Cut and prepare the views of a checked image; with `own`, by its own foreground."""
    found = list(flat_views(fitted, pixels, corners, extents, own))
    scaled = [_scaled(fitted, view, shown) for view, shown in found]
    return Views(
        np.stack([view for view, _ in scaled]),
        corners,
        extents,
        np.array([scale for _, scale in scaled]),
        np.stack([shown for _, shown in found]),
    )


def flat_views(
    fitted: Fitted,
    pixels: np.ndarray,
    corners: np.ndarray,
    extents: np.ndarray,
    own: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return each view of a checked image after intensity and background, and its foreground.

    Tested views have the foreground of the training images: one taken from the view itself would
    depend on its noise. The image's own foreground serves for training views (`own`).
    """
    preparation = fitted.preparation
    if pixels.shape[-1] != fitted.channels:
        found, expected = pixels.shape[-1], fitted.channels
        raise InputError(f"image of {found} channels, expected {expected} as in training")
    places = list(zip(corners, extents, strict=True))
    shown = own_foregrounds(preparation, pixels, places) if own else [fitted.shown] * len(places)
    if not any(part.any() for part in shown):
        raise InputError("image without foreground")
    for place, part in zip(places, shown, strict=True):
        yield _flat(fitted, shrink(cut(pixels, *place), preparation), part), part


def own_foregrounds(
    preparation: Preparation, pixels: np.ndarray, places: list[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """Return the pixels (size, size) of each view of which half or more is foreground."""
    if preparation.foreground == "none":
        return [np.ones((preparation.size, preparation.size), bool) for _ in places]
    mask = _foreground(preparation, pixels).astype(np.float64)[..., None]
    shown = [shrink(cut(mask, *place), preparation)[..., 0] >= 0.5 for place in places]
    return [part & (part.sum() >= FOREGROUND) for part in shown]


def _foreground(preparation: Preparation, pixels: np.ndarray) -> np.ndarray:
    if preparation.foreground == "nonzero":
        return (pixels != 0).any(-1)
    grey = pixels.mean(-1)
    if np.ptp(grey) == 0:
        return np.zeros(grey.shape, bool)
    # Imported late: the import is slow, and only this choice needs it.
    return grey > importlib.import_module("skimage.filters").threshold_otsu(grey)


def _flat(fitted: Fitted, view: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return a view after intensity and background; refuse one without contrast after either."""
    if not shown.any():
        return np.zeros_like(view)
    _need_contrast(view[shown], view[shown], "its pixels are equal")
    if fitted.preparation.intensity == "log":
        view = np.log(np.maximum(view, fitted.floor))
    flat = view
    if fitted.preparation.background == "quadratic":
        flat = _without_quadratic(view, shown)
    if fitted.preparation.scale == "view":
        _need_contrast(flat[shown], view[shown], "nothing is left after its background")
    return flat


def _need_contrast(values: np.ndarray, before: np.ndarray, why: str) -> None:
    largest = float(np.abs(before).max())
    if not values.std(0).max() > _CONTRAST * largest:
        raise InputError(f"view without contrast: {why}")


def _without_quadratic(view: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Subtract the polynomial of degree 2 fitted by least squares, channel by channel."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in view.shape[:2]), indexing="ij")
    terms = [np.ones_like(rows), rows, columns, rows * columns, rows**2, columns**2]
    basis = np.stack(terms, axis=-1)
    coefficients = np.linalg.lstsq(basis[shown], view[shown], rcond=None)[0]
    return view - basis @ coefficients


def _scaled(fitted: Fitted, view: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, float]:
    if not shown.any():
        return np.zeros_like(view), float("nan")
    mean, sd = np.array(fitted.mean), fitted.sd
    if fitted.preparation.scale == "view":
        mean = view[shown].mean(0)
        sd = float(np.sqrt(((view[shown] - mean) ** 2).mean()))
    return np.where(shown[..., None], (view - mean) / sd, 0.0), sd
