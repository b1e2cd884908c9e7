"""Regions on images: as outlines, and as tints coloured by the decision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.images import atomic_path

# Red: significant. Blue: flagged, not significant.
SIGNIFICANT, FLAGGED = (0.84, 0.15, 0.16), (0.12, 0.47, 0.71)
TRUTH = (0.95, 0.85, 0.1)
_OPACITY = 0.45
_LEAST_SIDE = 256  # pixels; smaller images are enlarged by a whole number


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
    """Writes an image as a picture, its flagged pixels tinted, on a fixed scale of grey.

    A normal image without a region looks like itself: nothing is stretched by the image's own
    scores.

    Args:
        image: (H, W, C); of C other than 3 the first channel is shown.
        region: (H, W) bool, flagged pixels.
        significant: (H, W) bool, those of regions called significant.
        path: the file, .png.
        truth: (H, W) bool, edged in yellow, or None.
        limits: values shown as black and white; None: 0 and 1 for images within, else the image's
            own extremes.
        labels: texts and the pixels (row, column) above which they are written.

    Raises:
        InputError: shapes that do not fit, pillow is missing, or the file cannot be written.

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
    pixels = _grey(image, limits)
    masks = {"region": region, "significant": significant, "truth": truth}
    for name, mask in masks.items():
        if mask is not None and mask.shape != pixels.shape[:2]:
            raise InputError(f"{name} has shape {mask.shape}, expected {pixels.shape[:2]}")
    for mask, colour in ((region & ~significant, FLAGGED), (significant, SIGNIFICANT)):
        pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * np.array(colour)
    if truth is not None:
        pixels[_edge(truth)] = TRUTH
    times = max(1, -(-_LEAST_SIDE // max(pixels.shape[:2])))
    pixels = np.repeat(np.repeat(pixels, times, axis=0), times, axis=1)
    picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for text, (row, column) in labels:
        left, top, right, bottom = pen.textbbox((0, 0), text)
        x = min(column * times, picture.width - right)
        y = row * times - bottom if row * times >= bottom else row * times
        pen.rectangle((x + left, y + top, x + right, y + bottom), fill="black")
        pen.text((x, y), text, fill="white")
    with atomic_path(path) as temporary:
        picture.save(temporary)


def _grey(image: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    values = np.asarray(image, np.float64)
    if limits is None:
        inside = values.min() >= 0 and values.max() <= 1
        limits = (0.0, 1.0) if inside else (float(values.min()), float(values.max()))
    low, high = limits
    shown = np.clip((values - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    return shown.copy() if shown.shape[-1] == 3 else np.repeat(shown[..., :1], 3, axis=-1)


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that touch the outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def outline(region: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "K 2 2"]:
    """Lists the pixel edges that separate a region from the rest.

    Args:
        region: bool (H, W).

    Returns:
        K segments ((x0, y0), (x1, y1)) in the coordinates of `imshow`: pixel (i, j) covers
        [j - 1/2, j + 1/2] x [i - 1/2, i + 1/2]. No segment for an empty region.

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
