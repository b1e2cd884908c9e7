import math

import numpy as np
import pytest
from scipy import stats

from dal_jax import InputError, Thinned, thinned, thinned_test
from dal_jax.noise import iid, parse_noise

SHAPE = (4, 5, 1)
NOISE = parse_noise("ar1:0.6:1.5", SHAPE)


def brightest(image):
    """A detector of any kind: the brightest pixel and its bright neighbours."""
    bright = image[..., 0] > 1.0
    row, column = np.unravel_index(image[..., 0].argmax(), image.shape[:2])
    near = np.zeros_like(bright)
    near[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
    region = bright & near
    region[row, column] = True
    return region


@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("references", [1, 4])
def test_null_p_values_are_uniform_whatever_the_detector(gamma, references):
    rng, p, covered = np.random.default_rng(0), [], 0
    for number in range(1500):
        x, *refs = (NOISE.sample(rng, SHAPE) for _ in range(1 + references))
        halves = thinned(x, NOISE, gamma, seed=3, name=number)
        found = thinned_test(halves, brightest(halves.seen), np.stack(refs), NOISE)
        p.append(found.p_value)
        covered += found.ci_low <= 0 <= found.ci_high
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    limit = 3 * math.sqrt(0.05 * 0.95 / len(p))
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < limit
    assert abs(covered / len(p) - 0.95) < limit


def test_the_same_detector_on_the_image_itself_is_not_valid():
    """What thinning is for: without it such a test rejects far too often."""
    rng, p = np.random.default_rng(0), []
    for _ in range(300):
        x, ref = (NOISE.sample(rng, SHAPE) for _ in range(2))
        # A kept half that the detector has seen, of next to no added noise.
        cheated = Thinned(x, x, 1e3)
        found = thinned_test(cheated, brightest(x), ref, NOISE, alternative="greater")
        p.append(found.p_value)
    assert np.mean(np.array(p) <= 0.05) > 0.2


@pytest.mark.parametrize(
    ("true", "two_sided", "greater"), [(0.7, 0.151, 0.001), (1.0, 0.049, 0.048), (1.3, 0.19, 0.275)]
)
def test_noise_of_another_size_is_not_forgiven(true, two_sided, greater):
    """The rates of docs/own_model.md: too large a noise is safe in the detector's direction."""
    rng, rejected = np.random.default_rng(0), {"two-sided": [], "greater": []}
    for number in range(600):
        x, ref = true * rng.normal(size=(2, 8, 8, 1))
        halves = thinned(x, iid(1.0), 0.5, name=number)
        region = halves.seen[..., 0] > 1.2
        if region.any():
            for alternative, found in rejected.items():
                result = thinned_test(halves, region, ref, iid(1.0), alternative=alternative)
                found.append(result.p_value <= 0.05)
    for alternative, rate in (("two-sided", two_sided), ("greater", greater)):
        share = np.mean(rejected[alternative])
        # The page's rates are of 1,500 images, of which these are the first.
        assert abs(share - rate) < 4 * math.sqrt(max(rate, 0.005) * (1 - rate) / 600)


def test_halves_are_independent_and_add_up():
    gamma, rng = 0.7, np.random.default_rng(1)
    x = rng.normal(size=SHAPE)
    halves = thinned(x, NOISE, gamma, name="a.png")
    again = thinned(x, NOISE, gamma, name="a.png")
    np.testing.assert_array_equal(halves.seen, again.seen)
    assert (thinned(x, NOISE, gamma, name="b.png").seen != halves.seen).all()
    whole = (halves.seen + gamma**2 * halves.kept) / (1 + gamma**2)
    np.testing.assert_allclose(whole, x, atol=1e-12)
    images = [NOISE.sample(rng, SHAPE) for _ in range(4000)]
    split = [thinned(image, NOISE, gamma, name=k) for k, image in enumerate(images)]
    seen = np.array([half.seen.ravel() for half in split])
    kept = np.array([half.kept.ravel() for half in split])
    correlation = np.corrcoef(seen.T, kept.T)[: x.size, x.size :]
    assert np.abs(correlation).max() < 5 / math.sqrt(len(images))


def test_a_difference_is_found_and_estimated():
    rng, found = np.random.default_rng(2), []
    for number in range(200):
        x, ref = rng.normal(size=(2, 8, 8, 1))
        x[2:5, 2:5] += 3.0
        halves = thinned(x, iid(1.0), 0.5, name=number)
        region = np.zeros((8, 8), bool)
        region[2:5, 2:5] = halves.seen[2:5, 2:5, 0] > 2.0  # selected by the seen half, all true
        found.append(thinned_test(halves, region, ref, iid(1.0)))
    assert np.mean([one.p_value <= 0.05 for one in found]) > 0.8
    errors = np.array([(one.statistic - 3.0) / one.sd for one in found])
    assert abs(errors.mean()) < 4 / math.sqrt(len(errors))


@pytest.mark.parametrize("gamma", [0, -1.0, math.inf, math.nan, "x", True, 1e-9])
def test_what_is_no_gamma_is_refused(gamma):
    with pytest.raises(InputError, match=r"gamma: got .*, expected a number from 0.001"):
        thinned(np.zeros(SHAPE), NOISE, gamma)


def test_other_bad_input_is_one_line():
    halves = thinned(np.zeros(SHAPE), NOISE, 0.5)
    region, ref = np.ones(SHAPE[:2], bool), np.zeros(SHAPE)
    for call in (
        lambda: thinned(np.zeros((4, 5)), NOISE, 0.5),
        lambda: thinned(np.full(SHAPE, np.nan), NOISE, 0.5),
        lambda: thinned(np.zeros(SHAPE), NOISE, 0.5, seed=-1),
        lambda: thinned_test(halves, ~region, ref, NOISE),
        lambda: thinned_test(halves, region[:2], ref, NOISE),
        lambda: thinned_test(halves, region, ref[:2], NOISE),
        lambda: thinned_test(halves, region, ref, NOISE, confidence=1.0),
        lambda: thinned_test(halves, region, ref, NOISE, alternative="up"),
    ):
        with pytest.raises(InputError) as told:
            call()
        assert "\n" not in str(told.value)
