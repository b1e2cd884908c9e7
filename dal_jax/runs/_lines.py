"""One record as one line of standard JSON with a checksum of itself."""

import json
import math
import re
import zlib
from typing import Any

from dal_jax._errors import InputError

FLOAT = "$float"  # key of the dictionary that stands for a float which JSON lacks
_CHECKED = re.compile(rb'\{"crc32":"([0-9a-f]{8})",(.*)', re.DOTALL)


def encode(value: Any) -> Any:
    """Turns a value into what standard JSON holds without loss.

    NaN and the infinities become `{"$float": "nan"}`, `"inf"` and `"-inf"`; every other float is
    written with as many digits as give back the same bits.

    Args:
        value: None, bool, int, float, str, scalars of numpy or JAX of these kinds, lists, tuples
            (which come back as lists) and dictionaries with str keys other than "$float".

    Returns:
        The same of plain Python types.

    Raises:
        InputError: another type or key.

    Example:
        >>> encode({"p": float("nan"), "sides": (32, 32)})
        {'p': {'$float': 'nan'}, 'sides': [32, 32]}
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {FLOAT: float.__repr__(value)}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == FLOAT:
                raise InputError(f"record: got the key {key!r}, expected str other than {FLOAT!r}")
        return {str.__str__(key): encode(item) for key, item in value.items()}
    raise InputError(
        f"record: got a value of {type(value).__module__}.{type(value).__qualname__}, "
        "expected None, bool, int, float, str, or lists and dictionaries of them"
    )


def decode(value: Any) -> Any:
    """Gives back what `encode` was given.

    Args:
        value: what `json.loads` returned.

    Returns:
        The value, with NaN and infinities as floats.

    Example:
        >>> decode(json.loads('{"p": {"$float": "inf"}, "k": 3}'))
        {'p': inf, 'k': 3}
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if list(value) == [FLOAT]:
            return float(value[FLOAT])
        return {key: decode(item) for key, item in value.items()}
    return value


def dumps(value: Any) -> str:
    """Writes a value on one line, dictionaries in the order of their keys' arrival."""
    return json.dumps(encode(value), allow_nan=False, separators=(",", ":"))


def canonical(value: Any) -> str:
    """Writes a value so that equal values, NaN too, give equal text."""
    return json.dumps(encode(value), allow_nan=False, sort_keys=True)


def to_line(fields: dict[str, Any]) -> bytes:
    """Writes fields as a line that can be checked.

    Args:
        fields: at least one.

    Returns:
        `{"crc32":"HHHHHHHH",...}` and a newline, all ASCII; the CRC-32 is that of the bytes behind
        the comma that follows it, newline excluded.

    Raises:
        InputError: as for `encode`.
    """
    rest = dumps(fields).encode("ascii")[1:]
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(rest), rest)


def from_line(line: bytes) -> dict[str, Any] | None:
    """Reads a line of `to_line`.

    Args:
        line: with its newline.

    Returns:
        The fields, or None if the line is not whole or its checksum does not fit.
    """
    found = _CHECKED.fullmatch(line.removesuffix(b"\n"))
    if not line.endswith(b"\n") or found is None:
        return None
    checksum, rest = found.groups()
    if int(checksum, 16) != zlib.crc32(rest):
        return None
    return decode(json.loads(b"{" + rest))
