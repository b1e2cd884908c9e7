"""Reading one image from a file into an array (H, W, C)."""

import importlib
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError  # numpy lets it out of a spoiled header
from types import ModuleType
from typing import Literal

import numpy as np

from dal_jax._errors import InputError

# What the readers raise on damaged files; each decoder has its own favourites.
DAMAGED = (
    OSError,
    ArithmeticError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    TokenError,
    Warning,
)


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image as float64 with axes (H, W, C).

    8- and 16-bit unsigned integers are divided by 255 and 65535; floating values, and NIfTI voxels
    after the header's slope and intercept, are taken as they are. An alpha channel is dropped.

    Args:
        path: a .npy, .png, .jpg, .jpeg, .bmp, .tif, .tiff, .nii or .nii.gz file holding one image:
            (H, W) or (H, W, C); for NIfTI one slice (H, W) or (H, W, 1).

    Returns:
        The image, float64 (H, W, C), C = 1 for grey images.

    Raises:
        InputError: the file is missing, damaged, of an unknown kind, or holds no single image; or
            the optional library that reads it is not installed.

    Example:
        >>> read_image("view.png").shape  # doctest: +SKIP
        (32, 32, 1)
    """
    path = Path(path)
    pixels = _with_channels(scale_integers(read_pixels(path), path), path)
    if 0 in pixels.shape:
        raise InputError(f"image {str(path)!r}: no pixels, shape {pixels.shape}")
    return pixels


def read_pixels(path: str | Path) -> np.ndarray:
    """Read the values of an image file as they are stored, in their own type.

    Args:
        path: Path of the file, of a kind that `read_image` reads.

    Returns:
        The values (H, W) or (H, W, C), neither scaled nor converted.

    Raises:
        InputError: The file is missing or damaged.

    Example:
        >>> read_pixels("mask.png").dtype  # doctest: +SKIP
        dtype('uint8')
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"image {str(path)!r}: no such file")
    return _decode(path)


def is_image(path: Path) -> bool:
    """Says whether `read_image` knows the kind of file, by its name."""
    return _reader(path) is not None


def load_npy(path: Path, mode: Literal["r"] | None = None) -> np.ndarray:
    """Reads or maps a .npy file of plain numbers (objects are refused), with a one-line error."""
    try:
        return np.load(path, allow_pickle=False, mmap_mode=mode)
    except DAMAGED as error:
        raise unreadable(path, error) from error


def load_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the voxels, after the file's slope and intercept, and the affine of a NIfTI file."""
    nibabel = optional("nibabel", "medical", path)
    own = nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError
    try:
        image = nibabel.load(path)
        voxels = np.asarray(image.get_fdata(dtype=np.float64, caching="unchanged"))
    except (*DAMAGED, *own) as error:
        raise unreadable(path, error) from error
    return voxels, np.asarray(image.affine, np.float64)


def scale_integers(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Maps 8- and 16-bit integers to [0, 1] and keeps floats; refuses other types."""
    if pixels.dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
        return pixels.astype(np.float64) / float(np.iinfo(pixels.dtype).max)
    if pixels.dtype.kind in "fb":
        return pixels.astype(np.float64)
    expected = "floats or unsigned 8- or 16-bit integers"
    raise InputError(f"image {str(path)!r}: values of type {pixels.dtype}, expected {expected}")


def _decode(path: Path) -> np.ndarray:
    reader = _reader(path)
    if reader is None:
        kinds = ".npy, .png, .jpg, .bmp, .tif, .nii, .nii.gz"
        raise InputError(f"image {str(path)!r}: unknown kind of file, expected one of {kinds}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # decoders only warn of cut-off data
            return reader(path)
    except InputError:
        raise
    except DAMAGED as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> InputError:
    """The one-line error for what a decoder raised."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"image {str(path)!r}: unreadable or damaged ({reason[:160]})")


def _reader(path: Path) -> Callable[[Path], np.ndarray] | None:
    name = path.name.lower()
    return next((reader for end, reader in _READERS.items() if name.endswith(end)), None)


def optional(module: str, extra: str, path: Path) -> ModuleType:
    """Imports a library that an extra of the package installs, or names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f'pip install "dal-jax[{extra}]"'
        raise InputError(f"image {str(path)!r}: reading it needs {module}: {hint}") from error


def _read_picture(path: Path) -> np.ndarray:
    pillow = optional("PIL.Image", "images", path)
    try:
        opened = pillow.open(path)
    except pillow.DecompressionBombError as error:
        raise unreadable(path, error) from error
    with opened as picture:
        if picture.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
            picture = picture.convert("RGB")
        wide = picture.mode == "I"  # some releases of Pillow give 16-bit greys this mode
        pixels = np.asarray(picture)
        has_alpha = picture.mode in ("LA", "RGBA", "PA", "La", "RGBa")
    pixels = pixels.astype(np.uint16) if wide else pixels
    return pixels[..., :-1] if has_alpha else pixels


def _read_tiff(path: Path) -> np.ndarray:
    tifffile = optional("tifffile", "images", path)
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes, pixels = series.axes, series.asarray()
    if axes == "SYX":
        axes, pixels = "YXS", np.moveaxis(pixels, 0, -1)
    if axes not in ("YX", "YXS"):
        raise InputError(
            f"image {str(path)!r}: holds {axes} of shape {pixels.shape}, not one image"
        )
    return pixels[..., :3] if pixels.shape[-1] == 4 and axes == "YXS" else pixels


def _read_nifti(path: Path) -> np.ndarray:
    voxels, _ = load_nifti(path)
    if voxels.ndim < 2 or any(n != 1 for n in voxels.shape[2:]):
        raise InputError(f"image {str(path)!r}: a volume of shape {voxels.shape}, give one slice")
    return voxels.reshape(voxels.shape[:2])


def _with_channels(pixels: np.ndarray, path: Path) -> np.ndarray:
    if pixels.ndim not in (2, 3):
        shape = tuple(pixels.shape)
        raise InputError(f"image {str(path)!r}: shape {shape}, expected (H, W) or (H, W, C)")
    return pixels[..., None] if pixels.ndim == 2 else pixels


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": load_npy,
    ".png": _read_picture,
    ".jpg": _read_picture,
    ".jpeg": _read_picture,
    ".bmp": _read_picture,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
}
