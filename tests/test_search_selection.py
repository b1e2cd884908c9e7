"""The region "peak": what is selected, what decides it, and valid p-values given it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import published_batch as dal_test_batch
from helpers import published_test as dal_test
from scipy import stats
from search_cases import dense_localizer, jumping_localizer, pooled_localizer

from dal_jax import InputError, Status, from_score
from dal_jax.inference import contains, region_line, selective_p
from dal_jax.noise import ar1, iid
from dal_jax.search import Membership, count_ties, margins, select_region

LOCALIZERS = {
    "pooled": pooled_localizer(side=6),
    "pooled, 2 channels": pooled_localizer(1, side=6, channels=2),
    "dense": dense_localizer(side=6),
    "jumping": jumping_localizer(side=6),
}
ENDS = 1e-7  # standard deviations; float32 searches settle their ends in float64 to this


def flood(flagged, start):
    """The pixels connected with one, eight neighbours, step by step."""
    found, todo = np.zeros_like(flagged), [start]
    while todo:
        row, column = todo.pop()
        inside = 0 <= row < flagged.shape[0] and 0 <= column < flagged.shape[1]
        if inside and flagged[row, column] and not found[row, column]:
            found[row, column] = True
            todo += [(row + i, column + k) for i in (-1, 0, 1) for k in (-1, 0, 1)]
    return found


def peak(localizer, x, where=None):
    return select_region(localizer.score(x), localizer.threshold, "peak", where).region


def images(localizer, seed):
    """An image with two or more unconnected flagged parts, and a reference."""
    rng = np.random.default_rng(seed)
    while True:
        x, reference = rng.normal(size=(2, *localizer.image_shape))
        if (localizer.region(x) & ~peak(localizer, x)).any():
            return x, reference


@pytest.mark.parametrize("seed", range(20))
def test_peak_is_what_is_connected_with_the_highest_score(seed):
    rng = np.random.default_rng(seed)
    score, where = rng.normal(size=(7, 9)), rng.random((7, 9)) < 0.7
    for allowed in (np.ones_like(where), where):
        flagged = (score > 0.6) & allowed
        start = np.unravel_index(np.where(flagged, score, 0).argmax(), score.shape)
        region = select_region(score, 0.6, "peak", allowed).region
        np.testing.assert_array_equal(region, flood(flagged, start))
        np.testing.assert_array_equal(select_region(score, 0.6, "all", allowed).region, flagged)
    assert not select_region(score, 10.0, "peak").region.any()


@pytest.mark.parametrize("kind", ["all", "peak"])
@pytest.mark.parametrize("masked", [False, True])
def test_margins_say_which_maps_pick_the_same_pixels(kind, masked):
    rng = np.random.default_rng(0)
    score = rng.normal(size=(5, 6))
    where = rng.random((5, 6)) < 0.8 if masked else None
    selected = select_region(score, 0.8, kind, where)
    # Near enough for the same region in some, far enough for another in others.
    maps = score + rng.uniform(0.02, 0.6, size=(400, 1, 1)) * rng.normal(size=(400, 5, 6))
    regions = [select_region(one, 0.8, kind, where).region for one in maps]
    expected = [bool((region == selected.region).all()) for region in regions]
    found = margins(maps, 0.8, selected)
    assert found.inside.tolist() == expected
    assert ((found.margin > 0).all(axis=1)).tolist() == expected
    assert 40 < sum(expected) < 360


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "pooled" else pytest.mark.slow) for n in LOCALIZERS]
)
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_engines_find_what_a_dense_grid_finds(name, seed):
    localizer = LOCALIZERS[name]
    x, reference = images(localizer, seed)
    noise = ar1(0.5, 1.0) if seed else iid(1.0)
    where = np.random.default_rng(seed).random(x.shape[:2]) < 0.8 if seed == 2 else None
    region = peak(localizer, x, where)
    line = region_line(x, reference, region, noise)
    results = {
        engine: dal_test(
            localizer,
            x,
            reference,
            noise,
            where=where,
            region="peak",
            precision=0.0,
            z_max=5.0,
            engine=engine,
        )
        for engine in ("sweep", "scan", "adaptive")
    }
    exact = results["sweep"]
    found = exact.truncation / line.sd
    grid = np.linspace(-5, 5, 4001)
    maps = (peak(localizer, line.base + line.direction * z, where) for z in grid)
    same = np.array([(one == region).all() for one in maps])
    near = np.abs(grid[:, None] - found.reshape(-1)).min(axis=1) < 1e-9
    np.testing.assert_array_equal(contains(found, grid)[~near], same[~near])
    assert exact.p_value == pytest.approx(selective_p(line.z_obs, found, [(-5, 5)]).p, abs=1e-9)
    for engine, other in results.items():
        np.testing.assert_array_equal(other.region, region)
        assert other.truncation.shape == exact.truncation.shape, engine
        np.testing.assert_allclose(other.truncation / line.sd, found, atol=ENDS)
        assert other.p_value == pytest.approx(exact.p_value, abs=1e-6)


def steps(params, draws, x):
    """Counts the levels that a pixel exceeds: many scores are equal."""
    levels = jnp.array([0.0, 0.7, 1.4, 2.1], x.dtype)
    return jnp.sum(jnp.abs(x) > levels, axis=-1, dtype=x.dtype)


STEPS = from_score(steps, (1, 9, 1), 1.2)


def test_of_equal_scores_the_first_is_the_highest():
    rng = np.random.default_rng(0)
    judge = jax.jit(Membership(lambda params, draws, x: x[..., 0], True))
    ties = 0
    for _ in range(40):
        observed, other = rng.integers(0, 4, (2, 30, 1, 9)).astype(float)
        maps = np.where(rng.random(other.shape) < 0.8, observed[:1], other)
        selected = select_region(observed[0], 1.2, "peak")
        expected = [
            bool((select_region(one, 1.2, "peak").region == selected.region).all()) for one in maps
        ]
        found = margins(maps, 1.2, selected)
        assert found.inside.tolist() == expected
        ties += ((found.margin.min(axis=1) == 0) & ~found.inside).sum()
        lines = [((), (), one[..., None], 0 * one[..., None], selected, 1.2) for one in maps]
        assert [bool(judge(line, 0.0)[0]) for line in lines] == expected
    assert ties > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 10))
@pytest.mark.parametrize("engine", ["sweep", "scan"])
def test_the_set_of_a_peak_among_equal_scores(engine, seed):
    noise, rng = ar1(0.6, 1.0), np.random.default_rng(seed)
    x, reference = rng.normal(size=(2, 1, 9, 1))
    region = peak(STEPS, x)
    line = region_line(x, reference, region, noise)
    grid = np.linspace(-5, 5, 4001)
    same = [(peak(STEPS, line.base + line.direction * z) == region).all() for z in grid]
    told: dict[str, Any] = {"region": "peak", "engine": engine, "precision": 0.0, "z_max": 5.0}
    found = dal_test(STEPS, x, reference, noise, **told).truncation / line.sd
    near = np.abs(grid[:, None] - found.reshape(-1)).min(axis=1) < 1e-9
    np.testing.assert_array_equal(contains(found, grid)[~near], np.array(same)[~near])


@pytest.mark.slow
def test_one_part_that_is_all_that_is_flagged_asks_no_more():
    localizer = pooled_localizer(side=8, threshold=7.0)
    rng = np.random.default_rng(0)
    larger = 0
    for _ in range(60):
        x, reference = rng.normal(size=(2, *localizer.image_shape))
        region = localizer.region(x)
        if not region.any() or (region != peak(localizer, x)).any():
            continue
        every, one = (
            dal_test(localizer, x, reference, "iid:1", region=kind, engine="sweep")
            for kind in ("all", "peak")
        )
        assert every.statistic == one.statistic
        assert contains(one.truncation, every.truncation.mean(axis=1)).all()
        larger += np.diff(one.truncation).sum() > np.diff(every.truncation).sum() + 1e-9
    assert larger


@pytest.mark.slow
def test_p_values_of_peaks_are_uniform_under_the_null():
    localizer = pooled_localizer(3, side=8, strength=0.6, threshold=1.6)
    rng = np.random.default_rng(5)
    x, reference = rng.normal(size=(2, 700, *localizer.image_shape))
    found = dal_test_batch(localizer, x, reference, "iid:1", region="peak")
    p = np.array([one.p_value for one in found if one.status is Status.OK])
    assert len(p) > 600
    # The naive test must fail what the selective one passes.
    naive = np.array([one.naive_p for one in found if one.status is Status.OK])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert stats.kstest(naive, "uniform").pvalue < 0.002


def test_unknown_region():
    localizer = LOCALIZERS["pooled"]
    x, reference = images(localizer, 0)
    with pytest.raises(InputError, match="region: got 'most', expected one of all, peak"):
        dal_test(localizer, x, reference, "iid:1", region="most")


@pytest.mark.parametrize("where", [np.ones((6, 5), bool), np.ones((6, 6))])
def test_a_mask_that_does_not_fit(where):
    localizer = LOCALIZERS["pooled"]
    x, reference = images(localizer, 0)
    with pytest.raises(InputError, match=r"where is .*, expected bool"):
        dal_test(localizer, x, reference, "iid:1", where=where)


def test_masks_of_a_batch():
    localizer = LOCALIZERS["pooled"]
    x, reference = images(localizer, 0)
    where = ~localizer.region(x)
    pair = dal_test_batch(
        localizer,
        np.stack([x, x]),
        np.stack([reference, reference]),
        "iid:1",
        where=np.stack([where, ~where]),
    )
    assert [one.status for one in pair] == [Status.NO_REGION, Status.OK]
    with pytest.raises(InputError, match="where has 1 entries, expected one for each of 2 images"):
        dal_test_batch(localizer, [x, x], [reference, reference], "iid:1", where=[where])


@pytest.mark.parametrize("kind", ["all", "peak"])
def test_pixels_that_rounding_decides_are_counted(kind):
    def ties(score, threshold, scale):
        observed = margins(score[None], threshold, select_region(score, threshold, kind))
        return count_ties(observed.margin[0], scale)

    score = np.array([[3.0, 1.0, 0.0, 2.5], [0.0, 0.0, 0.0, 0.0]])
    assert ties(score, 1.5, scale=5.0) == 0
    near = score.copy()
    near[0, 1], near[1, 0] = 1.5 + 1e-13, 1.5 - 1e-13  # both beside the peak
    assert ties(near, 1.5, scale=5.0) == 2
    # The values that a score is computed from may be far larger than it.
    far = score + 1e-9 * (score == 1.0)
    assert ties(far, 1.0, scale=3.0) == 0
    assert ties(far, 1.0, scale=1e5) == 1
    # Two peaks of equal height: which one is tested hangs on rounding.
    equal = np.array([[3.0, 0.0, 3.0 - 1e-14]])
    assert ties(equal, 1.0, scale=3.0) == (kind == "peak")


def test_a_result_says_how_many_pixels_rounding_decides():
    brightness = from_score(lambda params, draws, x: x[..., 0], (1, 3, 1), 1.0)
    x = np.array([[[3.0], [np.nextafter(1.0, 2.0)], [0.0]]])
    results = dal_test_batch(brightness, [x, x + 1e-9], np.zeros((2, 1, 3, 1)), "iid:1")
    assert [one.num_ties for one in results] == [1, 0]
    assert dal_test(brightness, x, np.zeros((1, 3, 1)), "iid:1", engine="sweep").num_ties == 1
