"""The last volumes and stacks read, so that slices in order do not read a file once each."""

import functools
import zipfile
from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._io import DAMAGED, load_npy, unreadable
from dal_jax.images._volumes import Volume, read_volume


def cached_volume(path: Path) -> Volume:
    """Reads a volume; the last two, an image and its mask, are kept and must not be written to."""
    return _volume(path, *_state(path))


def cached_stack(path: Path, name: str) -> np.ndarray | None:
    """Opens a .npy stack without reading it, or an array of a .npz file; None if it lacks it."""
    stack = _stack(path, name, *_state(path))
    if stack is not None and (stack.ndim not in (3, 4) or 0 in stack.shape):
        expected = "(N, H, W) or (N, H, W, C)"
        raise InputError(
            f"array {name!r} of {str(path)!r}: shape {stack.shape}, expected {expected}"
        )
    return stack


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew."""
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
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive[name] if name in archive.files else None
    except (*DAMAGED, zipfile.BadZipFile, AttributeError) as error:
        raise unreadable(path, error) from error
