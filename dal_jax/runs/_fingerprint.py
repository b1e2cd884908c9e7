"""Fingerprints of nested values, by which equal requests of two runs are recognized."""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dal_jax._errors import InputError


def fingerprint(*parts: Any) -> str:
    """Return a hash of nested values, the same in every process and on every machine.

    Every value is reduced to SHA-256(kind, hashes of its parts), so that neither the order of a
    dictionary nor a border between neighbours can hide a difference. A list and a tuple of the same
    parts count as the same; 1, 1.0 and True do not, nor do numpy scalars, which count as arrays.
    Code counts by its name alone: a caller who wants to distinguish versions adds them as parts.

    Args:
        *parts: Arrays of numpy or JAX, dataclasses, named tuples, dictionaries, lists, tuples, str,
            bytes, int, float, bool, None, and functions, classes and methods that can be found by
            their names, or `functools.partial` of them.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: A part is of another kind, or a function has no name of its own (a lambda, or
            one made inside another), since two of them could not be distinguished.

    Example:
        >>> fingerprint({"a": 1, "b": 2.0}) == fingerprint({"b": 2.0, "a": 1})
        True
    """
    return _digest(parts).hex()


def _digest(part: Any) -> bytes:
    if part is None:
        return _hash("None")
    if isinstance(part, np.ndarray | np.generic | jax.Array):  # first: np.float64 is a float, too
        return _array(part)
    if isinstance(part, bool):
        return _hash("bool", b"%d" % part)
    if isinstance(part, int):
        return _hash("int", int.__repr__(part).encode())
    if isinstance(part, float):
        return _hash("float", float.__repr__(part).encode())
    if isinstance(part, str):
        return _hash("str", str.encode(part, errors="surrogatepass"))
    if isinstance(part, bytes | bytearray):
        return _hash("bytes", bytes(part))
    names = getattr(part, "_fields", None) if isinstance(part, tuple) else None
    if names is not None:
        return _hash("namedtuple", _name(type(part)), _digest(names), _digest([*part]))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        return _hash("dataclass", _name(type(part)), _digest(fields))
    if isinstance(part, Mapping):
        pairs = sorted((_digest(key), _digest(value)) for key, value in part.items())
        return _hash("dict", *(digest for pair in pairs for digest in pair))
    if isinstance(part, list | tuple):
        return _hash("sequence", *map(_digest, part))
    if isinstance(part, functools.partial):
        return _hash("partial", *map(_digest, (part.func, part.args, part.keywords)))
    if inspect.ismethod(part):
        return _hash("method", part.__func__.__name__.encode(), _digest(part.__self__))
    return _hash("callable", _name(part))


def _hash(kind: str, *contents: bytes) -> bytes:
    parts = (hashlib.sha256(content).digest() for content in (kind.encode(), *contents))
    return hashlib.sha256(b"".join(parts)).digest()


def _array(part: Any) -> bytes:
    try:
        array = np.asarray(part)
    except (TypeError, RuntimeError) as error:  # random keys; arrays spread over several hosts
        raise _unsupported(part) from error
    if array.dtype.hasobject:
        raise _unsupported(part)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    # The name tells apart the small floats of JAX, which all say "<V1" or "<V2".
    facts = f"{array.dtype.str} {array.dtype.name} {array.shape}"
    return _hash("array", facts.encode(), array.tobytes())


def _name(part: Callable[..., Any] | type) -> bytes:
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", None)
    if not callable(part) or not isinstance(module, str) or not isinstance(name, str):
        raise _unsupported(part)
    if "<lambda>" in name or ("<locals>" in name and not isinstance(part, type)):
        raise InputError(
            f"fingerprint: got the function {module}.{name}, "
            "expected one defined at the top of a module or a frozen dataclass with __call__"
        )
    # A class that has moved goes by the name of its first place.
    own = getattr(part, "__dict__", {}).get("__fingerprint__")
    return (own or f"{module}.{name}").encode()


def _unsupported(part: Any) -> InputError:
    return InputError(
        f"fingerprint: got {type(part).__module__}.{type(part).__qualname__}, "
        "expected arrays, numbers, text, named functions, or dataclasses and containers of them"
    )
