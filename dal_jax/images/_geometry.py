"""Where the views of an image lie, and how pixels, masks and maps move between the two."""

import importlib

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._preparation import Preparation


def interior(preparation: Preparation, shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the image without its border."""
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
    """Corners and extents (V, 2) of the views, in pixels of the image."""
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
    """Where tiles begin along one side; the last is moved inwards so that it fits."""
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
    """Brings the pixels (h, w, C) of a window to the size of a view, anti-aliased."""
    size, each = preparation.size, preparation.reduce
    if part.shape[:2] == (size * each, size * each):
        return part.reshape(size, each, size, each, -1).mean((1, 3))
    # Imported late: slow, and only resizing needs it.
    transform = importlib.import_module("skimage.transform")
    return transform.resize(
        part, (size, size), order=1, mode="reflect", anti_aliasing=True, preserve_range=True
    )


def shrink_mask(part: np.ndarray, size: int) -> np.ndarray:
    """Marks each pixel of a view that touches a marked pixel (h, w) of its window."""
    rows = np.stack([part[low:high].any(0) for low, high in _cells(part.shape[0], size)])
    return np.stack([rows[:, low:high].any(1) for low, high in _cells(part.shape[1], size)], axis=1)


def enlarge(grid: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Enlarge a map of a view to the pixels of the image that the view covers.

    Args:
        grid: Map (size, size) of the view.
        extent: Height and width of the view, in pixels of the image.

    Returns:
        (height, width): At each pixel the value of the view's pixel that it lies in.

    Example:
        >>> enlarge(np.array([[0, 1], [2, 3]]), np.array([2, 4])).tolist()
        [[0, 0, 1, 1], [2, 2, 3, 3]]
    """
    rows, columns = (((2 * np.arange(n) + 1) * grid.shape[0]) // (2 * n) for n in extent)
    return grid[np.ix_(rows, columns)]


def tile_weights(preparation: Preparation) -> np.ndarray:
    """Weights (size, size) of a tile where tiles meet: they fall off towards its edges."""
    edge = np.minimum(np.arange(preparation.size), np.arange(preparation.size)[::-1]) + 1
    ramp = np.minimum(edge, preparation.overlap + 1) / (preparation.overlap + 1)
    return np.outer(ramp, ramp)


def _cells(side: int, size: int) -> list[tuple[int, int]]:
    """First and last + 1 pixel of a side that each of `size` cells touches."""
    return [(k * side // size, -((k + 1) * side // -size)) for k in range(size)]
