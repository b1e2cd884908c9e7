"""Simulated images against what their law and their square are by independent computations."""

import numpy as np
import pytest
from scipy import stats

from dal_jax import ImageToTest, InputError
from experiments._families import family_at
from experiments._simulation import Simulation

DRAWS = (2, 3, 3, 1)
PLAIN = Simulation(8, seed=3)


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
    """The variance that a case brings, from what its covariance does."""
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
        ({"size": 0}, "size is 0, expected 1 or more"),
        ({"size": 8, "references": 0}, "references is 0, expected 1 or more"),
        ({"size": 8, "family": "cauchy"}, "family is 'cauchy', expected one of normal"),
        (
            {"size": 8, "family": "exponnorm", "noise": "ar1:0.5:1", "distance": 0.01},
            "expected 'iid:1' with family 'exponnorm'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Simulation(**arguments)
