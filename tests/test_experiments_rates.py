"""Records of tests by hand: rejection rates, tested parts, thinning, detections and intervals."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("matplotlib")

from dal_jax import TestOptions, as_record, dal_test, from_score, region_of, thinned, thinned_test
from dal_jax.inference import SelectiveP, holm
from dal_jax.noise import parse_noise
from experiments import power, type1_error
from experiments._experiment import Condition, ConditionResult
from experiments._methods import comparisons, main_results, method_panels, method_rows
from experiments._models import Model, Use
from experiments._rates import detection_rows, effect_rows, rate_cell, rejections
from experiments._records import METHODS, counts, p_values, parts_of
from experiments._simulation import Simulation

SIZE, NAN = 8, math.nan
SQUARE = Simulation(SIZE, signal=2.0).square(0, (1,))
PLACES = np.flatnonzero(SQUARE)  # of image 0
BESIDE = np.flatnonzero(~SQUARE)


@pytest.mark.parametrize("references", [1, 4])
@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_thinning_needs_no_more_than_the_record(gamma, references):
    noise = parse_noise("ar1:0.5:1.5", (4, 4, 1))
    brightness = from_score(lambda params, draws, x: x[..., 0], (4, 4, 1), 1.0)
    rng, seen = np.random.default_rng(3), 0
    for name in range(6):
        x, *refs = (noise.sample(rng, (4, 4, 1)) for _ in range(1 + references))
        record = as_record(
            dal_test(brightness, x, np.stack(refs), noise, randomization=gamma, name=name)
        )
        if record["status"] != "OK":
            continue
        region = region_of(record["region"], record["region_shape"])
        halves = thinned(x, noise, gamma, name=name)
        expected = thinned_test(halves, region, np.stack(refs), noise, confidence=0.9)
        (part,) = parts_of(record, "thinned", 0.9)
        np.testing.assert_array_equal(part.region, region)
        # The same sums in another order.
        np.testing.assert_allclose(
            [part.p, part.estimate, part.low, part.high],
            [expected.p_value, expected.statistic, expected.ci_low, expected.ci_high],
            rtol=1e-10,
        )
        assert METHODS["thinned"](record) == part.p
        seen += 1
    assert seen > 3


def test_without_randomization_nothing_is_thinned():
    assert parts_of(_record(0.01, PLACES[:2], randomization=0.0), "thinned") == []
    assert math.isnan(METHODS["thinned"](_record(0.01, PLACES[:2], randomization=0.0)))


def _record(p: float, pixels: Any, **changed: Any) -> dict[str, Any]:
    """A test of these pixels; its interval is 1 wide around an estimate of 2.1, its sd 0.5."""
    return {
        "status": "OK",
        "p_value": p,
        "region": [[int(k), 1] for k in pixels],
        "region_shape": [SIZE, SIZE],
        "randomization": 0.5,
        "components": [],
        "statistic": 2.0,
        "sd": 0.5,
        "added": 0.1,
        "added_sd": 0.5 * 0.5 * math.sqrt(2),  # one reference: gamma sd sqrt(1 + 1/K)
        "estimate": 2.1,
        "ci_low": 1.6,
        "ci_high": 2.6,
        **changed,
    }


EMPTY = _record(NAN, [], status="NO_REGION", estimate=NAN)


def _holm(p: list[float]) -> list[float]:
    return [one.p for one in holm([SelectiveP(value, value, value) for value in p])]


def _whole(*components: dict[str, Any]) -> dict[str, Any]:
    """The record of an image whose components are tested."""
    adjusted = _holm([one["p_value"] for one in components])
    parts = [{**one, "p_holm": p} for one, p in zip(components, adjusted, strict=True)]
    numbers = dict.fromkeys(("statistic", "sd", "added", "added_sd", "estimate"), NAN)
    whole = _record(min(adjusted), [], ci_low=NAN, ci_high=NAN, **numbers)
    region = [run for one in components for run in one["region"]]
    return {**whole, "region": sorted(region), "components": parts}


def _result(*records: dict[str, Any], signal: float = 2.0, gamma: float = 0.5) -> ConditionResult:
    simulation = Simulation(SIZE, signal=signal)
    options = TestOptions(randomization=gamma)
    condition = Condition({}, Model(8), Use(SIZE), simulation, len(records), options)
    return ConditionResult(condition, list(records), {}, (1,))


def test_detections_are_of_all_images_and_touch_the_square():
    measured = _result(_record(0.01, PLACES[:2]), EMPTY, EMPTY, EMPTY)
    row, thin = detection_rows({"size": 8}, measured, (0.05,))
    assert (row["method"], row["images"], row["detected"], row["rate"]) == ("selective", 4, 1, 0.25)
    assert row["se"] == pytest.approx(math.sqrt(0.25 * 0.75 / 4), rel=1e-12)
    assert row["size"] == thin["size"] == 8 and thin["method"] == "thinned"
    for missed in (
        _record(0.06, PLACES[:2]),  # not significant
        _record(0.01, BESIDE[:2]),  # not in the square
        _record(0.01, PLACES[:2], status="NOT_CONVERGED"),
    ):
        assert detection_rows({}, _result(missed), (0.05,))[0]["detected"] == 0
    assert len(detection_rows({}, _result(EMPTY, gamma=0.0), (0.05, 0.1))) == 2


@pytest.mark.parametrize(("p", "detected"), [(0.02, 1), (0.03, 0)])
def test_a_component_counts_with_its_own_adjusted_p(p, detected):
    # 2 * 0.03 is above 0.05, and the significant one does not touch.
    whole = _whole(_record(p, PLACES[:2]), _record(0.6, BESIDE[:3]))
    assert detection_rows({}, _result(whole), (0.05,))[0]["detected"] == detected
    apart = _whole(_record(0.4, PLACES[:2]), _record(0.001, BESIDE[:3]))
    assert detection_rows({}, _result(apart), (0.05,))[0]["detected"] == 0


def test_components_are_thinned_one_by_one():
    one, two = _record(0.2, PLACES[:2]), _record(0.6, BESIDE[:3], statistic=0.3)
    alone = [parts_of(record, "thinned")[0].p for record in (one, two)]
    whole = _whole(one, two)
    assert [part.p for part in parts_of(whole, "thinned")] == _holm(alone)
    assert METHODS["thinned"](whole) == min(1.0, 2 * min(alone))


def test_intervals_against_the_true_difference():
    inside = _record(0.01, PLACES[:2])  # true: 2, in [1.6, 2.6], estimated at 2.1
    half = _record(0.01, [PLACES[0], BESIDE[0]], ci_high=math.inf)  # true: 1, below
    row, thin = effect_rows({}, _result(inside, half, EMPTY))
    assert row["parts"] == thin["parts"] == 2
    assert (row["covered"], row["above"], row["infinite"]) == (0.5, 1.0, 0.5)
    # Two images: the sample deviation, sqrt(1/2), over sqrt(2).
    assert row["covered_se"] == pytest.approx(0.5, rel=1e-12)
    (one, _) = effect_rows({}, _result(inside))
    assert math.isnan(one["covered_se"]) and math.isnan(one["above_se"])  # of one image
    assert (one["length"], one["length_sd"]) == (pytest.approx(1.0), pytest.approx(2.0))
    (null, _) = effect_rows({}, _result(inside, signal=0.0))
    assert null["covered"] == 0.0  # the true difference is 0
    # c = 1/2: the thinned sd is sqrt(1 + 2) times that of the image.
    assert thin["length_sd"] == pytest.approx(2 * 1.959964 * math.sqrt(3), rel=1e-6)


def test_parts_of_one_image_are_dependent():
    covers, misses = _record(0.01, PLACES[:1]), _record(0.01, BESIDE[:1])
    row, _ = effect_rows({}, _result(_whole(covers, covers), _whole(misses, misses)))
    assert row["covered"] == 0.5 and row["parts"] == 4
    # Two images, each all or nothing: as if there were two parts, where four would give 0.29.
    assert row["covered_se"] == pytest.approx(0.5, rel=1e-12)


def test_options_are_labels_where_they_are_varied():
    settings = power.Settings(
        sizes=(8,),
        images=(2,),
        permutation_images=(1,),
        train_sizes=(8,),
        noises=("iid:1",),
        signals=(2.0,),
        randomizations=(0.0, 0.5),
        regions=("all", "peak"),
        references=(1, 20),
    )
    conditions = comparisons(settings, settings.signals)
    own = [one for one in conditions if one.labels["baselines"] == "window"]
    assert len(own) == 8 and len(conditions) == 9  # one permutation baseline for all
    for one in own:
        assert one.options.region == one.labels["region"]
        assert one.options.randomization == one.labels["randomization"]
        assert one.simulation.references == one.labels["references"]
    plain = comparisons(power.Settings(), (2.0,))
    assert list(plain[0].labels) == ["size", "noise", "signal", "baselines"]
    rows = [one.labels for one in own]
    panels = method_panels(rows, ("size", "noise", "randomization", "region", "references"))
    assert list(panels)[-1] == "8 x 8, noise iid:1, gamma 0.5, peak, 20 references"
    assert list(method_panels(rows, ("noise",))) == ["noise iid:1"]


def test_summary_and_figures_of_a_comparison():
    """Of every table that an experiment writes, with records made by hand."""
    measured = []
    for gamma in (0.0, 0.5):
        for signal in (1.0, 2.0):
            p = dict.fromkeys(("over_conditioned_p", "naive_p", "permutation_p"), 0.5)
            more = {**p, "bonferroni_log10_p": 0.0, "num_evaluations": 40, "randomization": gamma}
            records = [_record(0.01, PLACES[:2], **more), {**EMPTY, **more}]
            one = _result(*records, signal=signal, gamma=gamma)
            labels = {"size": 8, "noise": "iid:1", "randomization": gamma, "signal": signal}
            labels["baselines"] = "window"
            measured.append(one._replace(condition=one.condition._replace(labels=labels)))

    class Known:
        def tests(self, conditions: Any) -> list[ConditionResult]:
            return measured

    settings: Any = power.Settings(randomizations=(0.0, 0.5))
    context: Any = Known()
    found = power.measure(settings, context)
    assert {name for name in found if len(found[name]) == len(measured)} >= {"regions", "work"}
    assert len(found["detections"]) == len(found["effects"]) == 6  # thinned at one gamma
    text = power.summary(found)
    assert "thinned" in text and "0.500 (0.354)" in text and "40; 40.0" in text
    assert set(power.draw(found)) == {"power", "detections"}
    null = type1_error.measure(type1_error.Settings(), context)
    assert "Intervals at 0.95" in type1_error.summary(null)
    assert method_rows(measured, (0.05,)) and main_results(measured)[0][0]["size"] == 8


def _image(p: float, status: str = "OK", **changed: float) -> dict[str, Any]:
    """A record whose methods' p-values are all p, but for those that are named."""
    fields = {
        "p_value": p,
        "over_conditioned_p": p,
        "naive_p": p,
        "bonferroni_log10_p": math.log10(p) if p == p else p,
        "permutation_p": p,
        **_halves(p),
    }
    return {"status": status, **fields, **changed}


def _halves(p: float) -> dict[str, Any]:
    """A region with one reference, gamma 1 and nothing added, where thinning's p is p."""
    statistic = math.sqrt(1.5) * stats.norm.isf(p / 2)
    halves = {"statistic": statistic, "sd": 1.0, "added": 0.0, "added_sd": math.sqrt(2)}
    return {"region": [[0, 1]], "region_shape": [2, 2], "randomization": 1.0, **halves}


RECORDS = [
    *(_image(p) for p in (0.004, 0.01, 0.03, 0.05, 0.0500001, 0.2, 0.6, 1.0)),
    *(_image(NAN, "NO_REGION") for _ in range(3)),
    _image(NAN, "NON_FINITE"),
    _image(0.001, "NOT_CONVERGED"),
]


def _row(method: str, alpha: float) -> dict[str, Any]:
    rows = rejections({"size": 8}, RECORDS, (0.01, 0.05))
    return next(row for row in rows if row["method"] == method and row["alpha"] == alpha)


def test_counts_of_every_image():
    assert counts(RECORDS) == {"images": 13, "no_region": 3, "failed": 2}
    assert counts([]) == {"images": 0, "no_region": 0, "failed": 0}


@pytest.mark.parametrize("method", METHODS)
def test_only_tested_images_have_p_values(method):
    expected = [0.004, 0.01, 0.03, 0.05, 0.0500001, 0.2, 0.6, 1.0]
    # Bonferroni's comes through a logarithm, thinning's through a quantile: a few roundings.
    np.testing.assert_allclose(p_values(RECORDS, method), expected, rtol=1e-14)


@pytest.mark.parametrize(("alpha", "rejected"), [(0.01, 2), (0.05, 4)])
def test_a_rate_is_that_of_scipy(alpha, rejected):
    row = _row("selective", alpha)
    assert row["size"] == 8
    assert (row["tested"], row["rejected"], row["rate"]) == (8, rejected, rejected / 8)
    assert (row["images"], row["no_region"], row["failed"]) == (13, 3, 2)
    # The 95% interval of Clopper and Pearson: quantiles of beta distributions.
    low = stats.beta.ppf(0.025, rejected, 8 - rejected + 1)
    high = stats.beta.ppf(0.975, rejected + 1, 8 - rejected)
    # Another iteration computes the quantiles; it stops at 1e-12 or so.
    np.testing.assert_allclose([row["low"], row["high"]], [low, high], rtol=1e-9)
    np.testing.assert_allclose(row["se"], stats.binom(8, rejected / 8).std() / 8, rtol=1e-14)
    p = p_values(RECORDS, "selective")
    judge: Any = stats.ks_1samp(p, stats.uniform.cdf)
    assert row["ks_p"] == judge.pvalue


def test_methods_not_asked_for_have_no_row():
    without: Any = {"over_conditioned_p": NAN, "permutation_p": NAN, "randomization": 0.0}
    records = [_image(0.5, **without) for _ in range(4)]
    methods = {row["method"] for row in rejections({}, records, (0.05,))}
    assert methods == {"selective", "naive", "bonferroni"}


def test_bonferroni_of_huge_families_does_not_overflow():
    # 2^4096 regions: the corrected p-value is 1; one far in the tail is 0.
    records = [_image(0.5, bonferroni_log10_p=0.0), _image(0.5, bonferroni_log10_p=-400.0)]
    np.testing.assert_array_equal(p_values(records, "bonferroni"), [1.0, 0.0])


def test_the_same_columns_in_every_row():
    rows = rejections({"size": 8}, RECORDS, (0.01, 0.05, 0.1))
    assert len(rows) == 3 * len(METHODS)
    assert len({tuple(row) for row in rows}) == 1


def test_a_cell_tells_rate_and_error():
    assert rate_cell({"rate": 0.0512, "se": 0.00731}) == "0.051 (0.007)"


@pytest.mark.parametrize("records", [[_image(NAN, "NO_REGION"), _image(NAN, "NON_FINITE")], []])
def test_where_nothing_was_tested_the_images_are_counted(records):
    rows = rejections({}, records, (0.05,))
    assert [row["method"] for row in rows] == list(METHODS)
    for row in rows:
        assert {key: row[key] for key in ("images", "no_region", "failed")} == counts(records)
        assert row["tested"] == row["rejected"] == 0
        assert np.isnan([row[key] for key in ("rate", "se", "low", "high", "ks_p")]).all()
