"""What the walk enters: calls, wrong derivative rules, loops, branches, Flax modules."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MATRIX, B, C, Case, W, check_case, image, x, y
from jax import lax


@jax.custom_jvp
def wrong_jvp(v: Any) -> Any:
    """|v| with a derivative rule that is wrong."""
    return jnp.abs(v)


wrong_jvp.defjvp(lambda primals, tangents: (wrong_jvp(*primals), 7.0 * tangents[0]))


@jax.custom_vjp
def wrong_vjp(v: Any) -> Any:
    """|v| with a transposed rule that is wrong."""
    return jnp.abs(v)


wrong_vjp.defvjp(lambda v: (wrong_vjp(v), None), lambda _, g: (7.0 * g,))


def scan_from_static(z: Any) -> Any:
    """A carry that starts static and moves after the first turn, beside one that never moves."""

    def turn(state: Any, row: Any) -> Any:
        total, count = state
        total = jax.nn.relu(total + row - 0.3 * count)
        return (total, count + 1), total[::2] * 2.0

    rows = jnp.outer(jnp.arange(1.0, 4.0), x(z))
    return lax.scan(turn, (jnp.zeros(7), 0.0), rows)


def scan_late(z: Any) -> Any:
    """A carry that takes two turns to start moving: a moves b moves c."""

    def turn(state: Any, _: Any) -> Any:
        a, b, c = state
        return (jnp.abs(a - 1.0), a + 0.5 * b, jnp.abs(b) - c), c

    return lax.scan(turn, (x(z), jnp.zeros(7), jnp.ones(7)), None, length=4)


def scan_with_random_keys(z: Any) -> Any:
    """Draws made inside: they do not move, and may use any function."""

    def turn(state: Any, _: Any) -> Any:
        h, key = state
        key, used = jax.random.split(key)
        return (jnp.abs(h + jax.random.normal(used, (7,))), key), None

    return lax.scan(turn, (x(z), jax.random.key(3)), None, length=2)[0][0]


def nested_scans(z: Any) -> Any:
    """A loop in a loop."""

    def outer(h: Any, _: Any) -> Any:
        h, _ = lax.scan(lambda g, m: (jax.nn.relu(m @ g + B), None), h, np.stack([MATRIX] * 2))
        return h - 1.0, h.sum()

    return lax.scan(outer, x(z), None, length=2)


class Network(nn.Module):
    """What Flax offers: Conv, BatchNorm, pooling, Dense."""

    @nn.compact
    def __call__(self, v: Any) -> Any:
        """From an image to logits."""
        more: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        skip = nn.relu(
            nn.BatchNorm(use_running_average=True, **more)(nn.Conv(3, (3, 3), **more)(v))
        )
        low = nn.max_pool(skip, (2, 2), (2, 2)) - 0.5 * nn.avg_pool(skip, (2, 2), (2, 2))
        up = jax.image.resize(low, (1, 6, 4, 3), "bilinear")
        joined = jnp.concatenate([up, skip], axis=-1)
        return nn.Dense(4, **more)(nn.leaky_relu(nn.Conv(2, (3, 3), **more)(joined)).reshape(-1))


def flax_network(z: Any) -> Any:
    """The network on the line."""
    with jax.numpy_dtype_promotion("standard"):  # Flax mixes dtypes
        shapes = jax.eval_shape(Network().init, jax.random.key(0), jnp.zeros((1, 6, 4, 2)))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: np.abs(rng.normal(size=s.shape)) - 0.3, shapes)
    variables = {**variables}
    variables["batch_stats"] = jax.tree.map(lambda v: np.abs(v) + 0.5, variables["batch_stats"])
    with jax.numpy_dtype_promotion("standard"):  # Flax mixes dtypes
        return Network().apply(variables, image(z))


CASES = {
    "jit": Case(lambda z: jax.jit(lambda v: jnp.abs(v) + 1.0)(x(z))),
    "checkpoint": Case(lambda z: jax.checkpoint(lambda v: jnp.abs(v) + 1.0)(x(z))),
    "stop_gradient": Case(lambda z: lax.stop_gradient(jnp.abs(x(z))), lambda z: jnp.abs(x(z))),
    "custom_jvp_wrong": Case(lambda z: wrong_jvp(x(z)), lambda z: jnp.abs(x(z))),
    "custom_vjp_wrong": Case(lambda z: wrong_vjp(x(z)), lambda z: jnp.abs(x(z))),
    "static_through_anything": Case(
        lambda z: jnp.abs(x(z)) * jax.nn.softmax(jax.nn.silu(jnp.asarray(C))) + jax.nn.gelu(B)
    ),
    "scan_from_static": Case(scan_from_static, sharp=False),
    "scan_late": Case(scan_late),
    "scan_reverse": Case(
        lambda z: lax.scan(lambda c, v: (jnp.abs(c - v), c), z, x(z), reverse=True)
    ),
    "scan_of_none": Case(lambda z: lax.scan(lambda c, v: (c + v, c), jnp.abs(z), x(z)[:0])),
    "scan_with_random_keys": Case(scan_with_random_keys),
    "nested_scans": Case(nested_scans),
    "map": Case(lambda z: lax.map(jnp.abs, x(z))),
    "fori_loop": Case(
        lambda z: lax.fori_loop(0, 3, lambda i, c: jnp.abs(c - 0.5) * W[0] + i, x(z))
    ),
    "cond_moving": Case(lambda z: lax.cond(jnp.sum(y(z)) > 0.3, jnp.abs, lambda v: 2.0 * v, x(z))),
    "cond_static": Case(lambda z: lax.cond(B[0] > 9.0, lambda v: 2.0 * v, jnp.abs, x(z))),
    "cond_mixed": Case(
        lambda z: lax.cond(z > 0.4, lambda v: (v, 1.0, 3), lambda v: (C, v[0], 4), x(z))
    ),
    "switch": Case(
        lambda z: lax.switch(
            jnp.sum(x(z) > 0.0) - 2, [lambda v: v, jnp.abs, lambda v: 3.0 - v], y(z)
        ),
        sharp=False,
    ),
    "flax": Case(flax_network),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_entered(name: str) -> None:
    check_case(CASES[name])
