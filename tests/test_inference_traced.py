import math
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from effect_oracle import effect as effect_oracle
from scipy import special

from dal_jax.inference import (
    ALTERNATIVES,
    Observed,
    Perturbation,
    as_intervals,
    complement,
    effect,
    intersect,
    log_mass,
    selective_p,
)
from dal_jax.inference._randomized import log_tails
from dal_jax.inference._traced import (
    FOUND,
    KNOWN,
    UNKNOWN,
    Pieces,
    Seen,
    log_ndtr,
    log_piece_mass,
    p_bounds,
    tail_quantile,
)
from dal_jax.inference._traced import log_tails as traced_tails

# What is promised of a probability 20 standard deviations out; here of all.
RELATIVE = 1e-8
SPREADS = [0.0, 0.25, 0.5, 1.0, 2.0]


mp: Any = mpmath.mp


def test_the_tail_of_the_normal_law():
    x = np.concatenate([np.linspace(-60, 12, 721), -np.geomspace(1e-9, 1e5, 60), [35.0, -35.0]])
    with mpmath.workdps(400):  # more digits than 1 - 1e-268 has
        exact = [float(mp.log(mp.erfc(-mp.mpf(v) / mp.sqrt(2)) / 2)) for v in x.tolist()]
    # The square of a number of 35 has a rounding error of 1e-13, and so has its exponential.
    np.testing.assert_allclose(jax.jit(log_ndtr)(x), exact, rtol=1e-12, atol=1e-300)
    log_p = -np.geomspace(1.3, 1e6, 200)
    expected = -special.ndtri_exp(log_p)
    np.testing.assert_allclose(jax.jit(tail_quantile)(log_p), expected, rtol=1e-11)
    assert float(tail_quantile(jnp.asarray(-np.inf))) == math.inf


def test_masses_of_intervals():
    rng = np.random.default_rng(0)
    low = rng.normal(size=2000) * 10 ** rng.uniform(-1, 1.3, 2000)
    high = low + 10 ** rng.uniform(-9, 2, 2000)
    low[:3], high[3:6] = -np.inf, np.inf
    found = np.asarray(jax.jit(log_piece_mass)(low, high))
    np.testing.assert_allclose(found, log_mass(np.stack([low, high], 1)), rtol=0, atol=1e-11)
    nothing = jnp.asarray([0.0, 3.0, -np.inf, np.inf])
    np.testing.assert_array_equal(log_piece_mass(nothing, nothing), np.full(4, -np.inf))


def test_tails_of_a_randomized_statistic():
    rng, compiled = np.random.default_rng(1), jax.jit(traced_tails)
    for _ in range(100):
        spread, limit, mean = 10 ** rng.uniform(-3, 2), 6 * rng.normal(), 3 * rng.normal()
        scale = math.hypot(1, spread)
        sets = as_intervals(np.sort(8 * scale * rng.normal(size=8)).reshape(-1, 2))
        sets[0, 0] = -np.inf
        expected = log_tails(sets, limit, spread, mean)
        low, high = ((sets - mean) / scale).T
        found = np.asarray(compiled(low, high, np.array([limit - mean]), np.float64(spread)))
        visible = expected > -600
        np.testing.assert_allclose(found[visible], expected[visible], rtol=0, atol=RELATIVE / 10)


def random_case(rng, spread):
    """A set and a searched part, in standard deviations of T; what was seen lies in both."""
    scale = math.hypot(1, spread)
    while True:
        truncation = as_intervals(np.sort(3 * scale * rng.normal(size=6)).reshape(-1, 2))
        searched = as_intervals(np.sort(5 * scale * rng.normal(size=4)).reshape(-1, 2))
        known = intersect(truncation, searched)
        if len(known):
            shift = spread * rng.normal()
            seen = Perturbation(spread, shift)
            return rng.uniform(*known[rng.integers(len(known))]) - shift, truncation, searched, seen


@pytest.mark.parametrize("far", [0.0, 20.0])
@pytest.mark.parametrize("spread", SPREADS)
def test_p_values_and_their_bounds(spread, far):
    rng, compiled = np.random.default_rng(2), jax.jit(p_bounds)
    for _ in range(25):
        z, truncation, searched, seen = random_case(rng, spread)
        z, truncation, searched = z + far, truncation + far, searched + far
        span = as_intervals([searched[0, 0], searched[-1, 1]])
        known, unknown = intersect(truncation, searched), complement(searched)
        sets = {KNOWN: known, UNKNOWN: unknown, FOUND: intersect(truncation, span)}
        ends, member, count = np.zeros((32, 2)), np.zeros(32, int), 0
        for number, intervals in sets.items():
            here = slice(count, count := count + len(intervals))
            ends[here], member[here] = intervals / seen.scale, number
        pieces = Pieces(ends[:, 0], ends[:, 1], member, np.int64(count))
        for number, alternative in enumerate(ALTERNATIVES):
            _, low, high = selective_p(z, truncation, searched, alternative, seen)
            expected = selective_p(z, truncation, span, alternative, seen).p, low, high
            at = Seen(np.float64(z), np.float64(seen.shift), np.float64(spread), np.int64(number))
            found = np.asarray(compiled(pieces, at, np.True_))
            np.testing.assert_allclose(found, expected, rtol=RELATIVE, atol=0)
            assert np.isnan(compiled(pieces, at, np.False_)).all()


@pytest.mark.parametrize("spread", SPREADS)
def test_estimates_and_intervals(spread):
    rng = np.random.default_rng(3)
    for _ in range(25):
        z, truncation, searched, seen = random_case(rng, spread)
        observed = Observed(z, truncation, searched, seen)
        expected = np.array(effect_oracle(observed))
        found = np.array(effect(observed))
        # brentq stops within 1e-8.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
