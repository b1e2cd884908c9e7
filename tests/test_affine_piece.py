"""`affine_piece`: transformations, breakpoints, status, refusals, networks."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    END,
    ROUNDING,
    Case,
    Direct,
    check_pieces,
    mlp_pieces,
    mlp_windows,
    random_mlp,
    small_unet,
    walked_windows,
    x,
    y,
)
from jax import lax

from dal_jax import NotPiecewiseAffineError
from dal_jax.affine import PieceStatus, affine_piece

INF = math.inf


def mixed(z: Any) -> dict[str, Any]:
    """A bit of everything, in a tree."""
    h, _ = lax.scan(lambda c, v: (jnp.abs(c - v), None), x(z), jnp.stack([y(z), x(z)]))
    h = lax.cond(jnp.sum(h) > 4.0, jnp.sort, lambda v: jnp.maximum(v, 1.0), h)
    return {"h": h, "first": (jnp.argmax(h), h[0] > 2.0), "one": 1.0}


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.slow
def test_same_under_every_transformation() -> None:
    piece = partial(affine_piece, mixed)
    zs = jnp.array([-1.3, 0.2, 2.1])
    rows = [jax.jit(piece)(z) for z in zs]
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *rows)
    assert set(rows[0].value) == {"h", "first", "one"}
    assert_same(piece(zs[0]), rows[0])
    assert_same(jax.jit(jax.vmap(piece))(zs), stacked)
    assert_same(jax.vmap(jax.jit(piece))(zs), stacked)
    assert_same(lax.scan(lambda _, z: (None, piece(z)), None, zs)[1], stacked)


def test_batched_functions() -> None:
    # Each lane of a vmap has a function of its own.
    shifts = jnp.array([0.5, -0.25])
    pieces = jax.vmap(lambda s: affine_piece(lambda z: jnp.abs(z - s), 0.0))(shifts)
    np.testing.assert_array_equal(pieces.value, [0.5, 0.25])
    np.testing.assert_array_equal(pieces.slope, [-1.0, 1.0])
    np.testing.assert_array_equal(pieces.lo, [-INF, -0.25])
    np.testing.assert_array_equal(pieces.hi, [0.5, INF])


def test_dtypes() -> None:
    piece = affine_piece(lambda z: (jnp.maximum(z, 0.0), jnp.argmax(jnp.stack([z, -z]))), 2.0)
    assert piece.value[1].dtype.kind == "i" and piece.slope[1] == 0.0
    for leaf in (*piece.value[:1], *piece.slope, piece.lo, piece.hi):
        assert leaf.dtype == np.float64
    piece = affine_piece(lambda z: jnp.abs(z - 1), jnp.float32(0.5))
    assert {leaf.dtype for leaf in (piece.value, piece.slope, piece.lo, piece.hi)} == {
        np.dtype(np.float32)
    }
    assert (float(piece.value), float(piece.slope), float(piece.hi)) == (0.5, -1.0, 1.0)


def test_other_precision_inside() -> None:
    def f(z: Any) -> Any:
        h, _ = lax.scan(
            lambda c, _: (jnp.abs(c - np.float32(1)), None), z.astype(np.float32), None, 2
        )
        return h.astype(np.float64)

    piece = affine_piece(f, 0.25)
    assert (float(piece.value), float(piece.slope)) == (0.25, 1.0)
    assert (float(piece.lo), float(piece.hi), piece.lo.dtype) == (0.0, 1.0, np.float64)


@pytest.mark.parametrize("z", [1, np.array([1.0]), True, 1j])
def test_only_floating_scalars(z: Any) -> None:
    with pytest.raises(TypeError, match="floating-point scalar"):
        affine_piece(lambda z: z, z)


# f, z, value, slope, lo, hi: the piece to the right of z, exactly.
BREAKPOINTS: dict[str, tuple[Callable[[Any], Any], float, Any, Any, float, float]] = {
    "relu": (lambda z: jax.nn.relu(z), 0.0, 0.0, 1.0, 0.0, INF),
    "relu_left": (lambda z: jax.nn.relu(z), -1.0, 0.0, 0.0, -INF, 0.0),
    "relu_falling": (lambda z: jax.nn.relu(-z), 0.0, 0.0, 0.0, 0.0, INF),
    "abs": (lambda z: jnp.abs(z), 0.0, 0.0, 1.0, 0.0, INF),
    "abs_falling": (lambda z: jnp.abs(1.5 - z), 1.5, 0.0, 1.0, 1.5, INF),
    "minimum": (lambda z: jnp.minimum(z, -z), 0.0, 0.0, -1.0, 0.0, INF),
    "clip_top": (lambda z: jnp.clip(z, 0.0, 1.0), 1.0, 1.0, 0.0, 1.0, INF),
    "clip_bottom": (lambda z: jnp.clip(z, 0.0, 1.0), 0.0, 0.0, 1.0, 0.0, 1.0),
    "relu_twice": (lambda z: jax.nn.relu(jax.nn.relu(z) - 0.5), 0.5, 0.0, 1.0, 0.5, INF),
    "never": (lambda z: 3.0 * z, 0.0, 0.0, 3.0, -INF, INF),
    "static": (lambda z: jnp.exp(jnp.ones(2)) * 0 + 2, 0.5, [2.0, 2.0], [0.0, 0.0], -INF, INF),
    # comparisons: their limits from the right, whatever they say at the breakpoint
    "gt": (lambda z: jnp.where(z > 0, 2.0, 1.0), 0.0, 2.0, 0.0, 0.0, INF),
    "ge": (lambda z: jnp.where(z >= 0, 2.0, 1.0), 0.0, 2.0, 0.0, 0.0, INF),
    "lt": (lambda z: jnp.where(z < 0, 2.0, 1.0), 0.0, 1.0, 0.0, 0.0, INF),
    "le": (lambda z: jnp.where(z <= 0, 2.0, 1.0), 0.0, 1.0, 0.0, 0.0, INF),
    "eq": (lambda z: jnp.where(z == 0, 2.0, 1.0), 0.0, 1.0, 0.0, 0.0, INF),
    "ne": (lambda z: jnp.where(z != 0, 2.0, 1.0), 0.0, 2.0, 0.0, 0.0, INF),
    "gt_falling": (lambda z: jnp.where(-z > 0, 2.0, 1.0), 0.0, 1.0, 0.0, 0.0, INF),
    "ge_flat": (lambda z: jnp.where(jax.nn.relu(z) >= 0, 2.0, 1.0), -1.0, 2.0, 0.0, -INF, 0.0),
    "le_flat": (lambda z: jax.nn.relu(z) <= 0, -1.0, True, 0.0, -INF, 0.0),
    "eq_flat": (lambda z: jax.nn.relu(z) == 0, -1.0, True, 0.0, -INF, 0.0),
    "sign": (lambda z: jnp.sign(z), 0.0, 1.0, 0.0, 0.0, INF),
    "sign_flat": (lambda z: jnp.sign(jax.nn.relu(z)), -1.0, 0.0, 0.0, -INF, 0.0),
    "cond": (lambda z: lax.cond(z > 0, lambda v: v + 5.0, lambda v: v, z), 0.0, 5.0, 1.0, 0.0, INF),
    "of_bool": (lambda z: z.astype(bool), 0.0, True, 0.0, 0.0, INF),
    # ties among many: by value, then slope, then place
    "argmax": (lambda z: jnp.argmax(jnp.stack([-z, z, 2 * z])), 0.0, 2, 0.0, 0.0, INF),
    "argmin": (lambda z: jnp.argmin(jnp.stack([z, -z, -z])), 0.0, 1, 0.0, 0.0, INF),
    "argmax_identical": (lambda z: jnp.argmax(jnp.stack([z, z, z - 1])), 0.0, 0, 0.0, -INF, INF),
    "max_identical": (lambda z: jnp.maximum(z, z), 0.0, 0.0, 1.0, -INF, INF),
    "reduce_min": (lambda z: jnp.min(jnp.stack([-z, z])), 0.0, 0.0, -1.0, 0.0, INF),
    "sort": (
        *(lambda z: jnp.sort(jnp.stack([2 * z, z, -z])), 0.0),
        *([0.0, 0.0, 0.0], [-1.0, 1.0, 2.0], 0.0, INF),
    ),
    "argsort": (
        *(lambda z: jnp.argsort(jnp.stack([2 * z, z, z, -z])), 0.0),
        *([3, 1, 2, 0], [0.0] * 4, 0.0, INF),
    ),
    "top_k": (
        *(lambda z: lax.top_k(jnp.stack([z, 2 * z, 2 * z]), 2)[1], 0.0),
        *([1, 2], [0.0, 0.0], 0.0, INF),
    ),
    "cummax": (
        *(lambda z: lax.cummax(jnp.stack([z, 2 * z, -z])), 0.0),
        *([0.0, 0.0, 0.0], [1.0, 2.0, 2.0], 0.0, INF),
    ),
    "max_pool": (
        lambda z: lax.reduce_window(jnp.stack([z, -z, -1.0]), -INF, lax.max, (3,), (1,), "SAME"),
        *(0.0, [0.0, 0.0, 0.0], [1.0, 1.0, -1.0], 0.0, 1.0),
    ),
}


@pytest.mark.parametrize("name", BREAKPOINTS)
def test_right_limit(name: str) -> None:
    f, z, *expected = BREAKPOINTS[name]
    piece = affine_piece(f, z)
    assert piece.status == PieceStatus.OK
    # All numbers in these cases are exact in binary: no tolerance.
    for found, wanted in zip(piece[:4], expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_tie() -> None:
    # Between two kinks one rounding apart no point can be named.
    eps = np.finfo(float).eps
    piece = affine_piece(lambda z: jax.nn.relu(z - 1.0) + jax.nn.relu(z - (1.0 + eps)), 1.0)
    assert piece.status == PieceStatus.TIE
    assert affine_piece(lambda z: jax.nn.relu(z - 1.0), 1.0).status == PieceStatus.OK


NON_FINITE: dict[str, Callable[[Any], Any]] = {
    "nan_weight": lambda z: jax.nn.relu(z * jnp.nan),
    "nan_bias": lambda z: jnp.stack([z, z + jnp.nan]),
    "inf_value": lambda z: z + jnp.inf,
    "inf_slope": lambda z: z / 0.0,
    "nan_does_not_lose_a_maximum": lambda z: jnp.max(jnp.stack([z, 0.0 * z + jnp.nan])),
    "nor_a_running_one": lambda z: lax.cummax(jnp.stack([0.0 * z + jnp.nan, z]))[1],
    "nor_a_later_running_one": lambda z: lax.cummax(jnp.stack([z, 0.0 * z + jnp.nan]))[1],
    "nor_a_sign": lambda z: jnp.sign(0.0 * z + jnp.nan),
    "nor_a_pool": lambda z: lax.reduce_window(
        jnp.stack([z, 0.0 * z + jnp.nan]), -jnp.inf, lax.max, (2,), (1,), "VALID"
    ),
    "decides": lambda z: z * jnp.nan > 0.0,
}


@pytest.mark.parametrize("name", NON_FINITE)
def test_non_finite(name: str) -> None:
    piece = jax.jit(partial(affine_piece, NON_FINITE[name]))(0.5)
    assert piece.status == PieceStatus.NON_FINITE
    assert np.isnan(piece.lo) and np.isnan(piece.hi)


@pytest.mark.parametrize("z", [np.nan, np.inf, -np.inf])
def test_non_finite_point(z: float) -> None:
    assert affine_piece(jax.nn.relu, z).status == PieceStatus.NON_FINITE


def test_untaken_branch_may_be_non_finite() -> None:
    piece = affine_piece(
        lambda z: lax.cond(z > 0, lambda v: v, lambda v: jax.nn.relu(v * jnp.nan), z), 2.0
    )
    assert piece.status == PieceStatus.OK
    assert (float(piece.value), float(piece.slope), float(piece.lo)) == (2.0, 1.0, 0.0)


# One line each: the error must name it.
REFUSED: list[tuple[str, Callable[[Any], Any]]] = [
    ("tanh", lambda z: jnp.tanh(x(z))),
    ("logistic", lambda z: jax.nn.silu(x(z))),
    ("logistic", lambda z: 1.0 + jax.nn.silu(x(z))),
    ("exp", lambda z: jax.nn.softmax(x(z))),
    ("exp", lambda z: jax.nn.logsumexp(x(z))),
    ("exp", lambda z: jnp.exp(x(z))),
    ("sqrt", lambda z: jnp.sqrt(x(z))),
    ("div", lambda z: 1.0 / x(z)),
    ("div", lambda z: x(z) / z),
    ("mul", lambda z: x(z) * y(z)),
    ("dot_general", lambda z: x(z) @ y(z)),
    ("integer_pow", lambda z: x(z) ** 2),
    ("pow", lambda z: x(z) ** 1.5),
    ("square", lambda z: jnp.square(x(z))),
    ("square", lambda z: jnp.var(x(z))),
    ("erf", lambda z: jax.scipy.special.erf(x(z))),
    ("erfc", lambda z: jax.nn.gelu(x(z), approximate=False)),
    ("integer_pow", lambda z: jax.nn.gelu(x(z))),
    ("floor", lambda z: jnp.floor(x(z))),
    ("round", lambda z: jnp.round(x(z))),
    ("convert_element_type", lambda z: x(z).astype(int)),
    ("rem", lambda z: x(z) % 1.0),
    ("cumprod", lambda z: jnp.cumprod(x(z))),
    ("scatter-max", lambda z: x(z).at[0].max(0.0)),
    ("while", lambda z: lax.while_loop(lambda v: v < 3.0, lambda v: v + 1.0, z)),
    ("sin", lambda z: lax.scan(lambda c, _: (jnp.sin(c), None), z, None, 2)[0]),
    ("tanh", lambda z: lax.cond(True, lambda v: v, jnp.tanh, z)),
    ("sort", lambda z: lax.sort((x(z), y(z)), num_keys=2)),
    ("sort", lambda z: lax.sort((jnp.ones(7), x(z)), num_keys=1)),
    ("abs", lambda z: jnp.abs(jnp.fft.fft(x(z)))),
    ("eq", lambda z: jnp.fft.fft(x(z)) == 0.0),
    ("sort", lambda z: jnp.sort(jnp.fft.fft(x(z)))),
]


@pytest.mark.parametrize("case", REFUSED, ids=[f"{n}{k}" for k, (n, _) in enumerate(REFUSED)])
def test_refused_by_name_and_line(case: tuple[str, Callable[[Any], Any]]) -> None:
    primitive, f = case
    with pytest.raises(NotPiecewiseAffineError) as caught:
        affine_piece(f, 0.5)
    assert caught.value.primitive == primitive
    assert str(caught.value).startswith(f"{primitive} at ")
    assert f"test_affine_piece.py:{f.__code__.co_firstlineno}:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_in_a_jitted_helper() -> None:
    @jax.jit
    def helper(v: Any) -> Any:
        return jnp.tanh(v)

    line = inspect.unwrap(helper).__code__.co_firstlineno + 2
    for _ in range(2):  # the second time from JAX's cache of traces
        with pytest.raises(NotPiecewiseAffineError, match=rf"test_affine_piece.py:{line}:"):
            affine_piece(lambda z: helper(x(z)), 0.5)


def test_what_does_not_move_is_never_refused() -> None:
    def f(z: Any) -> Any:
        waves = jnp.tanh(jnp.sin(jnp.arange(7.0))) ** 2
        turns = lax.while_loop(lambda n: n < 3.0, lambda n: n + 1.0, 0.0)
        steps = jnp.exp(jnp.floor(jnp.sign(z)))  # jumps, but does not move in between
        return waves * x(z) / turns + steps + jnp.isfinite(z).astype(float)

    piece = affine_piece(f, 0.5)
    assert piece.status == PieceStatus.OK
    assert (float(piece.lo), float(piece.hi)) == (0.0, INF)
    np.testing.assert_allclose(piece.value, f(0.5), rtol=ROUNDING)


@pytest.mark.parametrize("seed", range(3))
def test_windows_of_a_random_network(seed: int) -> None:
    net = random_mlp(seed, [16, 16, 2])
    expected = mlp_windows(net, -4.0, 4.0)
    walked = walked_windows(net, -4.0, 4.0)
    assert len(walked) == len(expected) > 20
    np.testing.assert_allclose(walked, expected, rtol=END, atol=END)
    middles = np.clip(walked, -4.0, 4.0).mean(1)
    value, slope, *_ = mlp_pieces(net, middles)
    pieces = jax.jit(jax.vmap(partial(affine_piece, net)))(middles)
    np.testing.assert_allclose(pieces.value, value, rtol=ROUNDING, atol=10 * ROUNDING)
    np.testing.assert_allclose(pieces.slope, slope, rtol=ROUNDING, atol=10 * ROUNDING)


@pytest.mark.slow
def test_unet() -> None:
    unet = small_unet()
    check_pieces(Case(unet), np.random.default_rng(3).uniform(-3, 3, 16), Direct(unet))
