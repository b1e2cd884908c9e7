import numpy as np
import pytest
from scipy import integrate, stats

from dal_jax import InputError
from dal_jax.inference import (
    NullLaw,
    Observed,
    Ranks,
    SelectiveP,
    as_intervals,
    conformal_p,
    cross_fit,
    heavy_tails,
    inflation,
    recalibrate,
    selective_p,
)

EVERYWHERE = as_intervals([-np.inf, np.inf])


def simulated(law, count, seed):
    """Statistics of a law, each in a truncation set of its own that holds it: no symmetric ones."""
    rng = np.random.default_rng(seed)
    observed = []
    while len(observed) < count:
        low = rng.uniform(-1.0, 2.0)
        truncation = as_intervals([[-3.0, -2.0], [low, low + rng.uniform(1.0, 3.0)]])
        z = law.rvs(random_state=rng)
        if any(a <= z <= b for a, b in truncation):
            observed.append(Observed(z, truncation, EVERYWHERE))
    return observed


def test_the_plain_law_changes_nothing():
    one = Observed(1.3, as_intervals([[-4.0, -1.0], [0.5, 2.0]]), as_intervals([-6.0, 6.0]))
    assert NullLaw().p_value(one) == selective_p(*one[:3])


@pytest.mark.parametrize("factor, degrees", [(1.0, np.inf), (1.7, np.inf), (0.8, 3.0), (1.3, 7.0)])
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less", "equal-tailed"])
def test_p_values_are_ratios_of_integrals_of_the_density(factor, degrees, alternative):
    law = stats.norm(scale=factor) if np.isinf(degrees) else stats.t(degrees, scale=factor)
    truncation, z = as_intervals([[-4.0, -1.0], [0.5, 2.5]]), 1.3

    def mass(test):
        # Midpoints of 3e5 cells: the integrand has one jump in a set, error below 1e-5 of a mass.
        grid = [np.linspace(a, b, 300_001) for a, b in truncation]
        middles = [(g[1:] + g[:-1]) / 2 for g in grid]
        return sum(float((law.pdf(m) * test(m)).sum() * (m[1] - m[0])) for m in middles)

    total = mass(np.ones_like)
    less, greater = mass(lambda m: m <= z) / total, mass(lambda m: m >= z) / total
    expected = {
        "two-sided": mass(lambda m: np.abs(m) >= z) / total,
        "greater": greater,
        "less": less,
        "equal-tailed": min(1.0, 2 * min(less, greater)),
    }[alternative]
    found = NullLaw(factor, degrees).p_value(Observed(z, truncation, EVERYWHERE), alternative).p
    assert found == pytest.approx(expected, abs=2e-5)


def test_the_likelihood_integrates_to_one_over_the_truncation_set():
    truncation, law = as_intervals([[-4.0, -1.0], [0.5, 2.5]]), NullLaw(1.3, 4.0)

    def density(z):
        return np.exp(law.log_likelihoods([Observed(z, truncation, EVERYWHERE)])[0])

    total = sum(integrate.quad(density, a, b)[0] for a, b in truncation)
    assert total == pytest.approx(1.0, abs=1e-8)  # what quad promises


def test_far_tails_keep_their_probability():
    # t with 3 degrees falls as z^-3: at 1e6 its tail is 1e-18, that of a normal score of 8.7.
    score = NullLaw(1.0, 3.0).normal_scores([1e6, -1e6, np.inf, -np.inf, 0.0])
    assert stats.norm.logsf(score[0]) == pytest.approx(stats.t.logsf(1e6, 3), rel=1e-9)
    assert score[1] == -score[0]
    assert score[2:].tolist() == [np.inf, -np.inf, 0.0]


@pytest.mark.slow
def test_inflation_finds_the_scale_and_centres_the_p_values():
    observed = simulated(stats.norm(scale=1.5), 800, seed=1)
    law = inflation(observed)
    # 800 uniform p-values: the mean has a standard error of 0.01, the factor one of some 5%.
    assert law.factor == pytest.approx(1.5, rel=0.2)
    assert np.isinf(law.degrees)
    mean = np.mean([law.p_value(one).p for one in observed])
    assert mean == pytest.approx(0.5, abs=1e-3)  # of the root finder


def test_heavy_tails_are_found_and_make_held_out_p_values_uniform():
    law = heavy_tails(simulated(stats.t(3.0, scale=1.2), 800, seed=2))
    assert law.degrees <= 7
    fresh = simulated(stats.t(3.0, scale=1.2), 600, seed=3)
    assert stats.kstest([law.p_value(one).p for one in fresh], "uniform").pvalue > 0.01
    assert stats.kstest([NullLaw().p_value(one).p for one in fresh], "uniform").pvalue < 0.01


def test_normal_statistics_are_not_given_heavy_tails():
    law = heavy_tails(simulated(stats.norm(), 800, seed=4))
    assert law.degrees >= 10
    assert law.factor == pytest.approx(1.0, abs=0.15)  # three standard errors


def test_many_images_of_one_object_count_as_one():
    few, odd = simulated(stats.norm(), 100, seed=5), simulated(stats.norm(scale=4.0), 1, seed=6)
    groups = [*range(100), *[100] * 50]
    together = heavy_tails([*few, *odd * 50], groups)
    alone = heavy_tails([*few, *odd], range(101))
    assert together.factor == pytest.approx(alone.factor, rel=1e-6)
    assert heavy_tails([*few, *odd * 50]).factor > 1.1 * alone.factor


def test_conformal_p_values_are_ranks():
    assert conformal_p([0.1, 0.2, 0.3, np.nan], 0.2) == 3 / 4
    assert conformal_p([0.1], 0.05) == 1 / 2
    assert np.isnan(conformal_p([0.1], np.nan))


def test_cross_fitting_never_shows_an_image_to_its_own_fit():
    folds = np.array([0, 1, 0, 2])
    seen = cross_fit(folds, lambda others: set(others.tolist()), lambda fit, k: (k, fit))
    assert seen == [(0, {1, 3}), (1, {0, 2, 3}), (2, {1, 3}), (3, {0, 1, 2})]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: NullLaw(0.0), "factor: got 0.0"),
        (lambda: NullLaw(1.0, -2.0), "degrees: got -2.0"),
        (lambda: inflation([]), "observed is empty"),
        (lambda: cross_fit(np.zeros(3, int), list, list), "folds has 1 different"),
        (
            lambda: heavy_tails([Observed(0.0, EVERYWHERE, EVERYWHERE)], [1, 2]),
            "groups has 2 entries",
        ),
    ],
    ids=["factor", "degrees", "none", "folds", "groups"],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_intervals_as_narrow_as_rounding_keep_their_order():
    law, low = NullLaw(1.0, 3.0), np.random.default_rng(0).uniform(-3, 3, 4000)
    ends = np.stack([low, np.nextafter(low, np.inf)], axis=1)
    moved = law.normal_scores(ends)
    assert (moved[:, 0] > moved[:, 1]).any()  # what this is about
    truncation = as_intervals([*ends, [0.4, 0.6]])
    found = law.p_value(Observed(0.5, truncation, EVERYWHERE))
    wide = law.p_value(Observed(0.5, as_intervals([0.4, 0.6]), EVERYWHERE))
    assert found.p == pytest.approx(wide.p, rel=1e-9)  # what was added has no mass


def test_inflation_never_deflates():
    # Normal images that vary less than the noise model says: by chance, or since it is too wide.
    law = inflation(simulated(stats.norm(scale=0.8), 400, seed=9))
    assert law == NullLaw(1.0)


@pytest.mark.parametrize(
    "law",
    [
        NullLaw(0.87),
        pytest.param(NullLaw(1.0), marks=pytest.mark.slow),
        pytest.param(NullLaw(1.3), marks=pytest.mark.slow),
        NullLaw(0.58, 3.0),
        pytest.param(NullLaw(0.85, 10.0), marks=pytest.mark.slow),
        pytest.param(NullLaw(1.4, 4.0), marks=pytest.mark.slow),
    ],
)
def test_no_recalibration_makes_a_p_value_smaller(law):
    rng, smaller, equal = np.random.default_rng(4), 0, 0
    for one in simulated(stats.norm(), 100, seed=10):
        reach = abs(one.z_obs) + rng.uniform(0.2, 3.0)
        searched = as_intervals([-reach, reach])
        for alternative in ("two-sided", "greater", "less", "equal-tailed"):
            short = one._replace(searched=searched)
            raw = selective_p(*short[:3], alternative)
            found = recalibrate(law, short, alternative)
            under = law.p_value(short, alternative)
            smaller += under.p < raw.p
            equal += found == raw
            assert all(np.array(found) >= raw)
            # Bounds of the smaller of a search's two ends, whatever else there is.
            exact = recalibrate(law, one, alternative).p
            assert found.low <= found.p <= found.high
            assert found.low <= exact + 1e-12 and exact <= found.high + 1e-12
    assert smaller or law == NullLaw(1.0)  # under the law alone they would be
    assert equal == 400 or law != NullLaw(1.0)


def test_bounds_of_a_rank_hold_its_rank_whatever_the_searches_left_open():
    rng = np.random.default_rng(11)
    for _ in range(50):
        low, width = rng.uniform(size=20), rng.choice([0.0, 1e-3, 0.2], size=20)
        high = np.minimum(1.0, low + width)
        p, weights = rng.uniform(low, high), rng.choice([0.2, 0.5, 1.0], size=20)
        ranks = Ranks(*(tuple(part.tolist()) for part in (p, low, high, weights)))
        own = np.sort(rng.uniform(size=3)).tolist()
        found = ranks.rank(SelectiveP(own[1], own[0], own[2]))
        for truth in (low, high, rng.uniform(low, high)):
            for value in (*own, rng.uniform(own[0], own[2])):
                exact = conformal_p(truth, value, weights)
                assert found.low <= exact + 1e-12 and exact <= found.high + 1e-12


def alike(rng, objects, views, likeness):
    """Uniform p-values (objects, views): those of one object have a latent correlation."""
    common, own = rng.standard_normal((objects, 1)), rng.standard_normal((objects, views))
    return stats.norm.cdf(np.sqrt(likeness) * common + np.sqrt(1 - likeness) * own)


@pytest.mark.parametrize("objects, views, count", [(26, 5, 4000), (400, 3, 2000)])
def test_conformal_p_values_need_only_exchangeable_objects(objects, views, count):
    """26 objects of 5 alike views called .0185 at 0.01 when every view counted as one."""
    rng, levels = np.random.default_rng(12), (0.05, 0.01, 0.05 / 16)
    weights = np.full(objects * views, 1 / views)
    own, every = [], []
    for _ in range(count):
        p = alike(rng, objects + 1, views, 0.9)
        own.append(conformal_p(p[1:].reshape(-1), p[0, 0], weights))
        every.append(conformal_p(p[1:].reshape(-1), p[0, 0]))
    for level in levels:
        error = np.sqrt(level * (1 - level) / len(own))
        assert np.mean(np.array(own) <= level) <= level + 2 * error
    if objects == 26:  # the same simulation sees what is wrong with views
        assert np.mean(np.array(every) <= 0.01) > 0.01 + 4 * np.sqrt(0.01 * 0.99 / count)


def test_objects_of_many_views_count_no_more_than_those_of_few():
    # Half of the objects have one view, half have 20; what an object is like decides alone.
    rng, called = np.random.default_rng(13), []
    sizes = np.array([1] * 20 + [20] * 20)
    for _ in range(4000):
        means = np.where(sizes == 20, 0.6, 0.0) + rng.standard_normal(40)
        own = rng.choice([0.6, 0.0]) + rng.standard_normal()
        found = conformal_p(np.repeat(means, sizes), own, np.repeat(1 / sizes, sizes))
        called.append(found <= 0.05)
    assert np.mean(called) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.slow
def test_views_without_a_region_count_in_the_weight_of_their_object():
    """Views far out come in company: objects of one tested view must not count as those of two."""
    rng, rates = np.random.default_rng(14), {"views": [], "tested views": []}
    while len(rates["views"]) < 4000:
        z = stats.norm.ppf(alike(rng, 301, 3, 0.8))
        tested = np.abs(z) > 1.5
        if not tested[0, 0]:
            continue
        p = np.where(tested, 2 * stats.norm.sf(np.abs(z)) / (2 * stats.norm.sf(1.5)), np.nan)
        shares = np.full((300, 3), 1 / 3)
        of_tested = np.repeat(1 / np.maximum(tested[1:].sum(1), 1), 3)
        for name, weights in (("views", shares.reshape(-1)), ("tested views", of_tested)):
            rates[name].append(conformal_p(p[1:].reshape(-1), p[0, 0], weights) <= 0.05)
    error = np.sqrt(0.05 * 0.95 / 4000)
    assert np.mean(rates["views"]) <= 0.05 + 2 * error
    assert np.mean(rates["tested views"]) > 0.05 + 4 * error  # this simulation can tell
