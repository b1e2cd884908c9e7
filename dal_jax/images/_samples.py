"""What a data set is made of, and the listing of files that never leaves its folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dal_jax._errors import InputError
from dal_jax.images._io import is_image

NORMAL = "normal"
UNKNOWN = "unknown"
# Layouts whose samples are slices of NIfTI volumes.
OF_SLICES = ("brats2021", "brats2023", "nifti")


class Sample(NamedTuple):
    """One image of a data set, or one slice of one of its volumes; nothing is read yet.

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


class DataSet(NamedTuple):
    """The samples that `open_data` found in a folder, in an order that does not change.

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
    layout: str  # that it was read as, never "auto"
    samples: tuple[Sample, ...]  # one or more


class DataSelection(NamedTuple):
    """What the user chose of a data set that holds more than is wanted at once."""

    category: str | None = None
    contrast: str | None = None
    slices: tuple[int, ...] | None = None  # (start, stop) or (start, stop, step)


def inside(path: Path, root: Path) -> Path:
    """Returns the path, or refuses it if it or what it links to lies outside the root."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"file {str(path)!r} leads outside the folder {str(root)!r}")
    return path


def name_of(path: Path, root: Path) -> str:
    """The path below the root with "/" between its parts; bytes that are no text are escaped."""
    name = path.relative_to(root).as_posix()
    return name.encode("utf-8", "backslashreplace").decode()


def entries(folder: Path, root: Path) -> list[Path]:
    """What lies in a folder, in order of name, without hidden files; links outside are refused."""
    try:
        found = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise InputError(f"folder {str(folder)!r}: {error.strerror or error}") from error
    return [inside(path, root) for path in found]


def folders(folder: Path, root: Path) -> list[Path]:
    """The subfolders of a folder, in order of name."""
    return [path for path in entries(folder, root) if path.is_dir()]


def pictures(folder: Path, root: Path) -> list[Path]:
    """The image files of a folder, in order of name, without those of its subfolders."""
    return [path for path in entries(folder, root) if path.is_file() and is_image(path)]


def walk(folder: Path, root: Path) -> Iterator[Path]:
    """The image files of a folder and of its subfolders, but not of those it links to."""
    yield from pictures(folder, root)
    for below in folders(folder, root):
        if not below.is_symlink():
            yield from walk(below, root)


def need_folder(folder: Path, layout: str) -> Path:
    """Returns the folder, or says which folder of the layout is missing."""
    if not folder.is_dir():
        raise InputError(f"layout {layout!r}: no folder {str(folder)!r}")
    return folder


def photo(path: Path, root: Path, split: str, label: str, mask: Path | None = None) -> Sample:
    """The sample of one image file, a group of its own."""
    name = name_of(path, root)
    return Sample(name, path, split, label, mask, name)
