import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dal_jax.models import mean_pool, upsample
from dal_jax.models._resample import double, undouble

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
