"""Fingerprints: stable across processes, different for different values, strict about kinds."""

import dataclasses
import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_jax import DalConfig, InputError
from dal_jax.runs import fingerprint


@dataclasses.dataclass(frozen=True)
class Settings:
    size: int
    scale: float = 1.0

    def __call__(self, x: float) -> float:
        return self.scale * x


@dataclasses.dataclass(frozen=True)
class OtherSettings:
    size: int
    scale: float = 1.0


class Pair(NamedTuple):
    left: Any
    right: Any


class OtherPair(NamedTuple):
    left: Any
    right: Any


class Plain:
    def method(self) -> None: ...


@jax.jit
def compiled(x: jax.Array) -> jax.Array:
    return x + 1.0


DIFFERENT = [
    None,
    False,
    0,
    0.0,
    -0.0,
    math.nan,
    "",
    "0",
    b"",
    b"0",
    [],
    {},
    [[]],
    [[], []],
    ["ab", "c"],
    ["a", "bc"],
    [1, [2, 3]],
    [[1, 2], 3],
    {"a": 1},
    {"a": 2},
    {"b": 1},
    {1: "a"},
    [("a", 1)],
    np.zeros(2),
    np.zeros(2, np.float32),
    np.zeros((2, 1)),
    np.zeros((1, 2)),
    np.zeros(2, np.int64),
    np.float64(0),
    jnp.zeros(2, jnp.bfloat16),
    jnp.zeros(2, jnp.float16),
    Settings(1),
    Settings(1, 2.0),
    OtherSettings(1),
    Pair(1, 2),
    OtherPair(1, 2),
    math.sin,
    math.cos,
    len,
    Settings,
    compiled,
    functools.partial(math.pow, 2),
    functools.partial(math.pow, 3),
    Settings(1).__call__,
    Settings(2).__call__,
]


def test_different_values_differ() -> None:
    found = [fingerprint(value) for value in DIFFERENT]
    assert len(set(found)) == len(found)
    assert all(len(text) == 64 and int(text, 16) >= 0 for text in found)
    assert fingerprint() != fingerprint(None) != fingerprint(None, None)


def test_equal_values_agree() -> None:
    image = np.arange(6.0).reshape(2, 3)
    pairs = [
        ({"a": 1, "b": [2]}, {"b": (2,), "a": 1}),
        (image, jnp.asarray(image)),
        (image, image.astype(">f8")),
        (image, np.asfortranarray(image)),
        (image[:, ::2], np.ascontiguousarray(image[:, ::2])),
        (Settings(1), Settings(1, 1.0)),
        (math.nan, float("nan")),
        (DalConfig(), DalConfig()),
    ]
    for one, other in pairs:
        assert fingerprint(one) == fingerprint(other)


@settings(max_examples=100, deadline=None)
@given(*2 * [st.recursive(st.integers(0, 2) | st.text("ab", max_size=2), st.lists, max_leaves=5)])
def test_equal_only_if_equal(one: Any, other: Any) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


@pytest.mark.slow
def test_other_processes_agree() -> None:
    code = """
import math
import numpy as np
from dal_jax import DalConfig
from dal_jax.runs import fingerprint
print(fingerprint({"a": {"x", }.pop(), "b": DalConfig()}, np.arange(3), math.sin, "text", 0.1))
"""
    expected = fingerprint({"b": DalConfig(), "a": "x"}, np.arange(3), math.sin, "text", 0.1)
    for seed in ("0", "1"):  # of Python's own hashes of text
        environ = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == expected


def nested() -> Callable[[], None]:
    def inner() -> None: ...

    return inner


@pytest.mark.parametrize(
    "part",
    [object(), {1, 2}, 1j, lambda x: x, nested(), Plain(), Plain().method, np.array([None])],
    ids=lambda part: type(part).__name__,
)
def test_other_kinds_are_refused(part: Any) -> None:
    with pytest.raises(InputError, match=r"^fingerprint: got .*expected") as caught:
        fingerprint({"deep": [part]})
    assert "\n" not in str(caught.value)


def test_random_keys_are_refused() -> None:
    with pytest.raises(InputError, match="fingerprint"):
        fingerprint(jax.random.key(0))
