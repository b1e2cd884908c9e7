"""The samples of a data set: their listing, and the reading of one with its mask."""

import functools
from collections.abc import Iterator
from os.path import exists, isdir, isfile, islink
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import decoding
from dal_jax.images._dicom import plane, read_slice
from dal_jax.images._folders import is_own, listed
from dal_jax.images._io import (
    check_channels,
    is_image,
    load_npy,
    read_image,
    read_mask,
    scale_integers,
    to_mask,
)
from dal_jax.images._volumes import Volume, axial_slice, check_mask, read_volume

NORMAL = "normal"
UNKNOWN = "unknown"
# Layouts whose samples are slices of NIfTI volumes.
OF_SLICES = ("brats2021", "brats2023", "nifti")


class Sample(NamedTuple):
    """One image of a data set, or one slice of one of its volumes, before it is read.

    Every sample of the split "train" is normal.

    Example:
        >>> path = Path("bottle/test/crack/001.png")
        >>> sample = Sample("test/crack/001.png", path, "test", "crack", None, "bottle 1")
        >>> sample.label, sample.group, sample.slice is None
        ('crack', 'bottle 1', True)
    """

    name: str  # unique: the path below the root with "/", then "#k" for slice or row k
    path: Path  # the file
    split: str  # "train" or "test"
    label: str  # "normal", the name of the anomaly, or "unknown"
    mask: Path | None  # the file that marks the anomaly
    group: str  # the physical object: samples of one group are not independent
    slice: int | None = None  # index of the slice in a volume, or of the row in a stack
    refused: str = ""  # why it cannot be read, if that showed when the data were opened


class DataSet(NamedTuple):
    """The samples of a data set, in an order that does not change.

    Example:
        >>> import tempfile
        >>> from dal_jax.images import open_data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.png").write_bytes(b"")  # listed, not read
        ...     data = open_data(folder)
        >>> data.layout, [(sample.name, sample.label) for sample in data.samples]
        ('folder', [('a.png', 'unknown')])
    """

    root: Path  # the folder
    layout: str  # the layout that was used, never "auto"
    samples: tuple[Sample, ...]  # at least one


class DataSelection(NamedTuple):
    """The part of a data set that the user selected: a category, a contrast, a range of slices."""

    category: str | None = None
    contrast: str | None = None
    slices: tuple[int, ...] | None = None  # (start, stop) or (start, stop, step)


def inside(path: Path, root: Path) -> Path:
    """Return the path, or refuse it if it or the target of its link lies outside the root."""
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name that cannot be
        raise InputError(f"file {str(path)!r}: {error}") from error
    if not within:
        raise InputError(f"file {str(path)!r} leads outside the folder {str(root)!r}")
    return path


def is_inside(path: Path, root: Path) -> bool:
    """Return whether `inside` accepts a path."""
    try:
        inside(path, root)
    except InputError:
        return False
    return True


def name_of(path: Path, root: Path) -> str:
    """Return the path below the root with "/" between its parts; other bytes are escaped."""
    name = path.relative_to(root).as_posix()
    return name.encode("utf-8", "backslashreplace").decode()


def entries(folder: Path, root: Path) -> list[Path]:
    """List a folder in order of name, without hidden files and linked folders outside the root.

    Linked files that lie outside are listed, so that each is refused when it is read. Broken links
    are left out, and so is what cannot be reached in a folder without rights.
    """
    found = [path for path in listed(folder) if exists(path)]
    return [path for path in found if not (isdir(path) and islink(path)) or is_inside(path, root)]


def folders(folder: Path, root: Path) -> list[Path]:
    """Return the subfolders of a folder, in order of name."""
    return [path for path in entries(folder, root) if isdir(path)]


def pictures(folder: Path, root: Path) -> list[Path]:
    """Return the image files of a folder, in order of name, without those of its subfolders."""
    return [path for path in entries(folder, root) if isfile(path) and is_image(path)]


def walk(folder: Path, root: Path) -> Iterator[Path]:
    """Yield the image files of a folder and its subfolders, but not of links or of results."""
    yield from pictures(folder, root)
    for below in folders(folder, root):
        if is_own(below):
            yield from walk(below, root)


def need_folder(folder: Path, layout: str) -> Path:
    """Return the folder, or name the missing folder of the layout in an error."""
    if not isdir(folder):
        raise InputError(f"layout {layout!r}: no folder {str(folder)!r}")
    return folder


def photo(
    path: Path, root: Path, split: str, label: str, mask: Path | None = None, refused: str = ""
) -> Sample:
    """Return the sample of one image file, a group of its own."""
    name = name_of(path, root)
    return Sample(name, path, split, label, mask, name, None, refused)


def cached_volume(path: Path) -> Volume:
    """Read a volume; the last two, an image and its mask, are cached and must not be modified."""
    return _volume(path, *_state(path))


def cached_stack(path: Path, name: str) -> np.ndarray | None:
    """Open a .npy stack without reading it, or an array of a .npz file; None if it is missing."""
    stack = _stack(path, name, *_state(path))
    if stack is not None and (stack.ndim not in (3, 4) or 0 in stack.shape):
        expected = "(N, H, W) or (N, H, W, C)"
        raise InputError(
            f"array {name!r} of {str(path)!r}: shape {stack.shape}, expected {expected}"
        )
    if stack is not None and stack.ndim == 4:
        check_channels(stack, f"array {name!r} of {str(path)!r}")
    return stack


def _state(path: Path) -> tuple[int, int]:
    """Return the time and the size of a file, by which a new version is recognized."""
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"file {str(path)!r}: {error.strerror or error}") from error
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=2)
def _volume(path: Path, _changed: int, _size: int) -> Volume:
    volume = read_volume(path)
    volume.voxels.setflags(write=False)
    return volume


@functools.lru_cache(maxsize=3)
def _stack(path: Path, name: str, _changed: int, _size: int) -> np.ndarray | None:
    if path.suffix.lower() == ".npy":
        return load_npy(path, mode="r")
    with decoding(path), open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        found = archive[name] if name in archive.files else None
        if isinstance(found, bytes):
            raise ValueError(f"{name!r} is no array")
        return found


def read_sample(dataset: DataSet, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the image of a sample and, where the truth is known, its mask.

    Pictures are scaled as in `read_image`; volumes are in the file's units. Slices of NIfTI volumes
    are axial, with anterior at the top and the patient's right at the left; slices of DICOM series
    are as acquired. Slices read in order read each volume once.

    Args:
        dataset: Data set from `open_data`.
        sample: One of its samples.

    Returns:
        The image, float64 (H, W, C), and the mask, bool (H, W): true where anomalous, all false for
        a normal sample without a mask, None where the truth is unknown.

    Raises:
        InputError: A file is missing or damaged, a mask has another size or orientation than its
            image or marks something in a normal one, a pixel is NaN or infinite, or the file leads
            outside the root. The others can still be read.

    Example:
        >>> data = open_data("bottle")  # doctest: +SKIP
        >>> image, mask = read_sample(data, data.samples[0])  # doctest: +SKIP
    """
    if sample.refused:
        raise InputError(sample.refused)
    for path in (sample.path, sample.mask):
        if path is not None:
            inside(path, dataset.root)
    image = _image(dataset.layout, sample)
    if not np.isfinite(image).all():
        raise InputError(f"image {sample.name!r}: holds NaN or infinite pixels")
    if sample.mask is None:
        return image, np.zeros(image.shape[:2], bool) if sample.label == NORMAL else None
    mask = _mask(dataset.layout, sample, sample.mask)
    if mask.shape != image.shape[:2]:
        found, expected = mask.shape, image.shape[:2]
        raise InputError(f"mask of {sample.name!r}: shape {found}, its image has {expected}")
    if sample.label == NORMAL and mask.any():
        raise InputError(f"mask of {sample.name!r}: marks pixels, expected none in a normal image")
    return image, mask


def _image(layout: str, sample: Sample) -> np.ndarray:
    if layout == "dicom":
        if sample.slice is None:
            plane(sample.path)  # why its place in the series is not known
        return read_slice(sample.path)[..., None]
    if layout == "arrays":
        row = scale_integers(_row(sample, sample.path, sample.split), sample.path)
        return row if row.ndim == 3 else row[..., None]
    if layout in OF_SLICES:
        return _slice(sample, sample.path).copy()[..., None]
    return read_image(sample.path)


def _mask(layout: str, sample: Sample, path: Path) -> np.ndarray:
    if layout == "arrays":
        return to_mask(_row(sample, path, "masks"), f"{path}#{sample.slice}")
    if layout in OF_SLICES:
        check_mask(cached_volume(path), cached_volume(sample.path), sample.name)
        marks = _slice(sample, path)
        if not (marks == np.abs(np.round(marks))).all():  # NaN is not equal to itself either
            raise InputError(f"mask of {sample.name!r}: expected whole numbers of 0 or more")
        return marks > 0
    return read_mask(path, labels=layout == "visa")


def _slice(sample: Sample, path: Path) -> np.ndarray:
    volume = cached_volume(path)
    if sample.slice is None:
        # The sample was listed without slices because one of the two files could not be read.
        cached_volume(sample.mask or path)
        raise InputError(f"volume {sample.name!r}: could not be read when the data was opened")
    return axial_slice(volume.voxels, volume.affine, sample.slice)


def _row(sample: Sample, path: Path, name: str) -> np.ndarray:
    stack = cached_stack(path, name)
    if stack is None or sample.slice is None or sample.slice >= len(stack):
        raise InputError(f"array {name!r} of {str(path)!r}: no row for {sample.name!r}")
    return np.array(stack[sample.slice])
