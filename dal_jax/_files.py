"""Files written whole or not at all, and the digest of a file."""

import contextlib
import hashlib
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dal_jax._errors import InputError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Lend a temporary path beside `path`, renamed to `path` if the block succeeds.

    Args:
        path: Path of the file to write; its folder is created if missing.

    Yields:
        A temporary path in the same folder with the same suffix, to write to.

    Raises:
        InputError: The folder or the file cannot be written.

    Example:
        >>> with atomic_path("figure.png") as temporary:  # doctest: +SKIP
        ...     canvas.savefig(temporary)
    """
    path = Path(path)
    # Processes of several hosts may write one file under the same process id.
    # Its name is short, so that it can be written wherever the file itself can.
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {str(path)!r}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay an interruption by Ctrl-C until the block has ended.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed during the block.
    """
    alone = threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # signals come elsewhere, or somebody else has a use for them
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Write an array as .npy, whole or not at all.

    Args:
        path: Path of the file; the name is used unchanged.
        array: Any array without objects.

    Raises:
        InputError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_array(f"{folder}/x.npy", np.arange(3))
        ...     print(np.load(f"{folder}/x.npy"))
        [0 1 2]
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.asarray(array), allow_pickle=False)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Args:
        path: Path of the file.
        text: Contents of the file.

    Raises:
        InputError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(f"{folder}/a.txt", "whole")
        ...     print(Path(folder, "a.txt").read_text())
        whole
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
