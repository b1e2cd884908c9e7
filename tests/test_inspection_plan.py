"""Plans: the differences that are simulated, the smallest one that is found, tables and errors."""

import csv
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from dal_jax import InputError, dal_test_batch
from dal_jax.cli import main
from dal_jax.images import Fitted, Preparation, fit, views, with_change
from dal_jax.inference import NullLaw, Ranks
from dal_jax.inspection import (
    Calibration,
    PlanOptions,
    Profile,
    Source,
    open_model,
    plan_inspection,
    save_profile,
)
from dal_jax.inspection._calibration import save_calibration
from dal_jax.inspection._plan import objects_needed
from dal_jax.inspection._planned_tests import PlanSetting, _raised, _square
from dal_jax.inspection._power import CLOSE, search_differences, smallest_difference
from dal_jax.localizers import parse_detector, save_detector
from dal_jax.noise import iid

SIDE, NAME = 8, "plan_detector:score"
CODE = '''
import numpy as np


def score(x):
    """The mean of nine neighbours, without its sign."""
    padded = np.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return abs(rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
'''
QUICK = PlanOptions(region_sizes=(3,), images=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose detector is a mean of neighbours, and whose noise is independent."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan_detector.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    save_detector(folder / "model", parse_detector(NAME).for_images((SIDE, SIDE, 1)))
    save_profile(folder / "model", profile_of())
    yield folder / "model"
    sys.path.remove(str(folder))
    sys.modules.pop("plan_detector", None)


def profile_of(**preparation):
    how = {"view": "crop", "intensity": "raw", "background": "none", "scale": "none"}
    fitted = Fitted(
        Preparation(SIDE, **{**how, **preparation}), 1, (0.0, 0.5, 1.0), (0.0,), 1.0, 20
    )
    references = 5 + np.random.default_rng(0).standard_normal((3, SIDE, SIDE, 1)) / 1e6
    roles = {"train": ("a",), "calibrate": ("b",)}
    parts = Source(), fitted, "iid", iid(1.0), references - 5, 0.9, "peak", 0.02, roles, 0
    return Profile(*parts, randomization=0.5)


def table(path):
    return [*csv.DictReader(path.read_text().splitlines())]


def plan(model, out, options=QUICK):
    return plan_inspection(model, out, options, localizer=NAME)


def found_above(limits):
    """Images that are found from a limit of their own on, and the differences asked for."""
    asked = []

    def simulate(difference):
        asked.append(difference)
        return limits <= difference

    return simulate, asked


def test_differences_are_doubled_and_then_refined():
    limits = np.random.default_rng(0).lognormal(1.0, 0.3, 200)
    simulate, asked = found_above(limits)
    found = search_differences(simulate, 1.0, 100.0, 0.8)
    assert asked[:3] == [1.0, 2.0, 4.0]
    assert list(found) == sorted(asked) and len(set(asked)) == len(asked) <= 9
    rates = np.array([one.mean() for one in found.values()])
    below = int(np.sum(rates < 0.8))
    low, high = [*found][below - 1 : below + 1]
    assert high / low <= CLOSE
    estimate = smallest_difference(found, 0.8, 0)
    assert low <= estimate.difference <= high
    assert estimate.low <= np.quantile(limits, 0.8) <= estimate.high


def test_differences_are_halved_where_the_first_is_found():
    simulate, asked = found_above(np.full(50, 0.3))
    found = search_differences(simulate, 1.0, 8.0, 0.8)
    assert asked[:3] == [1.0, 0.5, 0.25]
    # All images have one limit: the curve is a jump, within the last pair.
    assert smallest_difference(found, 0.8, 0).difference == pytest.approx(0.3, rel=CLOSE - 1)


def test_nothing_is_extrapolated():
    limits = np.concatenate([np.full(30, 1.5), np.full(20, np.inf)])  # the detector misses 40%
    simulate, asked = found_above(limits)
    found = search_differences(simulate, 1.0, 10.0, 0.8)
    assert asked == [1.0, 2.0, 4.0, 8.0, 10.0]
    assert smallest_difference(found, 0.8, 0) == (math.inf, math.inf, math.inf)
    # Nearly reached: a lower bound that the images support, and no upper one.
    limits = np.concatenate([np.full(78, 1.5), np.full(22, np.inf)])
    found = search_differences(found_above(limits)[0], 1.0, 10.0, 0.8)
    low, high = smallest_difference(found, 0.8, 0)[1:]
    assert 1 < low < 10 and math.isinf(high)


def test_the_fit_is_monotone_and_piecewise_linear():
    def of(*counts):
        return {1.0 + k: np.arange(10) < count for k, count in enumerate(counts)}

    assert smallest_difference(of(2, 6, 10), 0.8, 0).difference == pytest.approx(2.5)
    assert smallest_difference(of(4, 8, 10), 0.8, 0).difference == pytest.approx(2.0)
    # 9, 5 are pooled to 7: the power is reached between it and 10.
    pooled = smallest_difference(of(2, 9, 5, 10), 0.8, 0).difference
    assert pooled == pytest.approx(3 + (0.8 - 0.7) / (1.0 - 0.7))
    assert smallest_difference(of(10), 0.8, 0).difference == pytest.approx(0.8)


def test_the_interval_covers():
    """The percentiles of a bootstrap of a share hold the truth in a little less than 95%."""
    truth, held = math.exp(1 + 0.4 * stats.norm.ppf(0.8)), 0
    for seed in range(40):
        limits = np.random.default_rng(seed).lognormal(1.0, 0.4, 100)
        found = search_differences(found_above(limits)[0], 1.0, 100.0, 0.8)
        estimate = smallest_difference(found, 0.8, seed)
        held += estimate.low <= truth <= estimate.high
    assert held >= 40 * 0.93 - 3 * math.sqrt(40 * 0.93 * 0.07)


def test_a_plan_and_its_files(model, tmp_path, capsys):
    words = ["plan", "--model", model, "--localizer", NAME, "--out", tmp_path / "a"]
    words += ["--region-sizes", "2,4", "--references", "1", "--images", "20"]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Smallest mean difference found with probability 0.8 at 0.05")
    assert "grey values" in out and " 4x4" in out
    names = {"plan.csv", "power.csv", "plan.png", "plan.json", "run"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    rows, points = (table(tmp_path / "a" / name) for name in ("plan.csv", "power.csv"))
    assert [row["size"] for row in rows] == ["2", "4"]
    assert float(rows[0]["difference"]) > float(rows[1]["difference"])
    for row in rows:
        own = [point for point in points if point["size"] == row["size"]]
        assert int(row["tests"]) == 20 * len(own) and row["references"] == "1"
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
        # Independent noise: sd sqrt(1 + 1/K) / side, and the quantiles of 0.025 and 0.8.
        fixed = (1.959964 + 0.841621) * math.sqrt(2) / int(row["size"])
        assert float(row["fixed_region"]) == pytest.approx(fixed, rel=1e-6)
        assert float(row["difference"]) > fixed
        assert all(int(point["found"]) <= int(point["touched"]) <= 20 for point in own)
    # Resumed: no test is repeated, and the files are the same.
    kept = {p: p.read_bytes() for p in (tmp_path / "a").glob("plan.*")}
    shards = sorted((tmp_path / "a" / "run").rglob("shard-*"))
    assert main([str(word) for word in words]) == 0
    assert kept == {p: p.read_bytes() for p in (tmp_path / "a").glob("plan.*")}
    assert shards == sorted((tmp_path / "a" / "run").rglob("shard-*"))


def test_a_difference_that_is_never_found(model, tmp_path, capsys):
    words = ["plan", "--model", model, "--localizer", NAME, "--out", tmp_path]
    words += ["--region-sizes", "1", "--images", "20", "--largest", "1"]
    assert main([str(word) for word in words]) == 0
    assert "none to " in capsys.readouterr().out
    [row] = table(tmp_path / "plan.csv")
    assert row["difference"] == "inf" and row["low"] == row["largest"] and row["high"] == "inf"


@pytest.mark.slow
def test_noise_and_randomization_change_the_threshold_in_proportion(model, tmp_path):
    """Twice the noise is twice the difference: the score is of degree one in it."""
    found = plan(model, tmp_path, replace(QUICK, noise_factors=(1.0, 2.0), randomizations=(0.5,)))
    one, two = found.rows
    assert two.difference == pytest.approx(2 * one.difference, rel=0.03)  # four digits of each
    assert two.fixed_region == pytest.approx(2 * one.fixed_region)


def test_images_have_their_noise_in_common(model):
    profile = profile_of()
    few, many = (
        _raised(profile, PlanSetting(3, 1.0, count, 0.5), difference, 4, 7)
        for count, difference in ((2, 0.0), (6, 1.5))
    )
    square = _square(profile, 3, 4, 7)
    np.testing.assert_allclose(many.image - few.image, 1.5 * square[..., None], atol=1e-12)
    np.testing.assert_array_equal(many.references[:2], few.references)
    assert square.sum() == 9 and len({_square(profile, 3, 4, k).tobytes() for k in range(30)}) > 10


@pytest.mark.parametrize("scale", ["view", "train", "none"])
@pytest.mark.parametrize("background", ["quadratic", "none"])
def test_a_change_of_a_view_is_that_of_its_image(scale, background):
    rng = np.random.default_rng(0)
    image = 20 + rng.standard_normal((SIDE, SIDE, 1))
    how = Preparation(SIDE, "crop", "raw", background, scale)
    fitted = fit(how, [image + rng.standard_normal(image.shape) for _ in range(3)])
    raised = image.copy()
    raised[2:5, 3:6] += 4
    view, changed = views(fitted, image), views(fitted, raised)
    units = {"view": view.scale[0], "train": fitted.sd, "none": 1.0}[scale]
    found = with_change(fitted, view.pixels[0], (raised - image) / units)
    np.testing.assert_allclose(found, changed.pixels[0], atol=1e-10)  # rounding of 20


def test_squares_are_within_the_foreground():
    base = profile_of(foreground="otsu")
    runs = (17, 6, 2, 6, 2, 6, 2, 6, 17)  # rows 2 to 5, columns 1 to 6
    profile = base._replace(fitted=replace(base.fitted, foreground=runs))
    shown = profile.where
    assert shown is not None and shown.sum() == 24
    assert all((_square(profile, 3, 0, k) <= shown).all() for k in range(40))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--power", "1"], "power: got 1.0, expected a probability in (0, 1)"),
        (["--alpha", "0"], "alpha: got 0.0, expected a level in (0, 1)"),
        (["--region-sizes", "9"], "region_sizes: got 9, expected squares that fit"),
        (["--region-sizes", "0,2"], "region_sizes: got (0, 2), expected 1 or more"),
        (["--region-sizes", "2.5"], "--region-sizes: got '2.5', expected whole numbers"),
        (["--noise-factors", "a"], "--noise-factors: got 'a', expected numbers with commas"),
        (["--noise-factors", "0"], "noise_factors: got (0.0,), expected positive numbers"),
        (["--references", "0"], "references: got (0,), expected 1 or more"),
        (["--randomizations", "-1"], "randomizations: got -1.0, expected 0 or a number from"),
        (["--images", "5"], "images: got 5, expected 20 or more"),
        (["--views", "0"], "views: got 0, expected 1 or more"),
        (["--largest", "nan"], "largest: got nan, expected a number of 1 or more"),
        (["--decide-by", "conformal"], "decide_by: got 'conformal', expected 'selective' for"),
    ],
)
def test_wrong_options_are_one_line(model, tmp_path, capsys, words, message):
    start = ["plan", "--model", str(model), "--localizer", NAME, "--out", str(tmp_path)]
    assert main([*start, *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dal-jax plan: {message}")
    assert not list(tmp_path.iterdir())


def calibration_of(count, share=1.0):
    p = tuple(np.linspace(0.1, 0.9, count).tolist())
    weights = (share,) * count
    ranks = Ranks(p, p, p, weights)
    laws = NullLaw(1.5), NullLaw(1.5, 5.0)
    return Calibration(*laws, ranks, p, p, weights, count, count, decide_by="conformal")


@pytest.fixture
def calibrated(model, tmp_path):
    calibrated = tmp_path / "model"
    save_detector(calibrated, parse_detector(NAME).for_images((SIDE, SIDE, 1)))
    save_profile(calibrated, profile_of())
    save_calibration(calibrated, calibration_of(10), {})
    return calibrated


def test_models_of_tiles_need_the_number_of_views(tmp_path):
    save_profile(tmp_path, profile_of(view="tile"))
    with pytest.raises(InputError, match="views: got none, expected the number of tiles"):
        plan_inspection(tmp_path, tmp_path / "out")


def test_normal_objects_of_a_conformal_decision():
    assert objects_needed(None, 0.05, 1) == 19 and objects_needed(None, 0.05, 5) == 99
    assert objects_needed(calibration_of(30, 0.5), 0.05, 1) == 38
    assert 1 / (1 + 0.5 * 38) <= 0.05 < 1 / (1 + 0.5 * 37)


def test_a_conformal_p_value_out_of_reach(calibrated, tmp_path):
    with pytest.raises(InputError, match=r"decide_by: .*below 0.0909.*needs 19 .*there are 10\."):
        plan(calibrated, tmp_path)


@pytest.mark.slow
def test_the_p_value_that_decides(calibrated, tmp_path):
    inflated = plan(calibrated, tmp_path / "b", replace(QUICK, decide_by="inflated"))
    raw = plan(calibrated, tmp_path / "c", replace(QUICK, decide_by="selective"))
    assert raw.rows[0].smallest_conformal == pytest.approx(1 / 11)
    assert inflated.rows[0].difference > raw.rows[0].difference


@pytest.mark.study
@pytest.mark.parametrize("references", [1, 3])
def test_the_planned_difference_has_the_power(model, tmp_path, references):
    """Of images with other noise, other places and a full search, 0.8 are found."""
    options = PlanOptions(region_sizes=(3,), references=(references,), images=300)
    [row] = plan(model, tmp_path, options).rows
    localizer, count, rng = open_model(model, profile_of(), NAME), 400, np.random.default_rng(99)
    images = rng.standard_normal((count, SIDE, SIDE, 1))
    shown = rng.standard_normal((count, references, SIDE, SIDE, 1))
    squares = np.zeros((count, SIDE, SIDE), bool)
    for square in squares:
        top, left = rng.integers(0, SIDE - 3 + 1, 2)
        square[top : top + 3, left : left + 3] = True
    found = np.zeros(count)
    for difference in (row.low, row.difference, row.high):
        results = dal_test_batch(
            localizer,
            images + difference * squares[..., None],
            shown,
            iid(1.0),
            region="peak",
            randomization=0.5,
            seed=5,
        )
        found = np.array(
            [
                result.p_high <= 0.05 and bool((result.region & square).any())
                for result, square in zip(results, squares, strict=True)
            ]
        )
        rate, error = found.mean(), math.sqrt(0.8 * 0.2 * (1 / count + 1 / options.images))
        if difference == row.low:
            assert rate <= 0.8 + 2 * math.sqrt(0.16 / count)
        elif difference == row.high:
            assert rate >= 0.8 - 2 * math.sqrt(0.16 / count)
        else:
            assert abs(rate - 0.8) <= 2 * error
