"""Folders of images: those that are read, what is left out of a folder, and stacks."""

import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from os.path import exists, isdir, isfile, islink
from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._io import check_channels, is_image, load_npy, read_image, scale_integers

# Folders of masks in the layouts of photographs.
MASKS = ("masks", "ground_truth")
# What the name of a mask may have behind the name of its image; of a volume, the first and last.
MASK_ENDS = ("_mask", "_gt", "_seg")
_OF_VOLUMES = re.compile(r"(.+)_(mask|seg)\.(nii|nii\.gz|hdr|mgz|mgh)", re.IGNORECASE)
# Files by which models and results of this package are recognised, and the folders beside them.
_RECORDS = ("run.json", "run/run.json", "result.json", "profile.json")
_BESIDE = ("run", "maps", "overlays", "volumes")
_MOST_NAMES = 3


def read_images(sources: Sequence[str | Path]) -> np.ndarray:
    """Read many images of one size into a stack.

    Args:
        sources: Sources of images, at least one: a folder (its images in order of name, without
            subfolders), an image file, or a .npy stack (N, H, W, C).

    Returns:
        The images, float64 (N, H, W, C), in the given order.

    Raises:
        InputError: A source is missing or damaged, a folder holds no image, sizes differ, or a
            pixel is NaN or infinite.

    Example:
        >>> read_images(["normal/"]).shape  # doctest: +SKIP
        (500, 32, 32, 1)
    """
    stacks: list[np.ndarray] = []
    for source in map(Path, sources):
        for path in image_files(source):
            stack = _read_stack(path)
            if stacks and stack.shape[1:] != stacks[0].shape[1:]:
                found, first = stack.shape[1:], stacks[0].shape[1:]
                raise InputError(f"image {str(path)!r}: shape {found}, the others have {first}")
            if not np.isfinite(stack).all():
                raise InputError(f"image {str(path)!r}: holds NaN or infinite pixels")
            stacks.append(stack)
    if not stacks:
        raise InputError("images: none given, expected a folder, image files or a .npy stack")
    return np.concatenate(stacks)


def image_files(source: Path, name: str = "images", deep: bool = False) -> list[Path]:
    """List the images of a folder by name, and print in one line what else it holds.

    Args:
        source: Folder, whose hidden files are left out; any other path stands for itself.
        name: Name of the argument that holds the folder, for the error.
        deep: True to include the images of subfolders, but not of links or of results.

    Returns:
        Paths of the images.

    Raises:
        InputError: The folder holds no images.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.png", "notes.txt"):
        ...         _ = Path(folder, name).write_bytes(b"")
        ...     print([path.name for path in image_files(Path(folder))])
        ['a.png', 'b.png']
    """
    if not isdir(source):
        return [source]
    found = without_masks(sorted(_images(source, deep)))
    say_left_out(name, source, found)
    if not found:
        raise InputError(f"{name} {str(source)!r}: no image in this folder")
    return found


def _images(folder: Path, deep: bool) -> Iterator[Path]:
    for path in listed(folder):
        if isfile(path):
            if is_image(path):
                yield path
        elif deep and isdir(path) and is_own(path):
            yield from _images(path, deep)


def _read_stack(path: Path) -> np.ndarray:
    if isfile(path) and path.suffix.lower() == ".npy":
        pixels = load_npy(path)
        if pixels.ndim == 4:
            check_channels(pixels, f"image {str(path)!r}")
            return scale_integers(pixels, path)
    return read_image(path)[None]


def listed(folder: Path) -> list[Path]:
    """List a folder in order of name, without hidden files; refuse one that cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"folder {str(folder)!r}: {error.strerror or error}") from error


def is_readable(folder: Path) -> bool:
    """Return whether a folder can be listed and its files be opened."""
    return os.access(folder, os.R_OK | os.X_OK)


def is_own(folder: Path) -> bool:
    """Return whether a subfolder belongs to a folder of images: no link, no results, readable."""
    return not islink(folder) and is_readable(folder) and not is_output(folder)


def is_in_masks(path: Path, root: Path) -> bool:
    """Return whether a path below a data set has the name of a folder of masks in it."""
    return any(part.lower() in MASKS for part in path.relative_to(root).parts)


def stem_of(path: Path) -> str:
    """Return the name of an image without its extension, which may be of two parts."""
    end = ".gz" if path.name.lower().endswith(".gz") else ""
    return Path(path.name[: len(path.name) - len(end)]).stem


def stems_of_owner(mask: Path) -> list[str]:
    """Return the stems that an image may have whose name the name of a mask goes on from."""
    stem = stem_of(mask)
    return [stem[: -len(end)] for end in MASK_ENDS if stem.lower().endswith(end)]


def without_masks(paths: Sequence[Path]) -> list[Path]:
    """Return images without those whose names say that they are masks of others beside them."""
    stems = {(path.parent, stem_of(path)) for path in paths}
    return [path for path in paths if not _is_beside(path, stems)]


def _is_beside(path: Path, stems: Collection[tuple[Path, str]]) -> bool:
    return any((path.parent, stem) in stems for stem in stems_of_owner(path))


def is_output(folder: Path) -> bool:
    """Return whether a folder below a data set holds a model or results of this package."""
    return _has_record(folder) or (folder.name in _BESIDE and _has_record(folder.parent))


def say_left_out(what: str, root: Path, used: Collection[Path]) -> None:
    """Print in one line what lies below a folder and is not used, if there is anything.

    Args:
        what: Words for the folder, "data" or the name of an argument.
        root: The folder.
        used: Files that are used.
    """
    holding = {folder for path in used for folder in path.parents}
    stems = {(path.parent, stem_of(path)) for path in used}
    marked = {(path.parent, stem) for path in used for stem in stems_of_owner(path)}
    found: dict[str, list[Path]] = {}
    for path, kind in _unused(root, root, set(used), holding):
        if kind == "files" and _OF_VOLUMES.fullmatch(path.name):
            kind = "masks without an image"
        if kind in ("files", "masks without an image") and _is_beside(path, stems):
            second = is_in_masks(path, root) or _is_beside(path, marked)
            kind = "second masks" if second else "masks beside their images"
        found.setdefault(kind, []).append(path)
    parts = []
    if "files" in found:
        counts = Counter(path.suffix.lower() or "without extension" for path in found["files"])
        kinds = ", ".join(f"{number} {_shown(kind)}" for kind, number in sorted(counts.items()))
        parts.append(f"files ({len(found.pop('files'))}): {kinds}")
    for kind, paths in sorted(found.items()):
        names = [_name(path, root, kind) for path in paths[:_MOST_NAMES]]
        more = ", ..." if len(paths) > _MOST_NAMES else ""
        parts.append(f"{kind} ({len(paths)}): {', '.join(names)}{more}")
    if parts:
        print(f"{what} {str(root)!r}: not used: {'; '.join(parts)}", file=sys.stderr)


def _unused(
    folder: Path, root: Path, used: set[Path], holding: set[Path]
) -> Iterator[tuple[Path, str]]:
    """Yield the files, links and folders that are not used, with their kind; no hidden files."""
    for path in listed(folder):
        in_masks = is_in_masks(path, root)
        if not exists(path):
            yield path, "broken links" if islink(path) else "unreadable"
        elif not isdir(path):
            if path not in used:
                yield path, "masks without an image" if in_masks and is_image(path) else "files"
        elif is_output(path):
            yield path, "earlier results"
        elif not is_readable(path):
            yield path, "unreadable folders"
        elif path in holding or (in_masks and not islink(path)):
            yield from _unused(path, root, used, holding)
        else:
            yield path, "linked folders" if islink(path) else "folders"


def _shown(kind: str) -> str:
    return kind if kind.isprintable() else repr(kind)


def _name(path: Path, root: Path, kind: str) -> str:
    name = repr(path.relative_to(root).as_posix())
    if kind != "folders":
        return name
    return f"{name} with {sum(len(files) for _, _, files in os.walk(path))} files"


def _has_record(folder: Path) -> bool:
    return any(isfile(folder / name) for name in _RECORDS)
