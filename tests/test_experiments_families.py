"""Noise families: standardized, at the distance asked for, and drawn as their cdf says."""

import dataclasses

import numpy as np
import pytest
from scipy import integrate, stats

from dal_jax import InputError
from experiments._families import FAMILIES, Family, family_at, wasserstein_to_normal

DISTANCES = (0.01, 0.02, 0.03, 0.04)
SKEWED = ("skewnorm", "exponnorm")
# Shapes from near normal to the last one; the distance grows along each row.
SHAPES = {
    "skewnorm": (0.01, 0.5, 1, 3, 30, 1000),
    "exponnorm": (0.01, 0.3, 1, 3, 10, 100),
    "gennorm_steep": (2, 1.9, 1.5, 1, 0.7, 0.5),
    "gennorm_flat": (2, 2.1, 3, 6, 20, 100),
    "t": (1e6, 100, 20, 6, 3, 2.5),
}
# The farthest a family goes, in other words: half-normal, exponential, and the last gennorm and t.
LAST = {
    "skewnorm": stats.halfnorm(),
    "exponnorm": stats.expon(),
    "gennorm_steep": stats.gennorm(0.5),
    "gennorm_flat": stats.gennorm(100),
    "t": stats.t(2.5),
}
every_family = pytest.mark.parametrize("name", FAMILIES)
every_distance = pytest.mark.parametrize("distance", DISTANCES)


def moment(family: Family, power: int) -> float:
    """Integral of x^power against the density, split at zero, where gennorm has a cusp."""
    pieces = [
        integrate.quad(lambda x: x**power * family.distribution.pdf(x), *ends, epsabs=1e-10)[0]
        for ends in ((-np.inf, 0), (0, np.inf))
    ]
    return sum(pieces)


def quantile_distance(ppf, nodes: int) -> float:
    """W1 as the integral of |F^-1(u) - z| du at u = Phi(z), midpoints in z."""
    ends = np.linspace(-7, 7, nodes + 1)
    z = (ends[1:] + ends[:-1]) / 2
    return float(np.sum(np.abs(ppf(stats.norm.cdf(z)) - z) * stats.norm.pdf(z)) * 14 / nodes)


@pytest.mark.slow
@every_family
@every_distance
def test_mean_and_variance(name, distance):
    family = family_at(name, distance)
    # The integrals are asked for to 1e-10, six decimals better than any wrong scale would pass.
    for power, expected in ((0, 1), (1, 0), (2, 1)):
        assert abs(moment(family, power) - expected) < 1e-8


@pytest.mark.slow
@every_family
@every_distance
def test_distance_by_quantiles(name, distance):
    # scipy inverts exponnorm's cdf by root finding, 2 ms a node, hence fewer nodes there. A kink
    # of slope below 0.2 under a density below 0.4 costs 0.02 h^2, at most four of them: 1.6e-4 for
    # h = 0.047 and 2e-7 for h = 0.0014. The function itself promises 1e-6.
    nodes, tolerance = (300, 1.6e-4) if name == "exponnorm" else (10_000, 1.2e-6)
    quantiles = family_at(name, distance).distribution.ppf
    assert abs(quantile_distance(quantiles, nodes) - distance) < tolerance


@every_family
def test_distance_of_draws(name):
    draws = family_at(name, 0.04).sample(np.random.default_rng(3), 400_000)
    normal = stats.norm.ppf((np.arange(400_000) + 0.5) / 400_000)
    # W1 between draws and their own law is sqrt(2 / (pi n)) int sqrt(F (1 - F)) on average, 2.3e-3
    # with 1.8 for the integral, and bounds the error; twice that.
    assert abs(stats.wasserstein_distance(draws, normal) - 0.04) < 5e-3


@pytest.mark.parametrize(
    ("other", "distance"),
    [
        (stats.norm(0.3, 1), 0.3),
        (stats.norm(0, 1.25), 0.25 * np.sqrt(2 / np.pi)),
        (stats.norm(-5, 0.1), 5.0),
        (stats.norm(), 0.0),
    ],
)
def test_distance_of_normals(other, distance):
    """At |m| for a shift by m, |s - 1| E|Z| for a scaling by s, E|5 + 0.9 Z| for both."""
    # As promised; E|5 + 0.9 Z| is 5 up to 1e-8, the probability of Z < -5 / 0.9.
    assert abs(wasserstein_to_normal(other) - distance) < 1e-6


@every_family
def test_monotone_in_the_shape(name):
    families = [Family(name, shape) for shape in SHAPES[name]]
    found = [wasserstein_to_normal(family.distribution) for family in families]
    assert 0 <= found[0] < 1e-6
    assert np.all(np.diff(found) > 1e-3 * found[-1])


@every_family
def test_skewness(name):
    third = [moment(family_at(name, distance), 3) for distance in DISTANCES]
    if name in SKEWED:
        assert third[0] > 0.05
        assert np.all(np.diff(third) > 0.05)
    else:
        assert np.abs(third).max() < 1e-8  # as the integrals
        x, law = np.linspace(0, 6, 50), family_at(name, 0.04).distribution
        # Roundings of a probability, a few.
        np.testing.assert_allclose(law.cdf(-x), law.sf(x), rtol=1e-12, atol=1e-16)


def test_exponnorm_is_a_normal_plus_an_exponential():
    """Skewness 2 K^3 / (1 + K^2)^1.5 of the sum: the shape is the ratio of the two deviations."""
    family = family_at("exponnorm", 0.03)
    k = family.shape
    assert abs(moment(family, 3) - 2 * k**3 / (1 + k**2) ** 1.5) < 1e-8  # as the integrals


def test_tails():
    """Flat below the normal in kurtosis, steep and t above it."""
    kurtosis = {name: moment(family_at(name, 0.04), 4) - 3 for name in FAMILIES}
    assert kurtosis["gennorm_flat"] < -0.3
    assert min(kurtosis["gennorm_steep"], kurtosis["t"]) > 0.3
    assert family_at("gennorm_flat", 0.04).shape > 2 > family_at("gennorm_steep", 0.04).shape > 1


@every_family
def test_draws(name):
    family = family_at(name, 0.04)
    draws = family.sample(np.random.default_rng(7), (100, 200))
    assert draws.shape == (100, 200)
    assert draws.dtype == np.float64
    assert np.array_equal(draws, family.sample(np.random.default_rng(7), (100, 200)))
    assert not np.array_equal(draws, family.sample(np.random.default_rng(8), (100, 200)))
    # A fixed seed: the right law would fail one seed in a hundred; N(0, 1) does not pass.
    assert stats.kstest(draws.ravel(), family.distribution.cdf).pvalue > 0.01
    assert stats.kstest(draws.ravel(), stats.norm.cdf).pvalue < 1e-3


@every_family
def test_quantiles_invert_the_cdf(name):
    family, u = family_at(name, 0.02), np.array([1e-4, 0.1, 0.5, 0.9, 1 - 1e-4])
    # scipy's root finding stops at 1e-14 in x, special functions keep some 12 digits.
    np.testing.assert_allclose(family.distribution.cdf(family.distribution.ppf(u)), u, rtol=1e-9)


@every_family
def test_no_distance_is_the_normal(name):
    family = family_at(name, 0.0)
    assert family.name == name
    x = np.linspace(-5, 5, 11)
    assert np.array_equal(family.distribution.cdf(x), stats.norm.cdf(x))
    rng, other = np.random.default_rng(1), np.random.default_rng(1)
    assert np.array_equal(family.sample(rng, 9), other.standard_normal(9))


@every_family
def test_ends_of_the_reach(name):
    last = LAST[name]
    mean, deviation = last.mean(), last.std()
    limit = quantile_distance(lambda u: (last.ppf(u) - mean) / deviation, 10_000)
    # skewnorm and exponnorm stop 1e-6 and 7e-5 short of their limits; for the others 0.06 h^2 with
    # h = 0.0014 is 1e-7, times slopes of up to 10 where the quantiles rise fast.
    family = family_at(name, limit - 1e-4)
    assert abs(wasserstein_to_normal(family.distribution) - limit + 1e-4) < 1e-6
    with pytest.raises(InputError, match=f"distance: got .*, expected 0 to .* for {name}"):
        family_at(name, limit + 3e-6)
    exact = wasserstein_to_normal(Family(name, SHAPES[name][-1]).distribution)
    assert family_at(name, exact).shape == SHAPES[name][-1]
    near = family_at(name, 1e-9)
    assert wasserstein_to_normal(near.distribution) < 1e-6


@pytest.mark.parametrize("distance", [-0.01, 0.5, np.inf, np.nan])
def test_distances_out_of_reach(distance):
    with pytest.raises(InputError) as caught:
        family_at("skewnorm", distance)
    assert str(caught.value) == f"distance: got {distance}, expected 0 to 0.1929 for skewnorm"


def test_other_errors():
    expected = "name: got 'cauchy', expected one of skewnorm, exponnorm, gennorm_steep"
    for call in (family_at, Family):
        with pytest.raises(InputError, match=expected):
            call("cauchy", 0.02)
    for name, shape in (("skewnorm", -1.0), ("t", 2.0), ("gennorm_flat", 1.9), ("t", np.nan)):
        with pytest.raises(InputError, match=f"shape: got {shape}, expected .* for {name}"):
            Family(name, shape)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Family("t", 5.0).shape = 6.0  # pyright: ignore[reportAttributeAccessIssue]


def test_found_once():
    assert family_at("t", 0.02) is family_at("t", 0.02)
    assert FAMILIES == ("skewnorm", "exponnorm", "gennorm_steep", "gennorm_flat", "t")
