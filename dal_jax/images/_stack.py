"""Reading a training set: folders of images, single images and .npy stacks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._io import is_image, load_npy, read_image, scale_integers


def read_images(sources: Sequence[str | Path]) -> np.ndarray:
    """Reads many images of one size into a stack.

    Args:
        sources: at least one of: a folder (its images in order of name, not its subfolders), an
            image file, or a .npy stack (N, H, W, C).

    Returns:
        The images, float64 (N, H, W, C), in the order given.

    Raises:
        InputError: a source is missing or damaged, a folder holds no image, sizes differ, or a
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
    """Lists the images of a folder by name.

    Args:
        source: the folder, without its hidden files; a path that is none stands for itself.
        name: of the argument that it was given as.
        deep: with those of its subfolders.

    Returns:
        Paths.

    Raises:
        InputError: a folder without images.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.png", "notes.txt"):
        ...         _ = Path(folder, name).write_bytes(b"")
        ...     print([path.name for path in image_files(Path(folder))])
        ['a.png', 'b.png']
    """
    if not source.is_dir():
        return [source]
    entries = source.rglob("*") if deep else source.iterdir()
    shown = (path for path in entries if not path.name.startswith("."))
    found = sorted(path for path in shown if path.is_file() and is_image(path))
    if not found:
        raise InputError(f"{name} {str(source)!r}: no image in this folder")
    return found


def _read_stack(path: Path) -> np.ndarray:
    if path.is_file() and path.suffix.lower() == ".npy":
        pixels = load_npy(path)
        if pixels.ndim == 4:
            return scale_integers(pixels, path)
    return read_image(path)[None]
