import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dal_jax import InputError
from dal_jax.models import activation, hinge_table

LINEAR = {"add", "sub", "mul", "max", "min", "broadcast_in_dim", "convert_element_type"}


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "relu6", "hard_tanh", "pl-silu:9", "pl-gelu:5"]
)
def test_piecewise_linear_ones_trace_to_max_and_min_only(name):
    jaxpr = jax.make_jaxpr(activation(name))(jnp.ones((2, 3)))
    assert {eqn.primitive.name for eqn in jaxpr.eqns} <= LINEAR


def test_relu_traces_to_max_with_a_literal_zero():
    (eqn,) = jax.make_jaxpr(activation("relu"))(jnp.ones(3)).eqns
    assert eqn.primitive.name == "max"
    assert eqn.invars[1].val == 0.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", [0.0, 0.0, 0.0, 0.5, 9.0]),
        ("leaky_relu", [-0.09, -0.005, 0.0, 0.5, 9.0]),
        ("relu6", [0.0, 0.0, 0.0, 0.5, 6.0]),
        ("hard_tanh", [-1.0, -0.5, 0.0, 0.5, 1.0]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values(name, expected, dtype):
    y = activation(name)(jnp.asarray([-9.0, -0.5, 0.0, 0.5, 9.0], dtype))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, np.asarray(expected, dtype), rtol=1e-6)  # float32 rounding


@pytest.mark.parametrize("family", ["silu", "gelu"])
def test_piecewise_linear_stand_in_nears_the_smooth_function(family):
    x = np.linspace(-12, 12, 4001)
    smooth = x * (special.expit(x) if family == "silu" else special.ndtr(x))
    np.testing.assert_allclose(activation(family)(x), smooth, atol=1e-14)  # rounding
    error = [
        np.abs(np.asarray(activation(f"pl-{family}:{k}")(jnp.asarray(x))) - smooth).max()
        for k in (5, 9, 17, 33)
    ]
    # Interpolation error falls as 1/K^2, down to the 0.003 by which silu misses its asymptotes.
    assert error[1] < 0.4 * error[0]
    assert error[2] < 0.4 * error[1]
    assert error[3] < 0.006


@pytest.mark.parametrize("name", ["pl-silu:7", "pl-gelu:12"])
def test_stand_in_is_continuous_with_asymptotes_for_tails(name):
    knots, changes = hinge_table(name)
    assert (np.diff(knots) > 0).all()
    np.testing.assert_allclose([knots[0], knots[-1]], [-8.0, 8.0], atol=1e-12)  # rounding
    assert abs(changes.sum() - 1.0) < 1e-14  # rounding of a telescoping sum
    f = activation(name)
    assert (f(jnp.asarray([-100.0, -8.0])) == 0.0).all()
    tail = np.asarray([8.0, 30.0])
    np.testing.assert_allclose(f(jnp.asarray(tail)), tail, rtol=1e-13)  # sum of K roundings
    near = np.sort(np.concatenate([knots - 1e-9, knots + 1e-9]))
    assert np.abs(np.diff(np.asarray(f(jnp.asarray(near)))))[::2].max() < 1e-8  # no jump


@pytest.mark.parametrize("name", ["tanh", "pl-silu", "pl-silu:2", "pl-silu:x", "pl-relu:5", "", 3])
def test_unknown_name_is_refused(name):
    with pytest.raises(InputError, match="activation: got"):
        activation(name)
    with pytest.raises(InputError, match="activation: got"):
        hinge_table(name)
