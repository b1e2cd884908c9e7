"""Metrics with masks: against scikit-learn, against brute force, and within the stated bounds."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from dal_jax import InputError
from dal_jax.images._metrics import (
    PixelMetrics,
    PixelResult,
    image_auroc,
    image_metrics,
)
from dal_jax.images._metrics_regions import cluster_interval, cluster_standard_error, region_counts

Maps = list[tuple[np.ndarray, np.ndarray]]  # score and mask of each image

# Sums of at most some thousands of terms of order one, in another order than the reference.
ROUNDING = 1e-12


def _feed(maps: Maps, **options: Any) -> PixelResult:
    metrics = PixelMetrics(**options)
    for score, mask in maps:
        metrics.add(score, mask)
    return metrics.result()


def _sklearn(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    precision, recall, _ = precision_recall_curve(labels, scores)
    both = np.maximum(precision + recall, 1e-300)
    f1 = float((2 * precision * recall / both).max())
    return roc_auc_score(labels, scores), average_precision_score(labels, scores), f1


def _flat(maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([score.ravel() for score, _ in maps])
    return np.concatenate([mask.ravel() for _, mask in maps]), scores


def _brute_aupro(maps: Maps, limit: float = 0.3) -> float:
    """Every threshold, every component, every trapezoid, one after the other."""
    components = []
    for score, mask in maps:
        found: Any = ndimage.label(mask, structure=np.ones((3, 3), int))
        labels, count = found
        components += [score[labels == k + 1] for k in range(count)]
    normal = np.concatenate([score[~mask] for score, mask in maps])
    points = [(0.0, 0.0)]
    for threshold in sorted(set(_flat(maps)[1].tolist()), reverse=True):
        overlap = [float(np.mean(component >= threshold)) for component in components]
        points.append((float(np.mean(normal >= threshold)), sum(overlap) / len(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def _random_maps(rng: np.random.Generator, images: int = 6, size: int = 24) -> Maps:
    """Skewed scores; one to four regions raised by different amounts; every third image normal."""
    maps: Maps = []
    for image in range(images):
        score = rng.gamma(2.0, 1.0, (size, size))
        mask = np.zeros((size, size), bool)
        for _ in range(rng.integers(1, 5) if image % 3 else 0):
            row, column = rng.integers(0, size - 6, 2)
            patch = np.s_[row : row + rng.integers(1, 6), column : column + rng.integers(1, 6)]
            mask[patch] = True
            score[patch] += rng.exponential(2.0)
        maps.append((score, mask))
    return maps


@pytest.mark.parametrize("decimals", [0, 1, 15])
@pytest.mark.parametrize("share", [0.002, 0.3, 0.99])
def test_image_metrics_match_scikit_learn(decimals: int, share: float) -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(1500) < share
    labels[:2] = [False, True]
    scores = np.round(rng.exponential(1.0, 1500) + 0.7 * labels, decimals)
    found = image_metrics(labels, scores)
    np.testing.assert_allclose(found[:3], _sklearn(labels, scores), rtol=ROUNDING)
    assert (found.num_normal, found.num_anomalous) == ((~labels).sum(), labels.sum())
    assert image_auroc(labels.astype(int), scores) == found.auroc


def test_constant_scores_and_perfect_scores() -> None:
    labels = np.array([0, 0, 0, 1])
    assert image_metrics(labels, np.full(4, 0.3))[:3] == (0.5, 0.25, 0.4)
    assert image_metrics(labels, np.array([-0.0, 0.0, -3.0, 2.0]))[:3] == (1.0, 1.0, 1.0)
    assert image_auroc(labels, np.array([1.0, 2.0, 3.0, -1e300])) == 0.0


@pytest.mark.parametrize("decimals", [0, 1, 15])
def test_pixel_metrics_match_scikit_learn_and_brute_force(decimals: int) -> None:
    maps = [(np.round(s, decimals), m) for s, m in _random_maps(np.random.default_rng(5))]
    found = _feed(maps)
    np.testing.assert_allclose(found[:3], _sklearn(*_flat(maps)), rtol=ROUNDING)
    np.testing.assert_allclose(found.aupro, _brute_aupro(maps), rtol=ROUNDING)
    assert found.num_images == 6 and found.num_pixels == 6 * 24 * 24
    assert found.resolution == 0 and found.max_error == (0, 0, 0, 0)
    assert found.num_anomalous == sum(int(m.sum()) for _, m in maps)


@pytest.mark.parametrize("limit", [0.05, 0.3, 0.37, 1.0])
def test_aupro_ends_at_its_limit(limit: float) -> None:
    maps = [(np.round(s, 1), m) for s, m in _random_maps(np.random.default_rng(6), images=3)]
    found = _feed(maps, limit=limit).aupro
    np.testing.assert_allclose(found, _brute_aupro(maps, limit), rtol=ROUNDING)


def test_aupro_by_hand_is_not_symmetric_and_interpolates() -> None:
    # Regions of 1 and 3 pixels and 5 normal pixels; the curve goes through
    # (0, 1/2), (0.2, 1/2), (0.2, 1/2 + 1/6), (0.4, 1): at 0.3 it is 5/6.
    score = np.array([[9.0, 8.0, 7.0, 6.0, 6.0, 6.0, 5.0, 4.0, 3.0]])
    mask = np.array([[1, 0, 1, 1, 1, 0, 0, 0, 0]], bool)
    found = _feed([(score, mask)])
    assert found.num_regions == 2
    by_hand = (0.2 * 1 / 2 + 0.1 * (2 / 3 + 5 / 6) / 2) / 0.3
    np.testing.assert_allclose(found.aupro, by_hand, rtol=ROUNDING)
    backwards = _feed([(-score, mask)]).aupro
    np.testing.assert_allclose(backwards, _brute_aupro([(-score, mask)]), rtol=ROUNDING)
    assert backwards < 0.1 < found.aupro


def test_regions_join_across_corners() -> None:
    assert _feed([(np.eye(4), np.eye(4, dtype=bool))]).num_regions == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_maps_match_brute_force(data: st.DataObject) -> None:
    maps: Maps = []
    for _ in range(data.draw(st.integers(1, 3))):
        cells = st.lists(st.integers(-2, 4), min_size=12, max_size=12)
        score = np.array(data.draw(cells), float).reshape(3, 4)
        maps.append((score, np.array(data.draw(cells)).reshape(3, 4) > 2))
    labels, scores = _flat(maps)
    for options in ({}, {"exact_pixels": 0, "bin_bits": 16}):  # bins that hold one value each
        found = _feed(maps, **options)
        if not 0 < labels.sum() < labels.size:
            assert np.isnan(found[:4]).all() and np.isnan(found.max_error).all()
            continue
        expected = (*_sklearn(labels, scores), _brute_aupro(maps))
        np.testing.assert_allclose(found[:4], expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("bin_bits", [10, 12, 16, 22])
@pytest.mark.parametrize("offset", [0.0, -2.5, 1000.0])
def test_bins_stay_within_their_bound(bin_bits: int, offset: float) -> None:
    maps = [(score + offset, m) for score, m in _random_maps(np.random.default_rng(7))]
    exact = _feed(maps)
    binned = _feed(maps, exact_pixels=1000, bin_bits=bin_bits)
    assert binned.resolution == 2**bin_bits
    off = np.abs(np.subtract(binned[:4], exact[:4]))
    assert (off <= np.array(binned.max_error) + ROUNDING).all()
    assert max(binned.max_error) > 0
    if bin_bits == 22:  # bins of 2^-13 of the score, which few pairs share unless all are large
        assert max(binned.max_error) < (0.002 if offset < 1 else 0.5)


def test_bound_of_bins_is_reached_by_an_order_inside() -> None:
    mask = np.array([[True, False]])
    best = _feed([(np.array([[1.001, 1.0]]), mask)], exact_pixels=0, bin_bits=10)
    assert best.pixel_auroc == 0.5 and best.max_error.pixel_auroc == 0.5
    assert best.pixel_ap == 0.5 and best.max_error.pixel_ap == 0.5
    zeros = _feed([(np.array([[0.0, -0.0]]), mask)], exact_pixels=0, bin_bits=10)
    assert zeros.pixel_auroc == 0.5  # equal numbers with different bits


def test_order_of_the_images_does_not_matter() -> None:
    maps = _random_maps(np.random.default_rng(8))
    for options in ({}, {"exact_pixels": 2000, "bin_bits": 12}):
        forward, backward = _feed(maps, **options), _feed(maps[::-1], **options)
        assert forward[:3] == backward[:3]
        np.testing.assert_allclose(forward.aupro, backward.aupro, rtol=ROUNDING)
        assert forward[4:9] == backward[4:9]


def test_result_may_be_read_while_images_come_in() -> None:
    maps = _random_maps(np.random.default_rng(9), images=3)[1:]
    metrics = PixelMetrics(exact_pixels=600)
    assert np.isnan(metrics.result()[:4]).all()
    for count, (score, mask) in enumerate(maps, start=1):
        metrics.add(score, mask)
        assert metrics.result() == metrics.result()
        assert metrics.result().resolution == (0 if count == 1 else 2**22)
    assert metrics.result() == _feed(maps, exact_pixels=600)


def test_foreground_leaves_out_what_lies_outside() -> None:
    (score, mask), foreground = _random_maps(np.random.default_rng(4))[1], np.zeros((24, 24), bool)
    foreground[:, :16] = True
    metrics = PixelMetrics()
    metrics.add(np.where(foreground, score, np.nan), mask, foreground)
    cut = _feed([(score[:, :16], mask[:, :16])])
    assert metrics.result() == cut and cut.num_regions > 0
    bar = np.array([[1, 1, 1], [0, 0, 0]], bool)
    split = PixelMetrics()  # one region that the foreground cuts in two is still one
    split.add(np.zeros((2, 3)), bar, np.array([[1, 0, 1], [1, 1, 1]], bool))
    assert split.result().num_regions == 1


@pytest.mark.parametrize("truth", [False, True])
def test_one_kind_of_pixel_gives_nan(truth: bool) -> None:
    score = np.arange(6.0).reshape(2, 3)
    for options in ({}, {"exact_pixels": 0, "bin_bits": 10}):
        found = _feed([(score, np.full((2, 3), truth))], **options)
        assert np.isnan(found[:4]).all() and found.num_pixels == 6
    assert np.isnan(image_metrics(np.full(3, truth), np.arange(3.0))[:3]).all()


def test_refusals_change_nothing() -> None:
    metrics = PixelMetrics()
    score, mask = np.array([[0.0, 1.0]]), np.array([[False, True]])
    refused = [
        (np.array([[np.nan, 1.0]]), mask, None, "score: 1 of 2 are NaN"),
        (np.array([[np.inf, 1.0]]), mask, None, "score: 1 of 2 are NaN or infinite"),
        (score, mask.astype(np.uint8), None, "mask of dtype uint8, expected bool"),
        (score, mask.T, None, "expected one shape"),
        (score, mask, np.ones((2, 2), bool), "expected one shape"),
        (score[0], mask[0], None, "expected one shape"),
        (np.array([["a", "b"]]), mask, None, "expected real numbers"),
    ]
    for case_score, case_mask, foreground, message in refused:
        with pytest.raises(InputError, match=message) as caught:
            metrics.add(case_score, case_mask, foreground)
        assert "\n" not in str(caught.value)
    assert metrics.result().num_images == 0
    wrong: list[dict[str, Any]] = [{"exact_pixels": -1}, {"bin_bits": 9}, {"bin_bits": 27}]
    wrong += [{"limit": 0.0}, {"limit": 1.5}]
    for options in wrong:
        with pytest.raises(InputError, match=f"{next(iter(options))} .*expected"):
            PixelMetrics(**options)
    for labels, scores in (([0, 2], [0.0, 1.0]), ([0], [0.0, 1.0]), ([0, 1], [0.0, np.nan])):
        with pytest.raises(InputError):
            image_auroc(np.array(labels), np.array(scores))


def test_region_counts_split_by_kind_and_touch() -> None:
    p = np.array([0.01, 0.2, 0.5, np.nan, 0.05, 0.001, 0.7, np.nan, 0.03])
    kinds = ["normal"] * 4 + ["anomalous"] * 5
    groups = list("aabbccdee")
    touches = [None, None, None, None, True, True, False, True, None]
    found = region_counts(p, kinds, groups, touches)
    normal, called = found.normal, np.array([1.0, 0.0, 0.0])
    assert (normal.num_significant, normal.num_decided, normal.num_undecided) == (1, 3, 1)
    assert normal.standard_error == cluster_standard_error(called, list("aab"))
    low, high = cluster_interval(called, list("aab"))
    assert (normal.low, normal.high) == (max(low, 0), min(high, 1)) and normal.num_groups == 2
    assert found.anomalous.share == 0.75 and found.anomalous.num_decided == 4
    assert found.touching[4:] == (2, 2, 1, 1) and np.isnan(found.touching.standard_error)
    assert found.elsewhere[4:] == (0, 1, 0, 1) and found.elsewhere.share == 0.0
    stricter = region_counts(p, kinds, groups, alpha=0.02)
    assert stricter.anomalous.share == 0.25
    assert np.isnan(stricter.touching.share) and stricter.touching.num_decided == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_values": np.array([True, False])}, "not decisions"),
        ({"p_values": np.array([0.1, 1.2])}, "outside"),
        ({"kinds": ["normal", "blowhole"]}, "kinds 'blowhole'"),
        ({"kinds": ["normal"]}, "kinds: 1 of them, expected 2"),
        ({"groups": ["a"]}, "groups: 1 of them"),
        ({"touches": [True, True]}, "a normal image"),
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"level": 1.0}, "level 1.0"),
    ],
)
def test_region_counts_refusals(change: dict, message: str) -> None:
    given_values = {"p_values": np.array([0.1, 0.2]), "kinds": ["normal", "anomalous"]}
    with pytest.raises(InputError, match=message) as caught:
        region_counts(**({**given_values, "groups": ["a", "b"]} | change))
    assert "\n" not in str(caught.value)
