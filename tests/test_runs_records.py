"""Lines of records: floats come back bit for bit, standard JSON, every changed byte is noticed."""

import json
import math
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_jax import InputError
from dal_jax.runs import decode, encode
from dal_jax.runs._records import canonical, from_line, to_line

KEYS = st.text(max_size=5).filter(lambda key: key != "$float")
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=8
)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no standard JSON")


def same(a: Any, b: Any) -> bool:
    """Equal with types, signs of zero and NaN."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
def test_round_trip(fields: dict[str, Any]) -> None:
    line = to_line(fields)
    assert line.isascii() and line.count(b"\n") == 1 and line.endswith(b"\n")
    assert same(from_line(line), fields)
    plain = json.loads(line, parse_constant=refuse)
    assert len(plain.pop("crc32", "")) == 8 or "crc32" in fields


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), st.data())
def test_changed_bytes_are_noticed(fields: dict[str, Any], data: Any) -> None:
    line = to_line(fields)
    at = data.draw(st.integers(0, len(line) - 1))
    change = data.draw(st.integers(1, 255))
    spoilt = line[:at] + bytes([line[at] ^ change]) + line[at + 1 :]
    assert from_line(spoilt) is None
    assert from_line(line[:at]) is None


def test_scalars_of_numpy_and_jax() -> None:
    values = {
        "a": np.float64(0.1),
        "b": np.float32(0.1),
        "c": np.int64(-3),
        "d": np.bool_(True),
        "e": np.str_("text"),
        "f": jnp.float32(0.1),
        "g": np.float64("nan"),
        "h": np.asarray(2.5),
        "i": (1, np.inf),
    }
    expected = {
        "a": 0.1,
        "b": float(np.float32(0.1)),
        "c": -3,
        "d": True,
        "e": "text",
        "f": float(np.float32(0.1)),
        "g": math.nan,
        "h": 2.5,
        "i": [1, math.inf],
    }
    assert same(decode(encode(values)), expected)
    assert encode([math.nan, math.inf, -math.inf]) == [
        {"$float": "nan"},
        {"$float": "inf"},
        {"$float": "-inf"},
    ]


def test_equal_values_have_one_text() -> None:
    assert canonical({"a": math.nan, "b": 1}) == canonical({"b": 1, "a": math.nan})
    assert canonical(0.0) != canonical(-0.0)


@pytest.mark.parametrize(
    "value",
    [np.zeros(2), {1: 2}, {"$float": "nan"}, b"bytes", 1j, {1, 2}, object(), np.longdouble(1)],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="record: got"):
        to_line({"value": value})
