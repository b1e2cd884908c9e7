"""Regions drawn on images, as outlines or as tints coloured by the decision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.images import atomic_path

# Significant regions are red, other flagged regions blue.
SIGNIFICANT, FLAGGED = (0.84, 0.15, 0.16), (0.12, 0.47, 0.71)
TRUTH = (0.95, 0.85, 0.1)
_OPACITY = 0.45
_LEAST_SIDE = 256  # pixels; smaller images are enlarged by a whole number
_ROWS = 256  # rows painted at a time, because large images would take much memory at once


def overlay(
    image: np.ndarray,
    region: np.ndarray,
    significant: np.ndarray,
    path: str | Path,
    *,
    truth: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
    labels: Sequence[tuple[str, tuple[int, int]]] = (),
) -> None:
    """Write an image as a picture on a fixed grey scale, with its flagged pixels tinted.

    The score map is not drawn and does not change the grey scale, so that a normal image without a
    region keeps its appearance.

    Args:
        image: (H, W, C) image; unless C is 3, the first channel is shown.
        region: (H, W) bool mask of the flagged pixels.
        significant: (H, W) bool mask of the pixels of significant regions.
        path: Path of the file, .png.
        truth: (H, W) bool mask, whose edge is drawn in yellow, or None.
        limits: Values shown as black and as white; None for 0 and 1 if all pixels lie between
            them, and for the extremes of the image otherwise.
        labels: Texts, each with the pixel (row, column) above which it is written.

    Raises:
        InputError: The shapes differ, the package pillow is missing, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> region = np.eye(4, dtype=bool)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     overlay(np.zeros((4, 4, 1)), region, np.zeros_like(region), f"{folder}/a.png")
        ...     print(Path(folder, "a.png").is_file())
        True
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise InputError('overlay: needs pillow: pip install "dal-jax[images]"') from error
    masks = {"region": region, "significant": significant, "truth": truth}
    for name, mask in masks.items():
        if mask is not None and mask.shape != image.shape[:2]:
            raise InputError(f"{name} has shape {mask.shape}, expected {image.shape[:2]}")
    pixels = _painted(image, region, significant, None if truth is None else _edge(truth), limits)
    times = max(1, -(-_LEAST_SIDE // max(pixels.shape[:2])))
    picture = Image.fromarray(np.repeat(np.repeat(pixels, times, axis=0), times, axis=1))
    pen = ImageDraw.Draw(picture)
    for text, (row, column) in labels:
        left, top, right, bottom = pen.textbbox((0, 0), text)
        x = min(column * times, picture.width - right)
        y = row * times - bottom if row * times >= bottom else row * times
        pen.rectangle((x + left, y + top, x + right, y + bottom), fill="black")
        pen.text((x, y), text, fill="white")
    with atomic_path(path) as temporary:
        picture.save(temporary)


def _painted(
    image: np.ndarray,
    region: np.ndarray,
    significant: np.ndarray,
    edge: np.ndarray | None,
    limits: tuple[float, float] | None,
) -> np.ndarray:
    """Return the displayed pixels, (H, W, 3) in 8 bits, painted some rows at a time."""
    if limits is None:
        low, high = float(image.min()), float(image.max())
        limits = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    painted = np.empty((*image.shape[:2], 3), np.uint8)
    for top in range(0, len(image), _ROWS):
        rows = slice(top, top + _ROWS)
        pixels, called = _grey(image[rows], limits), significant[rows]
        for mask, colour in ((region[rows] & ~called, FLAGGED), (called, SIGNIFICANT)):
            pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * np.array(colour)
        if edge is not None:
            pixels[edge[rows]] = TRUTH
        painted[rows] = (pixels * 255).round()
    return painted


def _grey(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return pixels on the grey scale, (h, W, 3) in [0, 1]."""
    values = np.asarray(image, np.float64)
    low, high = limits
    shown = np.clip((values - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    return shown.copy() if shown.shape[-1] == 3 else np.repeat(shown[..., :1], 3, axis=-1)


def _edge(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask that have a neighbour outside it, diagonals excluded."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def outline(region: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "K 2 2"]:
    """Return the pixel edges that separate a region from the rest of the image.

    Args:
        region: (H, W) bool mask.

    Returns:
        K segments ((x0, y0), (x1, y1)) in the coordinates of `imshow`, where pixel (i, j) covers
        [j - 1/2, j + 1/2] x [i - 1/2, i + 1/2]; K is 0 for an empty region.

    Example:
        >>> import numpy as np
        >>> outline(np.array([[True]])).shape
        (4, 2, 2)
    """
    padded = np.pad(np.asarray(region, bool), 1)
    i, j = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([np.stack([j - 0.5, i - 0.5], -1), np.stack([j + 0.5, i - 0.5], -1)], 1)
    i, j = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([np.stack([j - 0.5, i - 0.5], -1), np.stack([j - 0.5, i + 0.5], -1)], 1)
    return np.concatenate([level, upright])
