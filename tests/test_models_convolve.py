"""Halving, doubling and convolving: as the library does, and linear where they must be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dal_jax.models import _convolve, mean_pool, upsample
from dal_jax.models._convolve import (
    border_kernel,
    by_products,
    convolve,
    convolve_doubled,
    convolve_doubled_one_gradient,
    convolve_one_gradient,
    double,
    lay_out,
    lay_out_doubled,
    scheme,
    spread,
    transpose_kernel,
    undouble,
)

LINEAR = {"add", "mul", "reshape", "slice", "concatenate", "reduce_sum", "broadcast_in_dim"}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 2, 3, 1), (1, 5, 8, 3)])
def test_upsample_equals_bilinear_resize(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    target = (shape[0], 2 * shape[1], 2 * shape[2], shape[3])
    expected = jax.image.resize(jnp.asarray(x), target, "bilinear")
    np.testing.assert_allclose(upsample(jnp.asarray(x)), expected, atol=1e-14)  # rounding


def test_mean_pool_equals_means():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3))
    expected = [
        [x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in range(0, 6, 2)] for i in range(0, 4, 2)
    ]
    expected = np.transpose(expected, (2, 0, 1, 3))
    np.testing.assert_allclose(mean_pool(jnp.asarray(x)), expected, atol=1e-15)  # rounding


@pytest.mark.slow
@pytest.mark.parametrize("function", [mean_pool, upsample])
def test_only_linear_primitives_and_dtype_kept(function):
    x = jnp.ones((1, 4, 4, 2), jnp.float32)
    jaxpr = jax.make_jaxpr(function)(x)
    assert {eqn.primitive.name for eqn in jaxpr.eqns} <= LINEAR
    assert function(x).dtype == jnp.float32
    batch = jax.vmap(jax.jit(function))(jnp.stack([x, x + 1.0]))
    np.testing.assert_allclose(batch[1] - batch[0], 1.0, rtol=1e-6)  # float32 rounding


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 5])
def test_undouble_is_the_transpose_of_double(size):
    rng = np.random.default_rng(size)
    for axis in (0, 1):
        shape = [3, 3]
        shape[axis] = size
        x = jnp.asarray(rng.standard_normal(shape))
        y = double(x, axis)
        g = jnp.asarray(rng.standard_normal(y.shape))
        (expected,) = jax.vjp(lambda v, axis=axis: double(v, axis), x)[1](g)
        np.testing.assert_allclose(undouble(g, axis), expected, atol=1e-15)  # rounding


SIZES = [(1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (8, 8), (12, 20), (3, 5), (9, 4)]


@jax.jit
def library(x, kernel):
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)


def drawn(seed, *shapes, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def assert_close(found, expected, tolerance):
    assert found.dtype == expected.dtype
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize(
    ("size", "channels"),
    [*((size, (32, 33)) for size in SIZES), ((2, 2), (1, 3)), ((8, 8), (1, 3)), ((4, 8), (65, 40))],
)
def test_convolve_equals_the_library(size, channels):
    x, kernel = drawn(0, (2, *size, channels[0]), (3, 3, *channels))
    found = jax.jit(lambda x, k: convolve(x, lay_out(k, *size)))(x, kernel)
    assert_close(found, library(x, kernel), 1e-13)  # rounding of sums of up to 9 x 65 products


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (12, 20)])
def test_float32_rounds_about_as_the_library_does(size):
    wide = drawn(1, (2, *size, 64), (3, 3, 64, 64))
    x, kernel = (a.astype(np.float32) for a in wide)
    found = jax.jit(lambda x, k: convolve(x, lay_out(k, *size)))(x, kernel)
    assert by_products(size[0], size[1], kernel)
    assert found.dtype == np.float32
    exact = library(x.astype(np.float64), kernel.astype(np.float64))
    # 9 x 64 products: some 5e-7 by the library; the points cost a factor of about two.
    assert_close(found.astype(np.float64), exact, 3e-6)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((1, 1), marks=pytest.mark.slow),
        pytest.param((1, 2), marks=pytest.mark.slow),
        (2, 2),
        pytest.param((6, 10), marks=pytest.mark.slow),
        (3, 1),
    ],
)
@pytest.mark.parametrize("channels", [pytest.param((1, 2), marks=pytest.mark.slow), (5, 3)])
def test_convolve_doubled_equals_upsampling_first(size, channels):
    x, kernel = drawn(2, (2, *size, channels[0]), (3, 3, *channels))
    found = jax.jit(lambda x, k: convolve_doubled(x, lay_out_doubled(k, *size)))(x, kernel)
    assert_close(found, library(upsample(x), kernel), 1e-13)  # rounding


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 2), (4, 9)])
def test_borders_are_the_convolution_of_a_constant_map(size):
    shift, kernel = drawn(3, (2, 5), (3, 3, 5, 4))
    constant = jnp.broadcast_to(shift[:, None, None], (2, *size, 5))

    def spread_borders(shift, kernel):
        met = jnp.einsum("bc,ijcd->bijd", shift, border_kernel(kernel, *size))
        return spread(met, *size)

    assert_close(
        jax.jit(spread_borders)(shift, kernel), library(constant, kernel), 1e-14
    )  # rounding


def test_under_vmap_and_grad():
    x, kernel = drawn(4, (3, 2, 8, 8, 32), (3, 3, 32, 32))

    def total(k, method):
        return jnp.sum(jax.vmap(lambda y: method(y, k))(x) ** 2)

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    found = gradient(kernel, lambda y, k: convolve(y, lay_out(k, 8, 8)))
    assert_close(found, gradient(kernel, library), 1e-12)  # rounding of sums of 384 terms


def test_the_number_of_products():
    found = {side: scheme(side) for side in (1, 2, 4, 8, 20)}
    counts = {side: len(rule.kernel) for side, rule in found.items() if rule is not None}
    assert counts == {1: 1, 2: 3, 4: 6, 8: 6, 20: 6}
    assert scheme(3) is scheme(6) is None


def test_kernels_are_laid_out_for_the_platform_of_the_program():
    kernel = np.ones((3, 3, 64, 64), np.float32)
    with jax.default_device("tpu"):  # nothing is computed there
        assert jax.eval_shape(lambda k: lay_out(k, 8, 8), kernel).shape == kernel.shape
    with jax.default_device(jax.devices("cpu")[0]):
        assert jax.eval_shape(lambda k: lay_out(k, 8, 8), kernel).shape[:2] != (3, 3)


def test_left_to_the_library_where_that_is_faster(monkeypatch):
    def chosen(size, channels=(64, 64), dtype=np.float32):
        return by_products(size[0], size[1], jax.ShapeDtypeStruct((3, 3, *channels), dtype))

    assert chosen((8, 8)) and chosen((2, 2), (3, 4))
    assert not chosen((8, 8), (1, 64))  # few channels
    assert not chosen((6, 6))  # no scheme
    assert not chosen((256, 256))  # leaves the cache
    assert not chosen((8, 8), dtype=jnp.bfloat16)
    monkeypatch.setattr(_convolve, "on_cpu", lambda: False)
    assert not chosen((8, 8)) and not chosen((2, 2))


@partial(jax.jit, static_argnums=0)
def both(f, x, g):
    """The value, and what g is pulled back to."""
    y, pull = jax.vjp(f, x)
    return y, pull(g)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("side", "channels"), [(2, (3, 4)), (4, (32, 32)), (6, (3, 5))])
def test_the_gradient_written_out_is_the_derived_one(side, channels):
    kernel, x = drawn(side, (3, 3, *channels), (2, side, side, channels[0]))
    laid, back = lay_out(kernel, side, side), transpose_kernel(kernel)
    doubled = lay_out_doubled(kernel, side, side)
    for own, derived in (
        (lambda v: convolve_one_gradient(v, laid, back), lambda v: convolve(v, laid)),
        (
            lambda v: convolve_doubled_one_gradient(v, doubled, back),
            lambda v: convolve_doubled(v, doubled),
        ),
    ):
        (g,) = drawn(1, jax.eval_shape(own, x).shape)
        (y, pulled_back), (expected, known) = (both(f, x, g) for f in (own, derived))
        assert_close(y, expected, 1e-12)  # other orders of summation
        assert_close(pulled_back, known, 1e-12)
