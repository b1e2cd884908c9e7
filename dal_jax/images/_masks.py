"""Reading masks of anomalies: which pixels of a file mean "anomalous"."""

from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._io import read_pixels


def read_mask(path: str | Path, labels: bool = False) -> np.ndarray:
    """Reads a mask: true where a picture is above 127/255 of its range, or where a label is set.

    A picture whose largest value is 1 is taken as labels; of a colour picture the largest channel
    counts.

    Args:
        path: an image file of one channel or of colours.
        labels: take every value but zero as marked, whatever the range.

    Returns:
        The mask, bool (H, W).

    Raises:
        InputError: the file is missing, damaged or holds no single image, or its largest value is
            neither 1 nor bright, so that nobody can tell what it means.

    Example:
        >>> read_mask("ground_truth/bent/000_mask.png").any()  # doctest: +SKIP
        True

    Source: MVTec AD (anti-aliased masks of 0 and 255) and VisA (labels from 1), as published.
    """
    pixels = read_pixels(path)
    flat = pixels.max(-1) if pixels.ndim == 3 else pixels
    if flat.ndim != 2 or flat.size == 0:
        raise InputError(f"mask {str(path)!r}: shape {pixels.shape}, expected (H, W)")
    return to_mask(flat, path, labels)


def to_mask(values: np.ndarray, path: str | Path, labels: bool = False) -> np.ndarray:
    """The same for stored values of any shape; the path is for the error's sake."""
    whole, top = values.dtype.kind in "biu", float(values.max(initial=0))
    if labels or (whole and top <= 1):
        return values != 0
    full = float(np.iinfo(values.dtype).max) if whole else (1.0 if top <= 1 else 255.0)
    marked = values > full * (127 / 255)
    if top != 0 and not marked.any():  # a NaN is not 0 either
        expected = f"0 and 1, or up to {full:g}"
        raise InputError(f"mask {str(path)!r}: largest value {top:g}, expected {expected}")
    return marked
