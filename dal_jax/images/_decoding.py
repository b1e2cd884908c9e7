"""Calls of the libraries that read files: what they raise or log becomes one line of one file."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from dal_jax._errors import InputError

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
