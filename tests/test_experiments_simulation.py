"""Simulated images: noise families at a given distance from normal, laws, squares and streams."""

import dataclasses

import numpy as np
import pytest
from scipy import integrate, stats

from dal_jax import ImageToTest, InputError
from experiments._simulation import (
    FAMILIES,
    Family,
    Simulation,
    family_at,
    wasserstein_to_normal,
)

DRAWS = (2, 3, 3, 1)
PLAIN = Simulation(8, seed=3)
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


def test_families_are_computed_once():
    assert family_at("t", 0.02) is family_at("t", 0.02)
    assert FAMILIES == ("skewnorm", "exponnorm", "gennorm_steep", "gennorm_flat", "t")


def _pairs(simulation: Simulation, count: int) -> np.ndarray:
    """Images and references of many numbers, flattened side by side (count, 2 n)."""
    cases = [simulation.case(number, (1,)) for number in range(count)]
    return np.array([np.concatenate([c.image.ravel(), c.references.ravel()]) for c in cases])


def _lagged(n: int, rho: float, sigma: float) -> np.ndarray:
    """Covariance entry by entry: sigma^2 rho^|i - j|."""
    return np.array([[sigma**2 * rho ** abs(i - j) for j in range(n)] for i in range(n)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "rho", "sigma"),
    [("iid:1", 0.0, 1.0), ("iid:2", 0.0, 2.0), ("ar1:0.5:1", 0.5, 1.0), ("ar1:-0.7:1", -0.7, 1.0)],
)
def test_the_noise_has_its_covariance(noise, rho, sigma):
    count, n = 4000, 16
    pairs = _pairs(Simulation(4, noise), count)
    one, none = _lagged(n, rho, sigma), np.zeros((n, n))
    expected = np.block([[one, none], [none, one]])  # the reference is independent of the image
    found = pairs.T @ pairs / count  # the mean is known to be 0
    # An entry's variance is (S_ii S_jj + S_ij^2) / count. Five standard errors: one of the 528
    # different entries would be further off in 3 of 10,000 seeds.
    error = np.sqrt((sigma**4 + expected**2) / count)
    assert np.abs((found - expected) / error).max() < 5
    assert np.abs(pairs.mean(axis=0)).max() < 5 * sigma / np.sqrt(count)


@pytest.mark.parametrize("family", ["exponnorm", "gennorm_flat", "t"])
def test_a_family_gives_images_and_references(family):
    simulation = Simulation(4, family=family, distance=0.04, seed=2)
    pairs = _pairs(simulation, 1500)
    # Independent pixels of mean 0 and variance 1: bounds as above, but the mean square of a pixel
    # varies with its fourth moment, which is below 10 in these families.
    found = pairs.T @ pairs / len(pairs)
    error = np.sqrt(np.where(np.eye(32), 9.0, 1.0) / len(pairs))
    assert np.abs((found - np.eye(32)) / error).max() < 5
    assert np.abs(pairs.mean(axis=0)).max() < 5 / np.sqrt(len(pairs))
    # An image has the quantiles of the family's law: all 48,000 pixels against it.
    assert stats.kstest(pairs.ravel(), family_at(family, 0.04).distribution.cdf).pvalue > 0.001


def test_a_family_is_not_gaussian_by_its_name():
    plain, other = (
        Simulation(4, family=name, distance=0.04).case(0, (1,)) for name in ("normal", "exponnorm")
    )
    assert not np.allclose(plain.image, other.image)
    assert not np.allclose(plain.references, other.references)


@pytest.mark.parametrize(("size", "side"), [(2, 1), (3, 1), (8, 2), (16, 5), (32, 10)])
def test_the_square(size, side):
    masks = np.array([Simulation(size).square(number, DRAWS) for number in range(200)])
    corners = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == side**2 and len(rows) == len(columns) == side
        assert np.ptp(rows) == np.ptp(columns) == side - 1
        corners.append((rows[0], columns[0]))
    corners = np.array(corners)
    # Uniform over the places that fit, the edges among them: variance of a discrete uniform law.
    places = size - side + 1
    error = np.sqrt((places**2 - 1) / 12 / len(masks))
    assert np.abs(corners.mean(0) - (places - 1) / 2).max() <= 5 * error
    if places <= 12:  # else an edge may be missed: (1 - 1/27)^200 = 0.0005
        assert corners.min() == 0 and corners.max() == size - side


@pytest.mark.parametrize("noise", ["iid:1", "ar1:0.5:1"])
def test_images_of_one_number_differ_by_the_square_alone(noise):
    null, *raised = (Simulation(8, noise, signal, seed=5) for signal in (0.0, 1.0, 4.0))
    for number in (0, 7):
        base = null.case(number, DRAWS)
        for one in raised:
            case = one.case(number, DRAWS)
            np.testing.assert_array_equal(case.references, base.references)
            np.testing.assert_array_equal(case.draws, base.draws)
            square = one.square(number, DRAWS)
            np.testing.assert_array_equal(square, null.square(number, DRAWS))
            # Adding the height to a pixel rounds once.
            step = case.image - base.image
            np.testing.assert_allclose(step[..., 0], one.signal * square, atol=1e-15)
    assert base.noise is None


def _level(case: ImageToTest) -> float:
    """The variance that a case brings, from its covariance applied to an image of ones."""
    assert case.noise is not None
    return float(case.noise.apply(np.ones((8, 8, 1)))[3, 4, 0])


def test_the_variance_of_the_same_image():
    for signal in (0.0, 3.0):
        case = Simulation(8, "iid:2", signal).case(1, DRAWS, "estimate:same")
        pixels = case.image.ravel()
        expected = sum((v - pixels.sum() / 64) ** 2 for v in pixels) / 63
        # Sums of 64 values in another order.
        np.testing.assert_allclose(_level(case), expected, rtol=1e-12)


def test_a_square_inflates_the_variance_of_the_same_image():
    null, raised = (
        np.mean(
            [_level(Simulation(8, signal=s).case(k, (1,), "estimate:same")) for k in range(500)]
        )
        for s in (0.0, 4.0)
    )
    # A square of share q = 4/64 and height h adds h^2 q (1 - q) n / (n - 1).
    share = 4 / 64
    # Both are of the same noise: the mean of 500 differences has a standard error of 0.05.
    assert abs(raised - null - 16 * share * (1 - share) * 64 / 63) < 5 * 0.05
    assert abs(null - 1) < 5 * np.sqrt(2 / 63 / 500)


def test_the_variance_of_other_normal_images():
    def levels(signal: float, word: str) -> np.ndarray:
        cases = [Simulation(8, "iid:2", signal).case(k, (1,), word) for k in range(300)]
        return np.array([_level(case) for case in cases])

    ten, one = levels(0.0, "estimate:normal:10"), levels(0.0, "estimate:normal:1")
    # Unbiased for 4; a variance of m values has variance 2 * 4^2 / (m - 1). Five standard errors,
    # of the mean and (by the fourth moment of nearly normal numbers, sqrt(2 / 299)) of the spread.
    for found, images in ((ten, 10), (one, 1)):
        spread = 4 * np.sqrt(2 / 63 / images)
        assert abs(found.mean() - 4) < 5 * spread / np.sqrt(300)
        assert abs(found.std() / spread - 1) < 5 / np.sqrt(2 * 299)
    # The tested image has no part in it.
    np.testing.assert_array_equal(ten, levels(4.0, "estimate:normal:10"))
    images = [Simulation(8, "iid:2").case(k, (1,)).image.var(ddof=1) for k in range(300)]
    assert abs(np.corrcoef(ten, images)[0, 1]) < 5 / np.sqrt(300)


@pytest.mark.parametrize("word", ["estimate:same", "estimate:normal:3"])
def test_estimating_does_not_change_the_image(word):
    plain, estimated = PLAIN.case(4, DRAWS), PLAIN.case(4, DRAWS, word)
    for one, two in zip(plain[:3], estimated[:3], strict=True):
        np.testing.assert_array_equal(one, two)
    assert plain.noise is None


def test_the_numbers_are_reproducible_and_apart():
    one, again = PLAIN.case(4, DRAWS), Simulation(8, seed=3).case(4, DRAWS)
    for former, latter in zip(one[:3], again[:3], strict=True):
        np.testing.assert_array_equal(former, latter)
    assert np.shape(one.draws) == DRAWS
    for other in (PLAIN.case(5, DRAWS), Simulation(8, seed=4).case(4, DRAWS)):
        for former, latter in zip(one[:3], other[:3], strict=True):
            assert not np.any(former == latter)


def test_more_references_change_nothing_else():
    one, three = PLAIN.case(4, DRAWS), Simulation(8, seed=3, references=3).case(4, DRAWS)
    np.testing.assert_array_equal(three.image, one.image)
    np.testing.assert_array_equal(three.draws, one.draws)
    assert three.references.shape == (3, *one.references.shape)
    np.testing.assert_array_equal(three.references[0], one.references)
    more = Simulation(8, seed=3, references=3)
    np.testing.assert_array_equal(more.square(4, DRAWS), PLAIN.square(4, DRAWS))
    pairs = np.array([more.case(k, (1,)).references.reshape(3, -1) for k in range(500)])
    found = np.einsum("kin,kjn->ij", pairs, pairs) / 500 / 64
    # A mean of 32,000 products: five standard errors of sqrt(2 / 32000) at most.
    assert np.abs(found - np.eye(3)).max() < 5 * np.sqrt(2 / 32000)


def test_training_images_are_others():
    images = PLAIN.training_images(20)
    assert images.shape == (20, 8, 8, 1) and images.dtype == np.float32
    np.testing.assert_array_equal(PLAIN.training_images(5), images[:5])
    tested = {PLAIN.case(number, DRAWS).image.astype(np.float32).tobytes() for number in range(20)}
    assert not tested & {image.tobytes() for image in images}
    # They have no square, whatever the tested ones have.
    np.testing.assert_array_equal(Simulation(8, signal=4.0, seed=3).training_images(20), images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size: got 0, expected 1 or more"),
        ({"size": 8, "references": 0}, "references: got 0, expected 1 or more"),
        ({"size": 8, "family": "cauchy"}, "family: got 'cauchy', expected one of normal"),
        (
            {"size": 8, "family": "exponnorm", "noise": "ar1:0.5:1", "distance": 0.01},
            "expected 'iid:1' with family 'exponnorm'",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Simulation(**arguments)
