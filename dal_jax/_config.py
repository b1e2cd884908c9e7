"""Settings from TOML files, checked against the fields of a dataclass."""

import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dal_jax._errors import InputError


def read_toml(path: str | Path, name: str) -> dict[str, Any]:
    """Reads a TOML file.

    Args:
        path: of the file.
        name: of the argument, for the error.

    Returns:
        Its entries.

    Raises:
        InputError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{name} {str(path)!r}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{name} {str(path)!r}: {error}") from error


def fit_fields(kind: Any, entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Checks entries against the annotated fields of a dataclass.

    A whole number will do for a number, a list for a tuple, a string for a path.

    Args:
        kind: the dataclass; its fields are of type bool, int, float, str, Path, tuples of one of
            these, or one of these or None.
        entries: values by field.
        name: where the entries are from, for the error.

    Returns:
        The values, in the types of the fields.

    Raises:
        InputError: an unknown field (the nearest known one is named), or a value of another type.
    """
    types = typing.get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for key in entries:
        if key not in known:
            raise InputError(f"{name}: unknown key {key!r}, {nearest(key, known)}")
    return {key: _fitted(value, types[key], f"{name}: {key}") for key, value in entries.items()}


def nearest(word: str, known: Sequence[str]) -> str:
    """Says what was probably meant, or what there is.

    Args:
        word: unknown.
        known: what there is.

    Returns:
        "did you mean 'X'?", or "expected A, B, C".

    Example:
        >>> nearest("sise", ["size", "images"])
        "did you mean 'size'?"
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected {', '.join(known)}"


def _fitted(value: Any, declared: Any, name: str) -> Any:
    parts = typing.get_args(declared)
    if typing.get_origin(declared) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{name} is {value!r}, expected a list")
        return tuple(_fitted(item, parts[0], name) for item in value)
    if type(None) in parts:
        declared = next(part for part in parts if part is not type(None))
    accepted, expected = _ACCEPTED[declared]
    if not isinstance(value, accepted) or (isinstance(value, bool) and declared is not bool):
        raise InputError(f"{name} is {value!r}, expected {expected}")
    return declared(value)


_ACCEPTED: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a string"),
    Path: (str, "a path"),
}
