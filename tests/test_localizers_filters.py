import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dal_jax import InputError
from dal_jax.localizers import average_filter, gaussian_filter


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(6, 7, 1), (3, 2, 2)])
def test_equals_uniform_filter_with_zeros_outside(size, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    expected = ndimage.uniform_filter(x, (size, size, 1), mode="constant")
    np.testing.assert_allclose(
        average_filter(jnp.asarray(x), size), expected, atol=1e-14
    )  # rounding
    assert average_filter(jnp.asarray(x, np.float32), size).dtype == np.float32


@pytest.mark.parametrize("size", [0, 2, -3])
def test_a_size_that_is_not_odd_is_refused(size):
    with pytest.raises(InputError, match=f"size: got {size}, expected an odd number"):
        average_filter(jnp.ones((4, 4, 1)), size)


@pytest.mark.parametrize("sigma", [-1.0, np.inf, np.nan])
def test_a_blur_that_is_none_is_refused(sigma):
    with pytest.raises(InputError, match=f"sigma: got {sigma}, expected a finite number"):
        gaussian_filter(jnp.ones((4, 4)), sigma)


def test_only_linear_primitives():
    names = {e.primitive.name for e in jax.make_jaxpr(average_filter)(jnp.ones((4, 4, 1))).eqns}
    assert not names & {"max", "min", "select_n", "abs"}
