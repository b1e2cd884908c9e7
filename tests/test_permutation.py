"""The permutation baseline against plain loops, and its distribution under the null."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import published_batch as dal_test_batch
from helpers import published_options as TestOptions
from helpers import published_test as dal_test
from jax import lax
from scipy import stats
from search_cases import pooled_localizer

from dal_jax import Status, evaluator_of, from_score
from dal_jax._dal_test._one_test import permutation_test, permutations
from dal_jax.search import run_side_by_side

LOCALIZER = pooled_localizer()
TWO = pooled_localizer(1, channels=2)
COUNT = 130  # more than two blocks


def images(seed, localizer, count=3):
    """An image in which something is flagged, and references."""
    rng = np.random.default_rng(seed)
    while True:
        x, *references = rng.normal(size=(count, *localizer.image_shape))
        if localizer.region(x).any():
            return x, np.array(references)


def by_hand(localizer, x, references, seed, alternative):
    """The p-value, one permuted image at a time and in float64."""

    def statistic(image):
        region = localizer.score(image) > localizer.threshold
        if not region.any():
            return 0.0
        return image[region].mean() - references.mean(0)[region].mean()

    observed, extreme = statistic(x), {"greater": 1, "less": 1, "two-sided": 1}
    for order in permutations(x, COUNT, seed):
        permuted = np.empty_like(x)
        for pixel, source in enumerate(order):
            permuted[divmod(pixel, x.shape[1])] = x[divmod(source, x.shape[1])]
        value = statistic(permuted)
        extreme["greater"] += value >= observed
        extreme["less"] += value <= observed
        extreme["two-sided"] += abs(value) >= abs(observed)
    p = {name: number / (1 + COUNT) for name, number in extreme.items()}
    p["equal-tailed"] = min(1.0, 2 * p["greater"], 2 * p["less"])
    return p[alternative]


@pytest.mark.parametrize("localizer", [LOCALIZER, TWO], ids=["one channel", "two channels"])
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less", "equal-tailed"])
def test_p_is_that_of_a_plain_loop(localizer, alternative):
    seen = set()
    for seed in range(2):
        x, references = images(seed, localizer)
        told: dict[str, Any] = {"alternative": alternative, "seed": seed, "precision": 0.1}
        without = dal_test(localizer, x, references, "iid:1", **told)
        assert math.isnan(without.permutation_p)
        expected = by_hand(localizer, x, references, seed, alternative)
        for dtype in ("float32", "float64"):
            result = dal_test(
                localizer, x, references, "iid:1", permutations=COUNT, dtype=dtype, **told
            )
            assert result.permutation_p == expected
            seen.add(expected)
            if dtype == "float32":
                assert result.num_evaluations == without.num_evaluations + COUNT + 1
                assert result.p_value == without.p_value
    assert len(seen) > 1


def test_neither_the_batch_nor_the_other_images_matter():
    cases = [images(seed, LOCALIZER) for seed in range(5)]
    x, references = (np.array(column) for column in zip(*cases, strict=True))
    draws = np.random.default_rng(0).normal(size=(5, *LOCALIZER.image_shape))
    told: dict[str, Any] = {"permutations": COUNT, "precision": 0.1}
    found = [
        [r.permutation_p for r in results]
        for results in (
            dal_test_batch(LOCALIZER, x, references, "iid:1", batch_size=1, **told),
            dal_test_batch(LOCALIZER, x, references, "iid:1", **told),
            dal_test_batch(LOCALIZER, x[::-1], references[::-1], "iid:1", **told)[::-1],
            [dal_test(LOCALIZER, *case, "iid:1", **told) for case in cases],
        )
    ]
    assert found[0] == found[1] == found[2] == found[3]
    assert len(set(found[0])) == 5
    own = dal_test_batch(LOCALIZER, x, references, "iid:1", draws=draws, **told)
    for k, result in enumerate(own):
        localizer = LOCALIZER.with_draws(draws[k])
        assert result.permutation_p == by_hand(localizer, x[k], references[k], 0, "two-sided")
    assert [r.permutation_p for r in own] != found[0]


def test_orders_depend_on_the_values_and_the_seed_alone():
    x = np.random.default_rng(0).normal(size=(5, 4, 2))
    orders = np.array(list(permutations(x, 200, 3)))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(20), (200, 1)))
    np.testing.assert_array_equal(orders[:7], list(permutations(x, 7, 3)))
    moved = x.reshape(20, 2)[orders[0]].reshape(x.shape)
    np.testing.assert_array_equal(orders, list(permutations(moved, 200, 3)))
    for other in (permutations(x + 1, 200, 3), permutations(x, 200, 4)):
        assert (orders != np.array(list(other))).any(axis=1).all()
    # Every pixel is as often at every place: chi-square of 20 x 20 counts, 19^2 degrees of freedom.
    counts = np.array([np.bincount(column, minlength=20) for column in orders.T])
    assert stats.chi2.sf(((counts - 10) ** 2 / 10).sum() * 19 / 20, 19**2) > 0.01


def corner(params, draws, x):
    """Flags the first pixel, if it is bright."""
    return jnp.where(params > 0, x[..., 0], 0.0)


def one_bright(localizer_fn):
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 4, 1))
    x[0, 0] = 5.0
    first = (np.arange(16) == 0).reshape(4, 4).astype(float)
    return x, from_score(localizer_fn, (4, 4, 1), 1.0, first)


def test_copies_in_which_nothing_is_flagged_count_as_zero():
    x, localizer = one_bright(corner)
    flagged = sum(order[0] == 0 for order in permutations(x, COUNT, 0))
    assert 0 < flagged < COUNT
    for alternative, extreme in (
        ("two-sided", flagged),
        ("greater", flagged),
        ("less", COUNT),  # T_b = 0 is below
    ):
        told: dict[str, Any] = {"permutations": COUNT, "alternative": alternative, "precision": 0.1}
        result = dal_test(localizer, x, np.zeros_like(x), "iid:1", **told)
        assert result.statistic == 5.0
        assert result.permutation_p == (1 + extreme) / (1 + COUNT)


def nowhere(params, draws, x):
    return jnp.where(x[0, 0, 0] > 3, corner(params, draws, x), jnp.nan)


def test_copies_whose_scores_are_not_finite_count_as_extreme():
    x, localizer = one_bright(nowhere)
    result = dal_test(localizer, x, np.zeros_like(x), "iid:1", permutations=COUNT)
    assert result.permutation_p == 1.0
    assert result.status is Status.NON_FINITE  # of the line, too
    assert math.isnan(result.p_value)


def everything(params, draws, x):
    return jnp.ones_like(x[..., 0]) * params


def test_the_same_pixels_have_the_same_mean():
    x = np.random.default_rng(0).normal(size=(6, 5, 1)) + 100
    localizer = from_score(everything, x.shape, 0.5, np.ones(()))
    for alternative in ("two-sided", "greater", "less"):
        told: dict[str, Any] = {"permutations": 50, "alternative": alternative, "precision": 0.5}
        # The difference is all rounding: too small for a tolerance relative to it.
        assert dal_test(localizer, x, x[::-1], "iid:1", **told).permutation_p == 1.0


def test_rounding_decides_for_the_image_as_for_its_copies():
    # 204 / 255 is 0.8 in float64, and above it in float32.
    rng = np.random.default_rng(0)
    x = rng.integers(160, 240, (6, 6, 1)) / 255
    x[:2] = 204 / 255
    localizer = from_score(each, x.shape, 0.8)
    for dtype in ("float32", "float64"):
        result = dal_test(localizer, x, 0 * x, "iid:1", permutations=19, dtype=dtype, precision=0.1)
        assert result.permutation_p == 1.0  # a copy has the same pixels flagged, elsewhere


def each(params, draws, x):
    return x[..., 0]


def test_without_a_region_nothing_is_permuted():
    x = np.zeros((4, 4, 1))
    localizer = from_score(corner, x.shape, 1.0, np.ones((4, 4)))
    result = dal_test(localizer, x, x, "iid:1", permutations=COUNT)
    assert result.status is Status.NO_REGION
    assert math.isnan(result.permutation_p)
    assert result.num_evaluations == 1


SIDES = 19  # permutations, so that p is one of 20 values


def p_values(localizer, noise, alternative, count=600):
    """P-values of images without a signal, of the permutations alone."""
    options = TestOptions(alternative=alternative, permutations=SIDES)

    def task(number):
        rng = np.random.default_rng((11, number))
        x, x_ref = noise(rng), noise(rng)
        return permutation_test(x, x_ref, None, localizer.threshold, options)

    tasks = ((number, task(number)) for number in range(count))
    return np.array([p for _, p in run_side_by_side(tasks, evaluator_of(localizer), 20)])


def skewed(rng):
    return rng.exponential(size=(4, 4, 1)) - 1


def normal(rng):
    return rng.normal(size=(4, 4, 1))


def smooth(rng):
    """Standard normal in every pixel; nine tenths of the variance are common to a column."""
    return (rng.normal(size=(4, 4, 1)) + rng.normal(size=(1, 4, 1)) * 3) / math.sqrt(10)


def averaged(params, draws, x):
    """How bright a neighbourhood is."""
    zero = jnp.zeros((), x.dtype)
    return abs(lax.reduce_window(x[..., 0], zero, lax.add, (3, 3), (1, 1), "SAME")) / 3


def check_uniform(p):
    """On 1/20, ..., 1: chi-square (fails 1 time in 100), rejections within three errors."""
    ranks = np.rint(p * 20).astype(int)
    np.testing.assert_allclose(p, ranks / 20, rtol=1e-14)
    assert stats.chisquare(np.bincount(ranks, minlength=21)[1:]).pvalue > 0.01
    assert abs(np.mean(p <= 0.05) - 0.05) < 3 * math.sqrt(0.05 * 0.95 / len(p))


@pytest.mark.slow
@pytest.mark.parametrize("noise", [normal, skewed], ids=["normal", "skewed"])
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_null_p_values_are_uniform(noise, alternative):
    # In all of these images something is flagged: zeros would be ties.
    localizer = pooled_localizer(strength=0.1, threshold=1.0)
    check_uniform(p_values(localizer, noise, alternative))


def test_correlated_pixels_are_rejected_too_often():
    localizer = from_score(averaged, (4, 4, 1), 0.5)
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert np.mean(p_values(localizer, normal, "two-sided") <= 0.05) < limit
    assert np.mean(p_values(localizer, smooth, "two-sided") <= 0.05) > limit
