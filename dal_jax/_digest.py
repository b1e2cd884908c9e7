"""Digests of files and arrays: equal for equal contents only."""

import hashlib
from pathlib import Path

import numpy as np


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_digest(array: np.ndarray) -> str:
    """The SHA-256 of an array's type, shape and values, hexadecimal."""
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()
