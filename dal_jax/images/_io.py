"""Reading an image file into an array (H, W, C) or a mask (H, W)."""

import csv
import warnings
from collections.abc import Callable
from os.path import isfile
from pathlib import Path
from typing import Literal

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import decoding, optional
from dal_jax.images._nifti import load_nifti
from dal_jax.images._pictures import Picture, read_picture, read_tiff, refusal


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as float64 with axes (H, W, C).

    8- and 16-bit unsigned integers are divided by 255 and 65535; floating-point values, and NIfTI
    voxels after the header's slope and intercept, are kept unchanged. Pictures are upright and grey
    or RGB with black as 0: palettes are looked up, the transparency of a picture is dropped. Every
    channel of a .npy file is kept. docs/files.md lists what is read and what is refused.

    Args:
        path: File with one image, of type .png, .jpg, .tif, .bmp, .gif, .webp, .jp2, .pgm, .npy,
            .nii or .nii.gz: (H, W) or (H, W, C); for NIfTI one slice (H, W) or (H, W, 1).

    Returns:
        The image, float64 (H, W, C), with C = 1 for grey images.

    Raises:
        InputError: The file is missing, damaged, of an unknown type, or does not hold exactly one
            image; it is not known what its numbers mean; or the optional library that reads it is
            not installed.

    Example:
        >>> read_image("view.png").shape  # doctest: +SKIP
        (32, 32, 1)
    """
    path = Path(path)
    pixels = scale_integers(read_pixels(path), path)
    if pixels.ndim not in (2, 3):
        shape = tuple(pixels.shape)
        raise InputError(f"image {str(path)!r}: shape {shape}, expected (H, W) or (H, W, C)")
    check_channels(pixels, f"image {str(path)!r}")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if 0 in pixels.shape:
        raise InputError(f"image {str(path)!r}: no pixels, shape {pixels.shape}")
    return pixels


def read_pixels(path: str | Path) -> np.ndarray:
    """Read the values of an image file in their own type.

    Args:
        path: Path of the file, of a type that `read_image` reads.

    Returns:
        The values (H, W) or (H, W, C), upright and with black as 0 as by `read_image`, but not
        scaled.

    Raises:
        InputError: As for `read_image`.

    Example:
        >>> read_pixels("mask.png").dtype  # doctest: +SKIP
        dtype('uint8')
    """
    return _decode(Path(path)).pixels


def is_image(path: Path) -> bool:
    """Return whether `read_image` reads files of this type, judged by the name."""
    return _reader(path) is not None


def load_npy(path: Path, mode: Literal["r"] | None = None) -> np.ndarray:
    """Read or map a .npy file of plain numbers (objects are refused), with a one-line error."""
    with decoding(path):
        with open(path, "rb") as file:
            array = np.load(path if mode else file, allow_pickle=False, mmap_mode=mode)
            if not isinstance(array, np.ndarray):
                array.close()
                raise ValueError("several arrays, expected one")
            stop = array.offset + array.nbytes if isinstance(array, np.memmap) else file.tell()
            behind = file.seek(0, 2) - stop
        if behind:
            raise refusal(path, f"{behind} bytes behind its array, expected one array alone")
        return array


def read_table(path: Path, columns: list[str], purpose: str) -> list[dict[str, str]]:
    """Read a CSV file that has at least the given columns; its errors start with the purpose."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows, found = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{purpose}: cannot read {str(path)!r} ({error})") from error
    if not set(columns) <= set(found):
        expected = f"{', '.join(map(repr, columns[:-1]))} and {columns[-1]!r}"
        raise InputError(f"{purpose}: {str(path)!r} has columns {found}, expected {expected}")
    twice = next((name for name in columns if found.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{purpose}: {str(path)!r} has several columns {twice!r}, expected one")
    return rows


def scale_integers(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Map 8- and 16-bit integers to [0, 1], keep floats, and refuse other types."""
    if pixels.dtype.newbyteorder("=") in (np.dtype(np.uint8), np.dtype(np.uint16)):
        scaled = pixels.astype(np.float64)
        scaled /= float(np.iinfo(pixels.dtype).max)  # in place: large images take much memory
        return scaled
    if pixels.dtype.kind in "fb":
        return pixels.astype(np.float64)
    expected = "floats or unsigned 8- or 16-bit integers"
    raise InputError(f"image {str(path)!r}: values of type {pixels.dtype}, expected {expected}")


def check_channels(pixels: np.ndarray, what: str) -> None:
    """Refuse images, or a stack of them, whose channels come before rows and columns."""
    channels, *sides = pixels.shape[-3:]
    if pixels.ndim > 2 and channels <= 4 < min(sides):
        shape, expected = tuple(pixels.shape), "channels in the last axis"
        raise InputError(f"{what}: shape {shape} has them first, expected {expected}")


def _decode(path: Path) -> Picture:
    if not isfile(path):
        raise refusal(path, "no such file")
    reader = _reader(path)
    if reader is None:
        raise refusal(path, f"unknown kind of file, expected one of {', '.join(_READERS)}")
    with decoding(path):
        warnings.simplefilter("error", UserWarning)  # decoders only warn of truncated data
        return reader(path)


def _reader(path: Path) -> Callable[[Path], Picture] | None:
    name = path.name.lower()
    return next((reader for end, reader in _READERS.items() if name.endswith(end)), None)


def _read_picture(path: Path) -> Picture:
    with open(path, "rb") as file:
        is_tiff = file.read(4) in _TIFF
    if is_tiff or path.suffix.lower() in (".tif", ".tiff"):
        return read_tiff(path, optional("tifffile", "images", path))
    pillow = optional("PIL.Image", "images", path)
    warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # twice as large is refused
    return read_picture(path, pillow)


def _read_npy(path: Path) -> Picture:
    return Picture(load_npy(path))


def _read_nifti(path: Path) -> Picture:
    voxels, _ = load_nifti(path)
    if voxels.ndim < 2 or any(n != 1 for n in voxels.shape[2:]):
        raise InputError(f"image {str(path)!r}: a volume of shape {voxels.shape}, give one slice")
    return Picture(voxels.reshape(voxels.shape[:2]))


# The first bytes of TIFF files, of which each order of bytes has a form for large files.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
    *(".jp2", ".j2k", ".pgm", ".ppm", ".pbm", ".pnm"),
)
# The one list of the names of images and of masks.
_READERS: dict[str, Callable[[Path], Picture]] = {
    **dict.fromkeys(_PICTURES, _read_picture),
    ".npy": _read_npy,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
}


def read_mask(path: str | Path, labels: bool = False) -> np.ndarray:
    """Read a mask: true where a picture is above 127/255 of its range, or a label is set.

    A picture whose largest value is 1 is read as labels, and so is a palette of colours; of other
    colour pictures the largest channel counts.

    Args:
        path: Image file of one channel or of colours.
        labels: True to take every value but zero as marked, whatever the range.

    Returns:
        The mask, bool (H, W).

    Raises:
        InputError: The file cannot be read as by `read_image`, or its meaning is unclear: its
            largest value is neither 1 nor bright, its colours have no black, or the transparency or
            the palette of the picture mark other pixels than its colours.

    Example:
        >>> read_mask("ground_truth/bent/000_mask.png").any()  # doctest: +SKIP
        True

    Source: MVTec AD (anti-aliased masks of 0 and 255) and VisA (labels from 1), as published.
    """
    path = Path(path)
    pixels, alpha, entries = _decode(path)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or pixels.shape[2:] not in ((), (1,), (3,)):
        raise InputError(f"mask {str(path)!r}: shape {pixels.shape}, expected (H, W) or (H, W, 3)")
    channels = pixels.reshape(*pixels.shape[:2], -1)
    coloured = bool((channels != channels[..., :1]).any())
    indexed = entries is not None and coloured
    _check_marks(channels, path)
    marked = to_mask(channels.max(-1), path, labels or indexed)
    if coloured and marked.all():
        raise InputError(f"mask {str(path)!r}: colours without black, expected black around marks")
    if indexed and (marked != (entries != 0)).any():
        expected = "black as entry 0 and nowhere else"
        raise InputError(f"mask {str(path)!r}: a palette of colours, expected {expected}")
    varies = alpha is not None and (alpha != alpha[0, 0]).any()
    if alpha is not None and varies and (marked != (alpha > alpha.max() / 2)).any():
        expected = "one of them, or both the same"
        raise InputError(
            f"mask {str(path)!r}: colours and transparency differ, expected {expected}"
        )
    return marked


def to_mask(values: np.ndarray, path: str | Path, labels: bool = False) -> np.ndarray:
    """Return the mask of stored values of any shape, as `read_mask`; the path is for errors."""
    _check_marks(values, path)
    whole, top = values.dtype.kind in "biu", float(values.max(initial=0))
    if labels or (whole and top <= 1):
        return values != 0
    full = float(np.iinfo(values.dtype).max) if whole else (1.0 if top <= 1 else 255.0)
    marked = values > full * (127 / 255)
    if top != 0 and not marked.any():
        expected = f"0 and 1, or up to {full:g}"
        raise InputError(f"mask {str(path)!r}: largest value {top:g}, expected {expected}")
    return marked


def _check_marks(values: np.ndarray, path: str | Path) -> None:
    """Refuse values of a mask that are no numbers of 0 or more."""
    if values.dtype.kind not in "buif":
        raise InputError(f"mask {str(path)!r}: values of type {values.dtype}, expected numbers")
    low = float(values.min(initial=0))
    if low < 0:
        raise InputError(f"mask {str(path)!r}: smallest value {low:g}, expected 0 or more")
    if np.isnan(values).any():
        raise InputError(f"mask {str(path)!r}: largest value nan, expected 0 and 1, or up to 255")
