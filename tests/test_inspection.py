"""From a folder of photographs to decisions: train --data, calibrate, test FOLDER."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dal_jax import CheckpointError, InputError, TestOptions
from dal_jax.cli import main
from dal_jax.inference import NullLaw, Ranks
from dal_jax.inspection import (
    METHODS,
    CalibrateOptions,
    Calibration,
    InspectOptions,
    LearnOptions,
    calibrate_folder,
    inspect_folder,
    load_calibration,
    load_profile,
    open_model,
    to_test,
    view_results,
)
from dal_jax.inspection._calibration import (
    Rate,
    cross_fitted_p,
    fit_calibration,
    rates,
    save_calibration,
)
from dal_jax.inspection._inspect import _decider
from dal_jax.inspection._learn import Normal, as_looked_at
from dal_jax.inspection._profile import check_options
from dal_jax.inspection._verdict import decider, unchecked, verdict
from dal_jax.noise import fit_report, iid, stationary, stretch_correlation

SIDE = 20
ODD = "test/spot/a 'b' <c> ü_0.png"


def photograph(rng, spot=False):
    grey = 120 + 12 * rng.standard_normal((SIDE, SIDE))
    if spot:
        grey[6:12, 7:13] += 70
    return np.clip(grey, 1, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve objects photographed twice, four normal and four spotted test images, bad ones."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for folder in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
        (root / folder).mkdir(parents=True)
    for thing in range(12):
        for shot in range(2):
            Image.fromarray(photograph(rng)).save(root / f"train/good/{thing:02d}_{shot}.png")
    for number in range(4):
        Image.fromarray(photograph(rng)).save(root / f"test/good/n{number}_0.png")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[6:12, 7:13] = 255
    for number in range(3):
        Image.fromarray(photograph(rng, True)).save(root / f"test/spot/s{number}_0.png")
        Image.fromarray(mask).save(root / f"ground_truth/spot/s{number}_0_mask.png")
    Image.fromarray(photograph(rng, True)).save(root / ODD)
    Image.fromarray(mask).save(root / "ground_truth/spot" / "a 'b' <c> ü_0_mask.png")
    (root / "test/good/broken_0.png").write_bytes(b"\x89PNG, but no more")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(root / "test/good/black_0.png")
    Image.fromarray(photograph(rng)[:6, :6]).save(root / "test/good/small_0.png")
    rgba = np.dstack([photograph(rng)] * 3 + [np.full((SIDE, SIDE), 255, np.uint8)])
    Image.fromarray(rgba).save(root / "test/good/alpha_0.png")
    return root


TRAIN = (
    *("--view", "crop", "--size", "16", "--channels", "4,8", "--steps", "3", "--batch", "8"),
    *("--groups", "regex:([^/]*)_", "--noise", "iid", "--flag-share", "0.05"),
)


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    assert main(["train", "--data", str(data), "--out", str(folder), *TRAIN]) == 0
    return folder


@pytest.fixture(scope="module")
def calibrated(data, model):
    words = ["calibrate", "--model", model, "--data", data, "--control", "12", "--lengths"]
    assert main([str(word) for word in words]) == 0
    return model


def test_every_object_has_one_role_and_no_tested_one_has_any(data, model):
    profile = load_profile(model)
    groups = [group for part in profile.roles.values() for group in part]
    assert len(groups) == len(set(groups)) == 12
    assert set(profile.roles) == {"train", "tune", "reference", "calibrate"}
    assert len(profile.references) == len(profile.roles["reference"])


def test_the_threshold_flags_the_wanted_share_of_tuning_pixels(data, model):
    profile, localizer = load_profile(model), None
    localizer = open_model(model, profile)
    tuned = set(profile.roles["tune"])
    source = profile.source.open(data)
    from dal_jax.images import read_sample, views

    samples = [s for s in source.samples if s.split == "train" and s.group in tuned]
    pixels = np.stack([views(profile.fitted, read_sample(source, s)[0]).pixels[0] for s in samples])
    assert profile.randomization == 0.5
    normal = Normal(pixels, (), (), np.ones(pixels.shape[:3], bool))
    looked = as_looked_at(normal, profile.noise, LearnOptions()).pixels
    share = np.mean([localizer.score(view) > profile.threshold for view in looked])
    # The quantile lies between two pixels: one pixel of the views, and float32 scores.
    assert share == pytest.approx(0.05, abs=2 / np.prod(np.shape(pixels)) + 1e-6)


def test_a_damaged_profile_is_refused(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    with open(tmp_path / "m" / "references.npy", "r+b") as file:
        file.seek(200)
        file.write(b"\0\0")
    with pytest.raises(InputError, match=r"references\.npy: is not the file of profile\.json"):
        load_profile(tmp_path / "m")


def test_calibration_tests_the_objects_that_were_kept_aside(data, calibrated):
    kept = load_calibration(calibrated)
    profile = load_profile(calibrated)
    assert kept.num_groups == len(profile.roles["calibrate"])
    assert kept.num_views == 2 * kept.num_groups
    facts = json.loads((calibrated / "calibration.json").read_text())["found"]
    pictures = sorted(p.name for p in (calibrated / "calibration" / "smallest").iterdir())
    assert len(pictures) == len(facts["smallest"]) and pictures[0] == "01.png"
    with Image.open(calibrated / "calibration" / "calibration.png") as whole:
        assert whole.width > whole.height > 200
    assert facts["verdict"] and {row["method"] for row in facts["rates"]} <= set(METHODS)
    assert [row["factor"] for row in facts["sensitivity"]] == [0.8, 0.9, 1.0, 1.1, 1.25, 0.7, 1.4]
    # How each view's p-value moves: the smaller the noise is taken to be, the smaller is p.
    with open(calibrated / "calibration" / "sensitivity.csv", encoding="utf-8") as file:
        moved = list(csv.DictReader(file))
    assert len(moved) == 7 * kept.num_views
    by_view: dict[str, list[float]] = {}
    for row in moved:
        if row["what"] == "sigma" and row["p_value"] != "nan":
            by_view.setdefault(row["name"], []).append(float(row["p_value"]))
    assert by_view and all(len(p) == 5 for p in by_view.values())
    assert facts["sensitivity"][2]["changed"] == 0


@pytest.mark.slow
def test_normal_images_of_later_days_join_the_calibration(data, calibrated, tmp_path, capsys):
    model, day = tmp_path / "m", tmp_path / "monday"
    shutil.copytree(calibrated, model)
    day.mkdir()
    rng = np.random.default_rng(7)
    for number in range(5):
        Image.fromarray(photograph(rng)).save(day / f"{number}_0.png")
    shutil.copy(next((data / "train/good").iterdir()), day / "old_0.png")  # has its role already
    before, tested = load_calibration(model), set()

    def follow(what, done, total):
        tested.add((what, total))

    add = {"options": CalibrateOptions(control=0), "progress": follow}
    found = calibrate_folder(data, model, add=[day], **add)
    after = load_calibration(model)
    assert after == found.calibration
    assert after.num_groups == before.num_groups + 5 and after.num_views == before.num_views + 5
    assert len(after.object_scores) == after.num_groups and len(after.added) == 5
    assert after.selective.least < before.selective.least
    assert [name for name in {r["name"] for r in found.records} if name.startswith("monday/")]
    assert ("views", before.num_views + 6) in tested
    assert "old_0.png: left out: image 'monday/old_0.png': a picture that training" in (
        capsys.readouterr().err
    )
    # Only new images were tested, and what was added cannot be tested.
    records = [r for r in found.records if not r["name"].startswith("monday/")]
    assert len(records) == before.num_views
    views = {one.name: one for one in inspect_folder(day, model, None).views}
    assert all(
        "a picture that training or calibration has seen" in v.message for v in views.values()
    )
    # It says all that the calibration consists of: without the folder it is the former one.
    calibrate_folder(data, model, **add)
    again = load_calibration(model)
    assert again.selective == before.selective and not again.added
    for folders, told in (
        ([day, tmp_path / "x" / "monday"], "add: got two folders 'monday'"),
        ([data], "with defects, such as"),
    ):
        with pytest.raises(InputError, match=told):
            calibrate_folder(data, model, add=folders, **add)


@pytest.mark.slow
def test_copies_of_added_images_are_no_new_objects(data, calibrated, tmp_path, capsys):
    model, rng = tmp_path / "m", np.random.default_rng(8)
    shutil.copytree(calibrated, model)
    before, days = load_calibration(model), [tmp_path / f"day{k}" for k in (1, 2)]
    days[0].mkdir()
    for number in range(4):
        Image.fromarray(photograph(rng)).save(days[0] / f"{number}_0.png")
    (days[0] / "bad_0.png").write_bytes(b"bad")
    shutil.copytree(days[0], days[1])
    options = CalibrateOptions(control=0)
    found = calibrate_folder(data, model, options, add=days)
    assert load_calibration(model).num_groups == before.num_groups + 4
    assert len({record["name"] for record in found.records}) == before.num_views + 4
    told = capsys.readouterr().err
    assert "4 of 10 added images are copies of others: left out\n" in told
    assert "day1/bad_0.png: left out" in told and "day2/bad_0.png: left out" in told


def test_an_added_folder_has_a_name_of_its_own(data, calibrated, tmp_path):
    (tmp_path / "train").mkdir()
    Image.fromarray(photograph(np.random.default_rng(9))).save(tmp_path / "train" / "a_0.png")
    with pytest.raises(InputError, match=r"add: got '.*train', whose name a folder of '.*' has"):
        calibrate_folder(data, calibrated, add=[tmp_path / "train"], out=tmp_path / "out")


@pytest.fixture(scope="module")
def tested(data, calibrated, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "o"
    words = ["test", data, "--model", calibrated, "--out", out]
    assert main([str(word) for word in words]) == 0
    return out


def table(out):
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_components_have_rows_pictures_and_places_on_the_page(data, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "out"
    steps = (
        ["train", "--data", data, "--out", model, *TRAIN, "--region", "components"],
        ["calibrate", "--model", model, "--data", data, "--control", "0"],
        ["test", data, "--model", model, "--out", out],
        ["report", out, "--model", model],
    )
    for words in steps:
        assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [row for row in rows if row["component"] != "0"]
    several = {row["name"] for row in parts if int(row["components"]) > 1}
    assert several and said.count(f"{len(parts)} regions of 12 views of 12 images: ") == 2
    assert len(rows) > len(parts) and said.count("; views without regions: ") == 2
    for name in several:
        own = [row for row in parts if row["name"] == name]
        assert [int(row["component"]) for row in own] == list(range(1, len(own) + 1))
        boxes = {tuple(row[side] for side in ("top", "left", "bottom", "right")) for row in own}
        assert len(boxes) == len(own)
        p = [float(row["p_value"]) for row in own]
        assert min(float(row["p_adjusted"]) for row in own) >= min(p)
        for row in own:
            assert float(row["ci_low"]) <= float(row["estimate"]) <= float(row["ci_high"])
            assert float(row["q_value"]) >= float(row["p_value"])
            size = (int(row["bottom"]) - int(row["top"])) * (int(row["right"]) - int(row["left"]))
            assert 0 < int(row["num_tested"]) <= size
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "connected components" in page and "Benjamini and Yekutieli" in page
    assert "1: p " in page and "2: p " in page


def test_one_bad_image_does_not_stop_the_others(tested):
    rows = table(tested)
    assert len(rows) == 12 and ODD in rows
    for name, told in (("broken_0", "damaged"), ("black_0", "contrast"), ("small_0", "6")):
        row = rows[f"test/good/{name}.png"]
        assert row["decision"] == "no valid result" and told in row["message"], row["message"]
        assert row["p_value"] == "nan"
    assert rows["test/good/alpha_0.png"]["status"] in ("OK", "NO_REGION")
    assert rows[ODD]["status"] in ("OK", "NO_REGION")
    assert (tested / "overlays" / ODD).is_file()
    assert not list((tested / "overlays").rglob("*broken_0*"))


def test_recalibrated_p_values_stand_beside_the_raw_one(tested, calibrated):
    kept = load_calibration(calibrated)
    records = {}
    for line in (tested / "run" / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        records[record["name"]] = record
    for name, row in table(tested).items():
        if row["status"] != "OK":
            continue
        record = records[name]
        assert float(row["p_value"]) == record["p_value"]
        own = kept.selective  # two views of each object
        conformal = (1 + 0.5 * sum(p <= record["p_high"] for p in own.low)) / (
            1 + 0.5 * len(own.low)
        )
        assert set(own.weights) == {0.5}
        assert float(row["p_conformal"]) == pytest.approx(conformal)
        p = kept.p_values(record)["inflated"]
        assert (float(row["p_inflated_low"]), float(row["p_inflated"])) == (p.low, p.high)
        assert p.low >= record["p_low"] - 1e-12 and p.high >= record["p_high"] - 1e-12


def test_a_folder_is_searched_for_its_decisions(tested, calibrated):
    options = json.loads((tested / "run" / "run.json").read_text())["description"]["options"]
    kept = load_calibration(calibrated)
    assert f"level=0.05, recalibrations=({kept.inflated}, {kept.heavy_tails}, Ranks())" in options


def test_metrics_know_the_masks(tested):
    found = json.loads((tested / "metrics.json").read_text())
    assert found["image"]["num_anomalous"] == 4 and found["image"]["num_normal"] == 5
    assert found["pixel"]["num_regions"] == 4


def test_the_same_command_repeats_what_was_refused_alone(
    data, calibrated, tested, capsys, monkeypatch
):
    before = (tested / "results.csv").read_bytes()
    from dal_jax._dal_test import _stored_runs

    real, again = _stored_runs.stream_tests, []

    def stream(localizer, cases, *args, **options):
        again.extend(cases)
        return real(localizer, iter(again), *args, **options)

    monkeypatch.setattr(_stored_runs, "stream_tests", stream)
    words = ["test", data, "--model", calibrated, "--out", tested]
    assert main([str(word) for word in words]) == 0
    assert (tested / "results.csv").read_bytes() == before
    refused = [row for row in table(tested).values() if row["status"] == "INVALID_INPUT"]
    assert len(again) == len(refused) > 0


def test_the_tables_hold_what_the_pipeline_returns(data, calibrated, tested):
    found, rows = inspect_folder(data, calibrated, tested), table(tested)
    assert [one.name for one in found.views] == list(rows)
    for one in found.views:
        cells = {column: "" if v is None else str(v) for column, v in one.as_row().items()}
        assert cells == rows[one.name]
    with open(tested / "images.csv", encoding="utf-8", newline="") as file:
        images = list(csv.DictReader(file))
    assert [row["decision"] for row in images] == [one.decision for one in found.images]
    assert found.metrics["image"]["num_normal"] == 5 and found.tally.images == len(images)


@pytest.mark.slow
def test_a_folder_is_printed_without_a_directory_and_has_maps(data, calibrated, tested, capsys):
    capsys.readouterr()
    assert main(["test", str(data), "--model", str(calibrated)]) == 0
    printed = {row["name"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    rows = table(tested)
    assert list(printed) == list(rows) and list(printed[ODD]) == list(rows[ODD])
    assert [row["decision"] for row in printed.values()] == [r["decision"] for r in rows.values()]
    out = tested.with_name("maps")
    words = ["test", data, "--model", calibrated, "--out", out, "--maps", "--no-overlays"]
    assert main([str(word) for word in words]) == 0
    assert not (out / "overlays").exists()
    for name, row in rows.items():
        folder = out / "maps" / name
        assert folder.exists() == (row["status"] != "INVALID_INPUT")
        if folder.exists():
            assert np.load(folder / "region.npy").sum() == int(row["num_tested"])
            assert (folder / "figure.png").is_file()


def record(p, z=1.0, score=1.0):
    return {
        "status": "OK",
        "p_value": p,
        "p_low": p,
        "p_high": p,
        "naive_p": p / 2,
        "statistic": 2 * z,
        "sd": 2.0,
        "truncation": [[0.0, 5.0]],
        "searched": [[-24.0, 24.0]],
        "max_score": score,
    }


def test_rates_count_what_was_tested_and_know_the_objects():
    p = np.array([0.001, 0.2, np.nan, 0.04])
    found = {(r.method, r.alpha): r for r in rates({"selective": p}, ["a", "b", "b", "c"])}
    one = found["selective", 0.05]
    assert (one.rejected, one.tested, one.rate) == (2, 3, 2 / 3)


def test_cross_fitting_leaves_the_own_object_out():
    rng = np.random.default_rng(1)
    records = [record(p, rng.uniform(0.1, 2), rng.uniform()) for p in rng.uniform(size=20)]
    groups = [f"g{k // 2}" for k in range(20)]
    found = cross_fitted_p(records, groups, seed=0)["conformal"]
    # Its own p would count among all 20; among those of the other folds none is as small.
    smallest = int(np.argmin([r["p_value"] for r in records]))
    assert found[smallest] == pytest.approx(1 / (1 + 8))  # five folds of two objects


@pytest.mark.parametrize(
    "low, high, objects, views, expected",
    [
        (0.02, 0.09, 40, 1, "selective"),  # no excess shows
        (0.0, 0.03, 40, 1, "selective"),  # fewer than the level
        (0.06, 0.2, 40, 1, "conformal"),  # too many
        (0.06, 0.2, 5, 1, "conformal"),  # too many, even where no rank is small enough
        (0.06, 0.2, 40, 3, "conformal"),
        (0.01, 0.2, 40, 1, "conformal"),  # too few views to tell
        (0.01, 0.2, 5, 1, "selective"),  # and too few objects for ranks
        (0.01, 0.2, 40, 2, "conformal"),  # 1 / 41 is below 0.05 / 2
        (0.01, 0.2, 40, 3, "selective"),  # but above 0.05 / 3
    ],
)
def test_calibration_names_the_p_value_that_decides(low, high, objects, views, expected):
    groups = [f"g{k}" for k in range(objects)]
    held = fit_calibration([record(0.5, 1.0)] * objects, groups)
    rate = Rate("selective", 0.05, 1, 10, 0.1, 0.1, low, high)
    assert decider([rate], held, views) == expected
    named = replace(held, decide_by=expected, unchecked=unchecked([rate]))
    assert named.unchecked == (low < 0.05 < 0.1 < high)
    fit = fit_report(iid(1.0), np.eye(16).reshape(16, 4, 4, 1))
    conformal = rate._replace(method="conformal")
    told = " ".join(verdict([rate, conformal], [], fit, "iid", named, views))
    assert ("Decisions go by the conformal p-value" in told) == (expected == "conformal")
    raw_decides = named.unchecked and expected == "selective"
    assert ("Decisions go by the raw p-value, unchecked" in told) == raw_decides
    assert ("No conformal p-value can be below" in told) == (views / (1 + objects) > 0.05)
    assert ("the level of each view of an image of 3 views" in told) == (views == 3)


def test_a_raw_p_value_that_decides_unchecked_is_told(capsys):
    held = fit_calibration([record(0.5, 1.0)] * 5, [f"g{k}" for k in range(5)])
    few = replace(held, unchecked=True)
    for asked in (None, "selective"):
        assert _decider(few, 0.05, 1, asked) == "selective"
        told = "The raw p-value decides unchecked: 5 normal objects were too few to tell"
        assert capsys.readouterr().err.startswith(told)
    assert _decider(few, 0.05, 1, "inflated") == "inflated"
    assert _decider(held, 0.05, 1, None) == "selective"
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "alpha, views, told",
    [
        (0.05, 1, ""),
        (0.05, 2, ""),  # 2 / 41
        (0.05, 3, "0.0244, which is above 0.05 / 3 = 0.017, the level of each view of an image"),
        (0.01, 1, "0.0244, which is above the level 0.01: by it nothing can be significant. Hold"),
    ],
)
def test_a_conformal_p_value_that_cannot_reject_is_told_when_it_decides(alpha, views, told, capsys):
    held = fit_calibration([record(0.5, 1.0)] * 40, [f"g{k}" for k in range(40)])
    assert _decider(replace(held, decide_by="conformal"), alpha, views, None) == "conformal"
    err = capsys.readouterr().err
    assert told in err and bool(err) == bool(told)
    assert _decider(held, alpha, views, "conformal") == "conformal"
    assert capsys.readouterr().err == err
    assert _decider(replace(held, decide_by="conformal"), alpha, views, "inflated") == "inflated"
    assert not capsys.readouterr().err


def test_the_p_value_that_decides_is_kept_with_the_calibration(tmp_path):
    held = fit_calibration([record(0.1, 1.0), record(0.9, 0.4)], ["a", "b"])
    assert held.decide_by == "selective"
    assert not held.unchecked
    save_calibration(tmp_path, replace(held, decide_by="conformal", unchecked=True), {})
    found = load_calibration(tmp_path)
    assert found is not None and found.decide_by == "conformal" and found.unchecked
    kept = tmp_path / "calibration.json"
    kept.write_text(kept.read_text().replace('"conformal",', '"guess",'))
    with pytest.raises(CheckpointError, match="damaged"):
        load_calibration(tmp_path)


def test_decisions_follow_the_chosen_p_value_and_need_its_calibration():
    calibration = fit_calibration([record(p, z) for p, z in ((0.1, 1.0), (0.9, 0.4))], ["a", "b"])
    with pytest.raises(InputError, match="decide_by: got 'conformal', expected 'selective'"):
        view_results([], None, InspectOptions(decide_by="conformal"))
    with pytest.raises(InputError, match="decide_by: got 'naive'"):
        InspectOptions(decide_by="naive")
    with pytest.raises(InputError, match="discoveries: got 'BH', expected one of by, bh"):
        InspectOptions(discoveries="BH")
    assert isinstance(calibration, Calibration)
    assert calibration.p_values(record(0.01))["conformal"] == (1 / 3,) * 3
    none = calibration.p_values({**record(np.nan), "status": "NO_REGION"})
    assert np.isnan(none["inflated"]).all()


def test_what_did_not_converge_is_compared_by_its_bounds():
    normal = [record(p, z) for p, z in ((0.1, 1.0), (0.9, 0.4))]
    normal.append({**record(0.5), "p_low": 0.05, "p_high": 0.95, "status": "NOT_CONVERGED"})
    calibration = fit_calibration(normal, ["a", "b", "c"])
    short = {"p_low": 0.0, "p_high": 0.2, "status": "NOT_CONVERGED", "searched": [[0.0, 2.5]]}
    found = calibration.p_values({**record(0.15), **short})
    assert found["selective"] == (0.15, 0.0, 0.2)
    # At the least it is below all three, at the most above the first and the last.
    assert found["conformal"] == (2 / 4, 1 / 4, 3 / 4)
    assert found["inflated"].low < found["inflated"].p < found["inflated"].high
    assert found["conformal_score"] == (1.0, 1.0, 1.0)


def test_calibration_says_what_it_lacks(data, model, tmp_path, capsys):
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "m"), *TRAIN]) == 0
    kept = load_profile(tmp_path / "m").roles["calibrate"]
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data" / "train" / "good").iterdir():
        if path.name.partition("_")[0] in kept[1:]:
            path.write_bytes(b"broken")
    capsys.readouterr()
    words = ["calibrate", "--model", str(tmp_path / "m"), "--data", str(tmp_path / "data")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("left out: image") == 2 * (len(kept) - 1)
    assert "1 of the objects that training kept aside can be used, expected 2 or more" in err
    with pytest.raises(InputError, match="none of 1 normal views has a tested region"):
        fit_calibration([{**record(np.nan), "status": "NO_REGION"}], ["a"])


def test_options_of_another_region_are_refused(model):
    profile, options = load_profile(model), TestOptions(region="all")
    with pytest.raises(InputError, match="got region 'all', expected 'peak', the profile's"):
        check_options(options, profile)
    check_options(profile.adapt(options), profile)


def test_a_model_divides_views_anew_along_the_line_and_needs_the_adaptive_engine(
    data, model, tmp_path, capsys
):
    profile = load_profile(model)
    localizer = open_model(model, profile)
    view = np.asarray(profile.references[0])
    # 1e-9: the same numbers but for the rounding of one division in float64.
    np.testing.assert_allclose(localizer.score(2 * view), localizer.score(view), atol=1e-9)
    preparation = replace(profile.fitted.preparation, scale="train")
    fixed = profile._replace(fitted=replace(profile.fitted, preparation=preparation))
    plain = open_model(model, fixed)
    assert not np.allclose(plain.score(2 * view), plain.score(view))
    for exact in ({"engine": "sweep"}, {"first_window": True}):
        check_options(TestOptions(region="peak", **exact), fixed)
        with pytest.raises(InputError, match="divides each view by its own deviation"):
            check_options(TestOptions(region="peak", **exact), profile)
    words = ["test", data, "--model", model, "--out", tmp_path / "run", "--engine", "sweep"]
    assert main([str(word) for word in words]) == 2
    assert "divides each view by its own deviation" in capsys.readouterr().err


def test_what_the_model_has_seen_is_left_out_and_told(data, model, capsys):
    profile = load_profile(model)
    source = profile.source.open(data)
    assert len(to_test(source, profile)) == 12 and not capsys.readouterr().err
    seen = [s._replace(split="test") for s in source.samples if s.split == "train"]
    mixed = source._replace(samples=(*source.samples, *seen))
    assert len(to_test(mixed, profile)) == 12
    assert "24 of 36 test images are of groups that training has seen: left out" in (
        capsys.readouterr().err
    )
    with pytest.raises(InputError, match="no image to be tested, 24 of 24 test images are of"):
        to_test(source._replace(samples=tuple(seen)), profile)


def test_inflation_is_the_same_test_with_a_larger_variance():
    # With Sigma -> c^2 Sigma the line stays: the same set in units of the statistic.
    none = Ranks((), (), (), ())
    kept = Calibration(NullLaw(1.5), NullLaw(), none, (), (), (), 1, 1)
    wide = {**record(0.0), "sd": 3.0}
    same = Calibration(NullLaw(), NullLaw(), none, (), (), (), 1, 1)
    assert kept.p_values(record(0.0))["inflated"] == pytest.approx(
        same.p_values(wide)["inflated"], rel=1e-12
    )


def test_a_calibration_of_an_earlier_version_is_refused(tmp_path):
    # Its inflation may be below 1, and it does not say of which object a view is.
    old = {"format": 1, "inflated": {"factor": 0.87, "degrees": {"$float": "inf"}}}
    (tmp_path / "calibration.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"of an earlier version.* run dal-jax calibrate again"):
        load_calibration(tmp_path)


def test_stretching_noise_moves_its_lags_and_keeps_its_variance():
    table = np.zeros((15, 15))
    for lag, value in ((0, 1.0), (1, 0.5), (-1, 0.5)):
        table[lag, 0] += value if lag else 0.0
        table[0, lag] += value if lag else 0.0
    table[0, 0] = 2.2
    noise = stationary(table)
    wide = stretch_correlation(noise, (8, 8, 1), 2.0)
    impulse = np.zeros((8, 8, 1))
    impulse[4, 4] = 1.0
    before, after = noise.apply(impulse)[..., 0], wide.apply(impulse)[..., 0]
    assert after[4, 4] == pytest.approx(before[4, 4])
    assert after[6, 4] > 0.5 * before[5, 4] and before[6, 4] == pytest.approx(0.0, abs=1e-12)
    alone = stretch_correlation(iid(1.5), (6, 8, 1), 1.0)
    pixels = np.random.default_rng(2).standard_normal((6, 8, 1))
    assert alone.apply(pixels) == pytest.approx(2.25 * pixels, abs=1e-12)


@pytest.mark.parametrize(
    "words, named",
    [
        (["train", "--out", "m"], "--images, --data"),
        (["train", "--data", "no_such", "--out", "m"], "no_such"),
        (["calibrate", "--model", "no_such", "--data", "d"], "profile.json"),
        (["test", "folder", "--model", "no_such", "--out", "o"], "profile.json"),
        (["test", "folder", "--model", "no_such", "--maps"], "--out"),
        (["test", "folder", "--out", "o"], "--model"),
    ],
    ids=["neither", "no data", "no model", "no profile", "no out", "no model of a folder"],
)
def test_refusals(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert named in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words, named",
    [
        (["--noise", "iid:2"], "--noise"),
        (["--threshold", "0.5"], "--threshold"),
        (["--draws", "d.npy"], "--draws"),
        (["--region", "all"], "--region"),
        (["--alternative", "greater"], "--alternative"),
        (["--engine", "sweep", "--permutations", "3"], "permutations: got 3"),
    ],
    ids=["noise", "threshold", "draws", "region", "alternative", "engine"],
)
def test_no_option_of_a_folder_is_ignored(words, named, capsys):
    assert main(["test", "folder", "--model", "m", "--out", "o", *words]) == 2
    err = capsys.readouterr().err
    assert named in err and err.count("\n") == 1


@pytest.mark.slow
def test_glad_learns_from_textures_and_tests_a_folder(data, tmp_path, capsys):
    textures, rng = tmp_path / "textures", np.random.default_rng(5)
    (textures / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        Image.fromarray(photograph(rng)).save(textures / name)
    (textures / "broken.png").write_bytes(b"no picture")
    tiny = "glad:pl,unet.channels=[2,4],unet.time_dim=4,spacing=250"
    words = [w for w in TRAIN if w not in ("--channels", "4,8")]
    words += ["--localizer", tiny, "--textures", textures, "--foreground", "nonzero"]
    words += ["--flag-share", "0.4"]  # this hardly trained network scores half of the images low
    model = tmp_path / "model"
    command = ["train", "--data", data, "--out", model, *words]
    assert main([str(word) for word in command]) == 0
    assert "broken.png: left out" in capsys.readouterr().err
    localizer = open_model(model, load_profile(model))
    assert localizer.score_fn.config.kind == "glad"
    assert localizer.score_fn.config.tau > 0 and (localizer.params["scales"]["features"] > 0).all()
    command = ["calibrate", "--model", model, "--data", data, "--control", "0"]
    assert main([str(word) for word in command]) == 0
    command = ["test", data, "--model", model, "--out", tmp_path / "out", "--no-overlays"]
    assert main([str(word) for word in command]) == 0
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        states = {row["status"] for row in csv.DictReader(file)}
    assert "OK" in states and states <= {"OK", "NO_REGION", "INVALID_INPUT"}
    refused = ["train", "--data", data, "--out", tmp_path / "m", *TRAIN, "--textures", textures]
    assert main([str(word) for word in refused]) == 2
    assert "expected none but for glad" in capsys.readouterr().err


def test_copies_and_other_units_are_told_in_the_row_and_on_the_page(data, model, tmp_path, capsys):
    """A picture that training has seen and other units are refused; a copy has a warning."""
    (tmp_path / "new").mkdir()
    rng = np.random.default_rng(8)
    fresh = photograph(rng)
    for name in ("a_0.png", "b_0.png"):
        Image.fromarray(fresh).save(tmp_path / "new" / name)
    np.save(tmp_path / "new" / "c_0.npy", photograph(rng).astype(float))  # 0 to 255, not 0 to 1
    np.save(tmp_path / "new" / "d_0.npy", photograph(rng).astype(np.uint16) * 16)  # 12 bits in 16
    shutil.copy(data / "train/good/03_1.png", tmp_path / "new" / "e_0.png")
    large = photograph(rng, True)
    large[: len(large) // 3] = 255  # a third of it is outside of what training saw
    Image.fromarray(large).save(tmp_path / "new" / "f_0.png")
    out = tmp_path / "out"
    words = ["test", tmp_path / "new", "--model", model, "--out", out, "--no-overlays"]
    assert main([str(word) for word in words]) == 0
    rows = table(out)
    assert rows["a_0.png"]["warning"] == "" and rows["b_0.png"]["warning"] == (
        "the same picture as a_0.png"
    )
    for name, told in (
        ("c_0.npy", "other units than the training images"),
        ("d_0.npy", "other units than the training images"),
        ("e_0.png", "a picture that training or calibration has seen"),
    ):
        assert rows[name]["decision"] == "no valid result" and told in rows[name]["message"]
    assert "of its pixels are outside of" in rows["f_0.png"]["warning"]
    with open(out / "images.csv", encoding="utf-8", newline="") as file:
        assert [row["warning"] for row in csv.DictReader(file)][1] == "the same picture as a_0.png"
    capsys.readouterr()
    pytest.importorskip("jinja2")
    words = ["report", out, "--model", model, "--out", tmp_path / "page.html"]
    assert main([str(word) for word in words]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "2 images have a warning (see the table), as b_0.png: the same picture as a_0.png." in page
    )


def test_a_file_that_has_changed_since_its_test_has_a_warning(model, tmp_path):
    """One of the same size keeps its record; one that could not be read before is tested."""
    rng = np.random.default_rng(8)
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("a_0.npy", "b_0.npy"):
        np.save(folder / name, photograph(rng) / 255)
    whole = (folder / "b_0.npy").read_bytes()
    (folder / "b_0.npy").write_bytes(b"?" * len(whole))
    words = ["test", folder, "--model", model, "--out", tmp_path / "out", "--no-overlays"]

    def tested() -> dict[str, dict[str, str]]:
        assert main([str(word) for word in words]) == 0
        return table(tmp_path / "out")

    first = tested()
    assert first["b_0.npy"]["status"] == "INVALID_INPUT" and first["a_0.npy"]["warning"] == ""
    (folder / "b_0.npy").write_bytes(whole)
    np.save(folder / "a_0.npy", photograph(rng) / 255)
    second = tested()
    assert second["b_0.npy"]["status"] != "INVALID_INPUT" and second["b_0.npy"]["warning"] == ""
    told = "the file has changed since its test: test into another directory"
    assert second["a_0.npy"]["warning"] == told
    assert second["a_0.npy"]["p_value"] == first["a_0.npy"]["p_value"]
    (folder / "b_0.npy").write_bytes(b"?" * len(whole))
    assert tested()["b_0.npy"]["warning"] == "the file cannot be read any more"


def test_training_on_copies_is_refused_or_warned_of(tmp_path, capsys):
    rng = np.random.default_rng(9)
    for pictures in (2, 12):
        folder = tmp_path / str(pictures)
        (folder / "normal").mkdir(parents=True)
        for k in range(pictures):
            Image.fromarray(photograph(rng)).save(folder / "normal" / f"{k:02d}.png")
        for k in range(pictures, 20):
            shutil.copy(folder / "normal" / f"{k % pictures:02d}.png", folder / f"normal/{k}.png")
    words = ["train", "--data", str(tmp_path / "2"), "--out", str(tmp_path / "m"), *TRAIN[:-6]]
    assert main(words) == 2
    assert "(18 of 20 images are copies of others), expected 4 or more" in capsys.readouterr().err
    words = ["train", "--data", str(tmp_path / "12"), "--out", str(tmp_path / "m"), *TRAIN[:-6]]
    assert main([*words, "--noise", "iid"]) == 0
    told = "8 of 20 normal training images are copies of others"
    assert f"{told}: left out" in capsys.readouterr().err
    profile = load_profile(tmp_path / "m")
    assert profile.warnings == (told,) and sum(map(len, profile.pictures.values())) == 12


def test_references_can_be_dealt_out(data, tmp_path, capsys):
    words = ["train", "--data", str(data), "--out", str(tmp_path / "m"), *TRAIN]
    assert main([*words, "--deal-references"]) == 2
    assert "references: there are 20 each for 0 objects" in capsys.readouterr().err
    assert main([*words, "--deal-references", "--references", "1"]) == 0
    profile = load_profile(tmp_path / "m")
    assert profile.each == 1 and len(profile.references) == len(profile.roles["reference"])
    (tmp_path / "new").mkdir()
    rng = np.random.default_rng(8)
    spare = len(profile.references) - len(profile.roles["calibrate"])
    for k in range(spare):
        Image.fromarray(photograph(rng, True)).save(tmp_path / "new" / f"{k}_0.png")
    words = ["test", str(tmp_path / "new"), "--model", str(tmp_path / "m"), "--no-overlays"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert len(table(tmp_path / "out")) == spare
    Image.fromarray(photograph(rng, True)).save(tmp_path / "new" / "more_0.png")
    assert main([*words, "--out", str(tmp_path / "more")]) == 2
    assert f"{spare} objects can have 1 of their own, got {spare + 1}" in capsys.readouterr().err


def test_a_profile_of_an_older_model_is_refused(model, tmp_path):
    """Its references were of objects that the network had seen."""
    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m" / "profile.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "format": 2}))
    with pytest.raises(InputError, match="format 2, expected 3: train again"):
        load_profile(tmp_path / "m")
