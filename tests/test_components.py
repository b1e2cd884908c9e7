"""The region "components": each connected component on a line of its own, and Holm over them."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from scipy import stats
from search_cases import dense_localizer, pooled_localizer

from dal_jax import (
    ImageToTest,
    InputError,
    QueuedImage,
    Status,
    TestOptions,
    as_record,
    contradiction,
    dal_test,
    dal_test_batch,
    from_score,
    region_of,
    run_tests,
)
from dal_jax.inference import SelectiveP, holm, region_line, selective_p
from dal_jax.noise import ar1, diagonal, iid
from dal_jax.search import label_components, parts_of, select_region

NOISE = ar1(0.5, 1.0)
PARTS = TestOptions(region="components", randomization=0.5)


def drawn(localizer, seed, least=2):
    """An image and a reference, of which the first has that many components or more."""
    rng = np.random.default_rng(seed)
    while True:
        x, reference = (NOISE.sample(rng, localizer.image_shape) for _ in range(2))
        if label_components(localizer.region(x)).max() >= least:
            return x, reference


def certain(*p):
    return [SelectiveP(value, value, value) for value in p]


# Holm.


def reject(p, alpha):
    """Holm's procedure, step by step."""
    rejected = [False] * len(p)
    for step, number in enumerate(np.argsort(p)):
        if p[number] > alpha / (len(p) - step):
            break
        rejected[number] = True
    return rejected


@pytest.mark.parametrize("seed", range(20))
def test_adjusted_p_values_are_at_most_alpha_where_holm_rejects(seed):
    rng = np.random.default_rng(seed)
    p = rng.random(rng.integers(1, 7)) ** 3
    adjusted = np.array(holm(certain(*p)))[:, 0]
    for alpha in rng.random(50):
        assert (adjusted <= alpha).tolist() == reject(p, alpha)


@pytest.mark.parametrize("seed", range(10))
def test_bounds_on_adjusted_p_values_hold(seed):
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.random((2, 5)), axis=0)
    bounds = holm([SelectiveP(a, a, b) for a, b in zip(low, high, strict=True)])
    for share in rng.random((100, 5)):
        between = holm(certain(*(low + share * (high - low))))
        # One rounding of a product with a small whole number.
        assert all(
            b.low - 1e-15 <= p.p <= b.high + 1e-15 for b, p in zip(bounds, between, strict=True)
        )


def test_a_p_value_that_is_not_there_counts_as_one():
    found = holm(certain(0.01, float("nan"), 0.02))
    assert [p.p for p in found][::2] == pytest.approx([0.03, 0.04])
    assert np.isnan(found[1]).all()


# What is tested.


def test_components_part_the_flagged_pixels():
    score = np.array([[2.0, 0, 0, 2], [0, 2, 0, 0], [0, 0, 0, 2.5]])
    selected = select_region(score, 1.0, "components")
    parts = parts_of(selected, "components")
    assert [part.sum() for part in parts] == [2, 1, 1]  # diagonal neighbours are connected
    assert (sum(part.astype(int) for part in parts) == selected.region).all()
    assert parts_of(selected, "all") == [selected.region]


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("engine", ["adaptive", "sweep", "scan"])
def test_each_component_has_a_line_of_its_own_given_all_that_is_flagged(engine, gamma):
    localizer = pooled_localizer(side=6)
    x, reference = drawn(localizer, 3)
    options = {"engine": engine, "precision": 0.0, "randomization": gamma, "region": "components"}
    result = dal_test(localizer, x, reference, NOISE, **options)
    whole = dal_test(localizer, x, reference, NOISE, **{**options, "region": "all"})
    assert (result.region == whole.region).all()
    regions = [part.region for part in result.components]
    assert (sum(region.astype(int) for region in regions) == whole.region).all()
    for part in result.components:
        line = region_line(x, reference, part.region, NOISE)
        assert part.statistic == pytest.approx(line.statistic)
        assert part.sd == pytest.approx(line.sd)
        if not gamma:  # the set along the line of this component, by brute force
            z = np.linspace(-6, 6, 241)
            images = [line.base + line.direction * value for value in z]
            same = [(localizer.region(image) == whole.region).all() for image in images]
            ends = part.truncation / part.sd
            inside = ((ends[:, :1] <= z) & (z <= ends[:, 1:])).any(axis=0)
            assert inside.tolist() == same
            p = selective_p(line.z_obs, ends, part.searched / part.sd).p
            assert part.p_value == pytest.approx(p, abs=1e-9)
    assert result.p_value == min(part.p_holm for part in result.components)
    assert result.naive_p == min(1, len(regions) * min(p.naive_p for p in result.components))
    assert np.isnan(result.statistic) and np.isnan(result.estimate)
    assert np.isnan(result.over_conditioned_p) == (engine == "adaptive")


def test_one_component_is_the_whole_region():
    localizer = pooled_localizer(side=6)
    rng, count = np.random.default_rng(1), 0
    while count != 1:
        x, reference = rng.normal(size=(2, *localizer.image_shape))
        count = label_components(localizer.region(x)).max()
    result = dal_test(localizer, x, reference, "iid:1", region="components")
    whole = dal_test(localizer, x, reference, "iid:1")
    (part,) = result.components
    assert part.p_holm == part.p_value == result.p_value == whole.p_value
    assert result.num_evaluations == whole.num_evaluations
    assert (part.estimate, part.ci_low) == (whole.estimate, whole.ci_low)


def test_nothing_flagged_has_no_components():
    localizer = pooled_localizer(side=6).with_threshold(1e3)
    x = np.zeros(localizer.image_shape)
    result = dal_test(localizer, x, x, "iid:1", region="components")
    assert result.status is Status.NO_REGION and result.components == ()


# The p-values.


def test_p_values_of_components_are_uniform_and_holm_holds_the_level():
    localizer, count = dense_localizer(side=5), 500
    rng = np.random.default_rng(0)
    x, refs = (np.stack([NOISE.sample(rng, (5, 5, 1)) for _ in range(count)]) for _ in range(2))
    results = dal_test_batch(localizer, x, refs, NOISE, **vars(PARTS))
    tested = [result for result in results if result.status is Status.OK]
    assert sum(len(result.components) > 1 for result in tested) > 60
    first = [result.components[0].p_value for result in tested]
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    for level in (0.05, 0.2):
        rate = np.mean([result.p_value <= level for result in tested])
        assert rate < level + 3.5 * np.sqrt(level * (1 - level) / len(tested))


def test_every_decision_of_holm_is_certain_before_a_search_ends():
    localizer = pooled_localizer(side=6)
    level, compared = 0.3, 0
    for seed in range(12):
        x, reference = drawn(localizer, seed, least=3)
        options = {"region": "components", "randomization": 0.5, "precision": 0.5}
        rough = dal_test(localizer, x, reference, NOISE, level=level, **options)
        fine = dal_test(localizer, x, reference, NOISE, **{**options, "precision": 1e-6})
        for a, b in zip(rough.components, fine.components, strict=True):
            assert a.p_holm_low - 1e-6 <= b.p_holm <= a.p_holm_high + 1e-6
            assert (a.p_holm_high <= level) == (b.p_holm <= level)
            assert (a.p_holm_low <= level) == (b.p_holm <= level)
            compared += a.p_high - a.p_low > 1e-4
    assert compared > 5  # it was not just searched to the end


@pytest.mark.parametrize("engine", ["adaptive", "sweep"])
def test_the_bounds_on_adjusted_p_values_are_as_narrow_as_asked_for(engine):
    localizer = pooled_localizer(side=8)
    x, reference = drawn(localizer, 7, least=5)
    options = {"region": "components", "randomization": 0.5, "engine": engine, "precision": 0.01}
    result = dal_test(localizer, x, reference, NOISE, **options)
    assert result.status is Status.OK and len(result.components) == 6
    assert result.p_value < 1  # else there is no width
    for part in result.components:
        assert part.p_holm_high - part.p_holm_low <= 0.01
    assert 0 < result.p_high - result.p_low <= 0.01


# Records and refusals.


def test_records_hold_each_component_and_contradict_where_they_differ(tmp_path):
    localizer = pooled_localizer(side=6)
    x, reference = drawn(localizer, 2)
    items = [QueuedImage("a", None, partial(ImageToTest, x, reference))]
    (record,) = run_tests(tmp_path, localizer, items, NOISE, PARTS)
    result = dal_test(localizer, x, reference, NOISE, name="a", **vars(PARTS))
    regions = [region_of(part["region"], part["region_shape"]) for part in record["components"]]
    for region, part in zip(regions, result.components, strict=True):
        assert (region == part.region).all()
    own = as_record(result)
    assert contradiction(own, {key: record[key] for key in own}) is None
    moved = {**own, "components": [{**part, "statistic": 9.0} for part in own["components"]]}
    assert contradiction(own, moved) == "statistic"
    assert contradiction(own, {**own, "components": 2 * own["components"]}) == "components"


def test_permutations_of_components_are_refused():
    with pytest.raises(
        InputError, match="permutations: got 5, expected 0 with region 'components'"
    ):
        TestOptions(permutations=5, region="components")


def test_the_batch_changes_nothing():
    localizer = pooled_localizer(side=6)
    pairs = [drawn(localizer, seed) for seed in range(5)]
    x, refs = (np.stack(part) for part in zip(*pairs, strict=True))
    for number, result in enumerate(dal_test_batch(localizer, x, refs, NOISE, **vars(PARTS))):
        alone = dal_test(localizer, x[number], refs[number], NOISE, name=number, **vars(PARTS))
        assert contradiction(as_record(result), as_record(alone)) is None


def spots(side, count):
    """An image of single bright pixels, which brightness flags one by one, and a reference."""
    localizer = from_score(lambda params, draws, x: x[..., 0], (side, side, 1), 2.5)
    x, reference = 0.3 * np.random.default_rng(0).normal(size=(2, side, side, 1))
    rows, columns = np.divmod(np.arange(count), side // 2)
    x[2 * rows, 2 * columns] += 4.0
    return localizer, x, reference


def test_what_is_under_way_at_a_time_changes_no_bit_of_a_result():
    localizer, x, reference = spots(10, 12)
    one, few, many = (
        as_record(dal_test_batch(*(localizer, x[None], reference[None], "iid:0.3"), **options)[0])
        for options in (
            {"region": "components", "batch_size": size, "dtype": "float64"} for size in (1, 5, 99)
        )
    )
    assert len(one["components"]) == 12
    for record in (one, few, many):
        for part in (record, *record["components"]):
            del part["seconds"]
    assert repr(one) == repr(few) == repr(many)  # NaN is NaN


def test_memory_does_not_grow_with_the_number_of_components():
    peaks = []
    for count in (0, 8, 48):  # the first one compiles
        given = spots(64, count or 1)
        tracemalloc.start()
        result = dal_test(*given, "iid:0.3", region="components", randomization=0.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(result.components) == (count or 1)
    # Each of 40 more has a mask of 4 KiB; a search keeps a thousand bytes a pixel.
    assert peaks[2] - peaks[1] < 2**20


def test_a_component_that_cannot_be_tested_refuses_the_image():
    localizer = from_score(lambda params, draws, x: x[..., 0], (1, 3, 1), 1.0)
    noise = diagonal(np.array([[[1.0], [1.0], [1e-300]]]))
    x = np.array([[[2.0], [0.0], [2.0]]])
    (result,) = dal_test_batch(localizer, x[None], 0 * x[None], noise, region="components")
    assert result.status is Status.INVALID_INPUT and "standard deviations" in result.message
    assert dal_test(localizer, x, x, iid(1.0), region="components").status is Status.OK
