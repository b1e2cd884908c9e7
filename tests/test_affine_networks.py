"""Choices among many: sorting, extrema, running extrema, pooling; and what they make of ties."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MASK, C, Case, check_case, image, x, y
from jax import lax

from dal_jax.affine._networks import merge_exchange


def pooled(init: float, reducer: Any, window: Any, strides: Any, padding: Any, **more: Any) -> Any:
    """A window reduction of the moving image."""
    return lambda z: lax.reduce_window(
        image(z), init, reducer, (1, *window, 1), (1, *strides, 1), padding, **more
    )


CASES = {
    "sort": Case(lambda z: jnp.sort(x(z)[:5])),
    "sort_axis": Case(lambda z: jnp.sort(x(z)[:6].reshape(3, 2), axis=0, descending=True)),
    "argsort_take": Case(
        lambda z: (lambda order: (order, jnp.take(y(z), order)))(jnp.argsort(x(z)[:4]))
    ),
    "sort_carrying": Case(lambda z: lax.sort((x(z)[:4], y(z)[:4], jnp.asarray(C)[:4]), num_keys=1)),
    "top_k": Case(lambda z: lax.top_k(x(z)[:4], 2), sharp=False),
    "median": Case(lambda z: jnp.median(x(z)[:5]), sharp=False),
    # XLA may compute one value twice with other roundings: the largest and itself must not cross.
    "argmax_of_sum": Case(lambda z: jnp.argmax(0.7 * (jnp.max(C[0] * x(z)) + C[0] * x(z)))),
    "argmax_argmin": Case(lambda z: (jnp.argmax(x(z)), jnp.argmin(image(z), axis=2))),
    "cummax": Case(lambda z: (lax.cummax(x(z)), lax.cummax(y(z), reverse=True))),
    "cummin": Case(lambda z: (lax.cummin(image(z), axis=1), lax.cummin(x(z), reverse=True))),
    "reduce_max_min": Case(
        lambda z: (jnp.max(image(z), axis=(1, 3)), jnp.min(image(z)[0, :2], axis=(0, 2)))
    ),
    "max_of_masked": Case(
        lambda z: (lambda v: (jnp.max(v), jnp.argmax(v)))(jnp.where(MASK, x(z), -jnp.inf))
    ),
    "sort_of_masked": Case(lambda z: jnp.sort(jnp.where(MASK, x(z), jnp.inf)[:5])[:3]),
    "reduce_max_of_none": Case(
        lambda z: jnp.max(x(z)[:0], initial=-1.0) + jnp.abs(z), lambda z: jnp.abs(z) - 1.0
    ),
    # pooling
    "max_pool_same": Case(pooled(-jnp.inf, lax.max, (3, 3), (2, 2), "SAME")),
    "min_pool_padded": Case(
        pooled(jnp.inf, lax.min, (2, 3), (1, 2), ((0, 0), (1, 0), (1, 2), (0, 0)))
    ),
    "max_pool_dilated": Case(
        pooled(-jnp.inf, lax.max, (2, 2), (1, 2), "VALID", window_dilation=(1, 3, 1, 1)),
        lambda z: jnp.max(
            jnp.stack(
                [image(z)[:, a : a + 3, b : b + 3 : 2] for a in (0, 3) for b in (0, 1)], axis=0
            ),
            axis=0,
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_choice_among_many(name: str) -> None:
    check_case(CASES[name])


@pytest.mark.parametrize("n", range(9))
def test_exchanges_sort_everything(n: int) -> None:
    # A network that sorts all inputs of zeros and ones sorts everything (Knuth, 5.3.4 theorem Z).
    inputs = np.array(list(np.ndindex(*(2,) * n))).reshape(2**n, n)
    for low, high in merge_exchange(n):
        smaller, larger = inputs[:, low], inputs[:, high]
        inputs[:, low] = np.minimum(smaller, larger)
        inputs[:, high] = np.maximum(smaller, larger)
    assert np.all(inputs[:, 1:] >= inputs[:, :-1])
