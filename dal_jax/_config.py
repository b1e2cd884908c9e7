"""Settings declared once, as fields of dataclasses, with their help, checks and TOML keys."""

import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from dal_jax._errors import InputError
from dal_jax._files import file_errors


def read_toml(path: str | Path, name: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: Path of the file.
        name: Name of the argument, for the error.

    Returns:
        The entries of the file.

    Raises:
        InputError: The file does not exist or is not TOML.
    """
    with file_errors(path, name):
        text = Path(path).read_text(encoding="utf-8")
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{name} {str(path)!r}: {error}") from error


def option(
    default: Any, text: str, *, metavar: str | None = None, choices: Sequence[str] = ()
) -> Any:
    """Declare a field of a dataclass that is an option of the command line and a key in TOML, too.

    Args:
        default: Default value.
        text: Help of the option.
        metavar: Placeholder of the value in the help; None takes that of the type.
        choices: Allowed values; empty if the option is checked elsewhere.

    Returns:
        The field.
    """
    return field(
        default=default, metadata={"help": text, "metavar": metavar, "choices": tuple(choices)}
    )


def options_of(kind: Any) -> dict[str, Field[Any]]:
    """Return the fields of a dataclass that `option` declared, by name."""
    return {own.name: own for own in fields(kind) if "help" in own.metadata}


def check_choices(settings: Any) -> None:
    """Refuse a value that is not among the choices of its option by an `InputError`."""
    for name, own in options_of(settings).items():
        value, choices = getattr(settings, name), own.metadata["choices"]
        if choices and value not in choices:
            raise InputError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def fit_fields(kind: Any, entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Check entries against the annotated fields of a dataclass.

    A whole number is accepted for a number, a list for a tuple, a string for a path. A field that
    is a dataclass itself is created from the entries with the names of its options.

    Args:
        kind: Dataclass whose fields are of type bool, int, float, str, Path, tuples of one of
            these, one of these or None, or a dataclass with a default.
        entries: Values by field.
        name: Origin of the entries, for the error.

    Returns:
        The values, in the types of the fields.

    Raises:
        InputError: A field is unknown (the nearest known one is named), or a value does not fit.
    """
    types = typing.get_type_hints(kind)
    parts: dict[str, Any] = {own: part for own, part in types.items() if is_dataclass(part)}
    inner = {key: part for part in parts.values() for key in options_of(part)}
    known = [own.name for own in fields(kind) if own.name not in parts] + list(inner)
    for key in entries:
        if key not in known:
            raise InputError(f"{name}: unknown key {key!r}, {nearest(key, known)}")
    for part in parts.values():
        types |= typing.get_type_hints(part)
    fitted = {key: _fitted(value, types[key], f"{name}: {key}") for key, value in entries.items()}
    for own, part in parts.items():
        told = {key: fitted.pop(key) for key in options_of(part) if key in fitted}
        fitted |= {own: part(**told)} if told else {}
    return fitted


def nearest(word: str, known: Sequence[str]) -> str:
    """Return a hint on an unknown word: the nearest known one, or all of them.

    Args:
        word: Unknown word.
        known: Known words.

    Returns:
        The text "did you mean 'X'?", or "expected A, B, C".

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
