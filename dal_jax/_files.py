"""Files: written whole or not at all, read with one-line errors; results as standard JSON."""

import contextlib
import csv
import enum
import hashlib
import importlib
import io
import json
import logging
import math
import os
import secrets
import signal
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError  # numpy raises it for damaged headers
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dal_jax._errors import InputError

# Errors that readers raise on damaged files; they differ between decoders.
DAMAGED = (
    ArithmeticError,
    AttributeError,
    BadZipFile,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,  # of zipfile: encrypted, or compressed in an unknown way; too deep a nesting
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


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


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Format rows as CSV, with text escaped that a spreadsheet would take for a formula.

    Args:
        rows: Rows; without `columns`, all with the same keys.
        columns: Keys to write, in order; empty for all keys of the first row.

    Returns:
        A line of titles and one line for each row.

    Example:
        >>> csv_text([{"name": "a.png", "p": 0.5}]).splitlines()
        ['name,p', 'a.png,0.5']
    """
    text, titles = io.StringIO(), list(columns or (rows[0] if rows else ()))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows([_cell(row[title]) for title in titles] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def file_errors(
    path: str | Path, name: str = "file", error: type[InputError] = InputError, advice: str = ""
) -> Iterator[None]:
    """Raise every failure of reading a file as one line that names the file.

    Args:
        path: Path of the file.
        name: Name of the argument or of the kind of file, at the start of the message.
        error: Class of the exception; errors of this class pass unchanged.
        advice: End of the message, such as a command that writes the file again.

    Yields:
        Nothing; the block reads the file and uses its contents.

    Raises:
        InputError: The file cannot be read or is damaged; of the class `error`.

    Example:
        >>> with file_errors("model.json", "model"):  # doctest: +SKIP
        ...     size = int(read_json("model.json")["size"])
    """
    where, end = f"{name} {str(path)!r}", f"; {advice}" if advice else ""
    try:
        yield
    except error:
        raise
    except OSError as failure:
        where = f"{name} {str(failure.filename or path)!r}"  # the block may read other files, too
        missing = isinstance(failure, FileNotFoundError)
        reason = "no such file" if missing else f"cannot be read ({failure.strerror or failure})"
        raise error(f"{where}: {reason}{end}") from failure
    except DAMAGED as failure:
        reason = " ".join(str(failure).split())[:120] or type(failure).__name__
        reason = f"no {reason}" if isinstance(failure, KeyError) else reason
        raise error(f"{where}: damaged ({reason}){end}") from failure


def read_json(
    path: str | Path, name: str = "file", error: type[InputError] = InputError, advice: str = ""
) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: Path of the file.
        name: Start of the error message, as in `file_errors`, like the other arguments.
        error: Class of the exception.
        advice: End of the error message.

    Returns:
        The entries of the object.

    Raises:
        InputError: The file cannot be read, is not JSON, or holds no object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(f"{folder}/a.json", '{"size": 32}')
        ...     print(read_json(f"{folder}/a.json"))
        {'size': 32}
    """
    with file_errors(path, name, error, advice):
        return parse_json(Path(path).read_bytes())


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Parse a text that holds one JSON object; another one is refused by a `ValueError`."""
    entries = json.loads(text)
    if not isinstance(entries, dict):
        raise ValueError("expected a JSON object")
    return entries


def read_array(
    path: str | Path, name: str = "file", error: type[InputError] = InputError
) -> np.ndarray:
    """Read an .npy file of numbers; pickled objects are refused.

    Args:
        path: Path of the file.
        name: Start of the error message, as in `file_errors`.
        error: Class of the exception.

    Returns:
        The array.

    Raises:
        InputError: The file cannot be read, or is not a complete .npy file of numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_array(f"{folder}/x.npy", np.arange(3))
        ...     print(read_array(f"{folder}/x.npy"))
        [0 1 2]
    """
    with file_errors(path, name, error), open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_arrays(
    path: str | Path, name: str = "file", error: type[InputError] = InputError, advice: str = ""
) -> dict[str, np.ndarray]:
    """Read an .npz file of numbers; pickled objects are refused.

    Args:
        path: Path of the file.
        name: Start of the error message, as in `file_errors`, like the other arguments.
        error: Class of the exception.
        advice: End of the error message.

    Returns:
        All arrays by name.

    Raises:
        InputError: The file cannot be read, or is not a complete .npz file of numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", x=np.arange(3))
        ...     print(read_arrays(f"{folder}/a.npz"))
        {'x': array([0, 1, 2])}
    """
    with file_errors(path, name, error, advice), open(path, "rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("one array, expected an .npz archive")
        with archive:
            return {key: archive[key] for key in archive.files}


def plain(value: Any) -> Any:
    """Convert a value to JSON's types; NaN becomes null, infinities "Infinity" strings."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    item = np.asarray(value)
    if item.ndim:
        return [plain(entry) for entry in item.tolist()]
    number = item.item()
    if isinstance(number, float) and not math.isfinite(number):
        return None if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number


def dumps(fields: dict[str, Any]) -> str:
    """Write fields as one line of standard JSON for other programs; NaN becomes null.

    Records that are read back without loss are written by `dal_jax.runs.encode`.
    """
    return json.dumps(plain(fields), allow_nan=False)


# Loggers of these libraries, which would print lines that name no file.
_LOGGERS = ("nibabel.global", "pydicom", "PIL")


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Read a file within the block; any exception but `InputError` becomes one that names the file.

    Decoders raise many kinds of exceptions on damaged files, which differ between releases.

    Args:
        path: Path of the file that is read.

    Raises:
        InputError: The file is damaged, or a library is missing that its compression needs.
    """
    loggers = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
    try:
        with warnings.catch_warnings():
            # Real files break minor rules of their standards, for which the libraries warn.
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
    except InputError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the one-line error for an exception of a decoder."""
    if isinstance(error, ModuleNotFoundError):
        return InputError(f"image {str(path)!r}: reading it needs {error.name}, not installed here")
    reason, kind = " ".join(str(error).split()), type(error).__name__
    if not isinstance(error, ValueError | OSError):  # the text of the others says little alone
        reason = f"{kind}: {reason}".removesuffix(": ")
    return InputError(f"image {str(path)!r}: unreadable or damaged ({reason[:160] or kind})")


def optional(module: str, extra: str, path: Path) -> ModuleType:
    """Import a library that an extra of the package installs; the error names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f'pip install "dal-jax[{extra}]"'
        raise InputError(f"image {str(path)!r}: reading it needs {module}: {hint}") from error
