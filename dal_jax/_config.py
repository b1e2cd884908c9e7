"""Settings declared once, as fields of dataclasses, with their help, checks and TOML keys."""

import difflib
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from dal_jax._errors import InputError
from dal_jax._files import file_errors

# Commas before a new field; others are inside of lists.
_COMMA = re.compile(r",(?=\s*[A-Za-z_.]+\s*=)")


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
    default: Any,
    text: str,
    *,
    metavar: str | None = None,
    choices: Sequence[str] = (),
    name: str | None = None,
) -> Any:
    """Declare a field of a dataclass that is an option of the command line and a key in TOML, too.

    Args:
        default: Default value.
        text: Help of the option.
        metavar: Placeholder of the value in the help; None takes that of the type.
        choices: Allowed values; empty if the option is checked elsewhere.
        name: Option as it is written on the command line, such as "--on/--off"; None for the name
            of the field.

    Returns:
        The field.
    """
    words = {"help": text, "metavar": metavar, "choices": tuple(choices), "name": name}
    return field(default=default, metadata=words)


def same_option(kind: Any, name: str, **changes: Any) -> Any:
    """Declare an option that another dataclass has as well.

    Args:
        kind: Dataclass that declares the option.
        name: Name of the field.
        **changes: Arguments of `option` that differ, such as `default`.

    Returns:
        The field.
    """
    own = options_of(kind)[name]
    words = {**own.metadata, "default": own.default, "text": own.metadata["help"]}
    del words["help"]
    return option(**{**words, **changes})


def options_of(kind: Any) -> dict[str, Field[Any]]:
    """Return the fields of a dataclass that `option` declared, by name."""
    return {own.name: own for own in fields(kind) if "help" in own.metadata}


def check_choices(settings: Any) -> None:
    """Refuse a value that is not among the choices of its option by an `InputError`."""
    for name, own in options_of(settings).items():
        value, choices = getattr(settings, name), own.metadata["choices"]
        if choices and value not in choices:
            raise InputError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")


def build(kind: Any, entries: Any, name: str) -> Any:
    """Create a dataclass from plain values, as in TOML or JSON.

    Args:
        kind: Dataclass; see `fit_fields`.
        entries: Values by field; fields that are left out take their defaults.
        name: Origin of the entries, for the error.

    Returns:
        An instance.

    Raises:
        InputError: The entries are no table, a field is unknown or missing, or a value does not
            fit.

    Example:
        >>> from dal_jax import AdaptiveOptions
        >>> build(AdaptiveOptions, {"safety": 2}, "spec.toml").safety
        2.0
    """
    values = fit_fields(kind, entries, name)
    for own in fields(kind):
        required = own.default is MISSING and own.default_factory is MISSING
        if required and own.name not in values:
            raise InputError(f"{name}: {own.name!r} is missing")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def fit_fields(kind: Any, entries: Any, name: str) -> dict[str, Any]:
    """Check entries against the annotated fields of a dataclass.

    A whole number is accepted for a number, a list for a tuple, a string for a path. A field that
    is a dataclass itself is created from the entries with the names of its options or, if it
    declares none, from a table under its own name.

    Args:
        kind: Dataclass whose fields are of type bool, int, float, str, Path, literals, dataclasses,
            tuples of one of these, or unions of these and None.
        entries: Values by field.
        name: Origin of the entries, for the error.

    Returns:
        The values, in the types of the fields.

    Raises:
        InputError: The entries are no table, a field is unknown (the nearest known one is named),
            or a value does not fit.
    """
    if not isinstance(entries, Mapping):
        raise InputError(f"{name}: got {entries!r:.80}, expected a table")
    hints = typing.get_type_hints(kind)
    types = {own.name: hints[own.name] for own in fields(kind)}
    parts: dict[str, Any] = {own: part for own, part in types.items() if is_dataclass(part)}
    parts = {own: part for own, part in parts.items() if options_of(part)}
    for own, part in parts.items():
        del types[own]
        types |= {key: typing.get_type_hints(part)[key] for key in options_of(part)}
    for key in entries:
        if key not in types:
            raise InputError(f"{name}: unknown key {key!r}, {nearest(str(key), list(types))}")
    fitted = {key: _fitted(value, types[key], f"{name}: {key}") for key, value in entries.items()}
    for own, part in parts.items():
        given = {key: fitted.pop(key) for key in options_of(part) if key in fitted}
        fitted |= {own: part(**given)} if given else {}
    return fitted


def split_settings(text: str) -> tuple[str, dict[str, Any]]:
    """Split a name from the settings behind it, as in "name,start=150,channels=[8,16]".

    Args:
        text: Text of the form HEAD[,FIELD=VALUE...], with values as in TOML; strings may lack
            quotes.

    Returns:
        The head, and the values by field.

    Example:
        >>> split_settings("mdps:pl,start=150,channels=[8,16]")
        ('mdps:pl', {'start': 150, 'channels': [8, 16]})
    """
    head, *rest = _COMMA.split(text)
    parts = (part.partition("=") for part in rest)
    return head, {key.strip(): _value(value.strip()) for key, _, value in parts}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a string without quotes


def set_field(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a value in nested tables.

    Args:
        table: Table to change.
        key: Key, with a dot before each inner one, as in "unet.channels".
        value: New value.
    """
    *outer, last = key.split(".")
    for part in outer:
        if not isinstance(table.get(part), dict):
            table[part] = {}
        table = table[part]
    table[last] = value


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
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, UnionType):
        if value is None and NoneType in parts:
            return None
        listed = isinstance(value, list | tuple)
        parts = [part for part in parts if part is not NoneType]
        fitting = [part for part in parts if (typing.get_origin(part) is tuple) == listed]
        return _fitted(value, [*fitting, *parts][0], name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{name}: got {value!r:.80}, expected a list")
        return tuple(_fitted(item, parts[0], name) for item in value)
    if is_dataclass(declared):
        return build(declared, value, name)
    accepted, expected = _ACCEPTED.get(declared, (str, f"one of {', '.join(parts)}"))
    fits = isinstance(value, accepted) and (declared is bool or not isinstance(value, bool))
    if not fits or (origin is typing.Literal and value not in parts):
        raise InputError(f"{name}: got {value!r:.80}, expected {expected}")
    try:
        return value if origin is typing.Literal else declared(value)
    except OverflowError:
        raise InputError(f"{name}: got {value!r:.80}, expected {expected}") from None


_ACCEPTED: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a string"),
    Path: (str | Path, "a path"),
}
