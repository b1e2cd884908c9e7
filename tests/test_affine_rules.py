"""Every supported primitive operation, through the affine piece and through the sweep."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KERNEL, MASK, MATRIX, B, C, Case, check_case, image, x, y
from jax import lax


def replaced(test: Any, value: float, v: Any) -> Any:
    """Masks with an infinity and replaces it again."""
    masked = jnp.where(MASK, v, value)
    return jnp.where(test(masked, value), 0.5, masked)


CASES = {
    # activations
    "relu": Case(lambda z: jax.nn.relu(x(z))),
    "relu_of_z": Case(lambda z: jax.nn.relu(z)),
    "leaky_relu": Case(lambda z: jax.nn.leaky_relu(x(z))),
    "hard_tanh": Case(lambda z: jax.nn.hard_tanh(x(z))),
    "relu6": Case(lambda z: jax.nn.relu6(3.0 * x(z))),
    "abs": Case(lambda z: jnp.abs(x(z))),
    "sign": Case(lambda z: jnp.sign(x(z))),
    # bounds and choices between two
    "maximum": Case(lambda z: jnp.maximum(x(z), y(z))),
    "minimum_of_static": Case(lambda z: jnp.minimum(C, x(z))),
    "clip": Case(lambda z: jnp.clip(x(z), -1.0, 0.5)),
    "clip_in_moving": Case(lambda z: jnp.clip(x(z), y(z), y(z) + 1.0)),
    # JAX cannot batch the derivative of a clamp between scalars: the references are without.
    "clamp_between_scalars": Case(
        lambda z: lax.clamp(0.5 * z, x(z), 0.5 * z + 1.0),
        lambda z: jnp.clip(x(z), 0.5 * z + np.zeros(7), 0.5 * z + np.ones(7)),
    ),
    "clamp_of_static": Case(
        lambda z: lax.clamp(z - 1.0, jnp.asarray(C), z),
        lambda z: jnp.clip(C, z - np.ones(7), z + np.zeros(7)),
    ),
    "clamp_in_a_loop": Case(
        lambda z: lax.fori_loop(0, 2, lambda _, c: c + lax.clamp(z, jnp.asarray(C), z + 1.0), x(z)),
        lambda z: x(z) + 2.0 * jnp.clip(C, z + np.zeros(7), z + np.ones(7)),
    ),
    # comparisons
    "where_gt_lt": Case(
        lambda z: (jnp.where(x(z) > 0.5, x(z), -1.0), jnp.where(jnp.less(0.3, y(z)), x(z), -1.0))
    ),
    # Where a comparison with "or equal" holds on a whole interval.
    "where_ge_le": Case(
        lambda z: (
            jnp.where(jnp.minimum(x(z), 0.0) >= 0.0, 2.0, y(z)),
            jnp.where(jnp.maximum(y(z), 0.0) <= 0.0, 2.0, x(z)),
        )
    ),
    "where_eq_ne": Case(
        lambda z: (
            jnp.where(jnp.maximum(x(z), 0.0) == 0.0, y(z), x(z)),
            jnp.where(jnp.maximum(y(z), 0.0) != 0.0, y(z), x(z)),
        )
    ),
    "where_two_moving": Case(lambda z: jnp.where(x(z) > y(z), x(z), 1.0)),
    "where_chained": Case(
        lambda z: jnp.where(jnp.where(x(z) > 0.0, y(z), -x(z)) > 0.3, x(z), z), sharp=False
    ),
    "mask_of_bool": Case(lambda z: jax.nn.relu(x(z)).astype(bool).astype(float)),
    "times_step": Case(lambda z: x(z) * (y(z) > 0.0).astype(float)),
    "divided_by_step": Case(lambda z: x(z) / (1.0 + jnp.sum(x(z) > 0.0).astype(float))),
    "step_of_step": Case(lambda z: jnp.exp(jnp.sign(x(z))) * jnp.cumsum(x(z) > 0.0).astype(float)),
    "compared_with_step": Case(lambda z: jnp.maximum(x(z), jnp.sign(y(z))), sharp=False),
    "select_n": Case(
        lambda z: lax.select_n(
            (x(z) > 0.0).astype(jnp.int32) + (y(z) > 0.0).astype(jnp.int32), x(z), y(z), 3.0 * y(z)
        ),
        sharp=False,
    ),
    "nan_to_num": Case(lambda z: jnp.nan_to_num(jnp.abs(x(z)))),
    # infinities that mask
    "compared_with_mask": Case(
        lambda z: (
            replaced(jnp.equal, -jnp.inf, x(z)),
            replaced(jnp.greater_equal, jnp.inf, y(z)),
        )
    ),
    # linear operations after a choice
    "matmul": Case(lambda z: MATRIX @ jax.nn.relu(MATRIX @ x(z) + B)),
    "conv": Case(
        lambda z: lax.conv_general_dilated(
            jnp.abs(image(z)),
            jnp.asarray(KERNEL),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    ),
    "avg_pool": Case(
        lambda z: lax.reduce_window(
            jnp.abs(image(z)), 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"
        )
    ),
    "resize": Case(lambda z: jax.image.resize(jnp.abs(image(z)), (1, 9, 10, 2), "bilinear")),
    "concatenate": Case(lambda z: jnp.concatenate([jnp.abs(x(z)), jnp.ones(2), y(z)])),
    "stack_split": Case(
        lambda z: (
            jnp.stack([jnp.abs(x(z)), y(z)]),
            jnp.split(jnp.abs(y(z)), [3]),
            jnp.unstack(jax.device_put(jnp.abs(x(z)[:3]))),
        )
    ),
    "gather_scatter": Case(
        lambda z: (
            jnp.abs(x(z))
            .at[np.array([0, 0, 3])]
            .add(y(z)[:3])
            .at[np.array([1, 6])]
            .set(z)
            .at[np.array([2, 2])]
            .subtract(1.5 * z)[np.array([0, 1, 2, 3, 6, 5, 4])]
        ),
        sharp=False,
    ),
    "gather_scatter_at_step": Case(
        lambda z: x(z).at[jnp.argmax(y(z))].set(2.0 * z) + x(z)[jnp.argmin(y(z))]
    ),
    "dynamic_slices": Case(
        lambda z: lax.dynamic_update_slice(
            jnp.abs(x(z)), lax.dynamic_slice(y(z), (jnp.argmax(x(z)) // 2,), (3,)), (2,)
        ),
        sharp=False,
    ),
    "fft": Case(
        lambda z: (lambda c: (c, jnp.maximum(c.real, 0.2) + jnp.conj(c).imag))(
            jnp.fft.fft(jnp.abs(x(z)))
        )
    ),
    "cumsum_rev_pad": Case(
        lambda z: jnp.pad(jnp.cumsum(jnp.abs(x(z)))[::-1], (1, 2), constant_values=3.0)
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n == "gather_scatter_at_step" else ())
        for n in CASES
    ],
)
def test_operation(name: str) -> None:
    check_case(CASES[name])
