"""Images of several views, masks of what may be flagged, and volumes in and out."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dal_jax._files import csv_text
from dal_jax.cli import main
from dal_jax.images import (
    Preparation,
    Sample,
    axial_slice,
    enlarge,
    fit,
    open_data,
    read_sample,
    read_volume,
    views,
    write_volume,
)
from dal_jax.inference import SelectiveP, holm
from dal_jax.inspection import (
    AssembledImage,
    InspectOptions,
    LearnOptions,
    Measures,
    Reader,
    ViewRef,
    ViewResult,
    VolumeMaps,
    _views,
    image_result,
    load_profile,
    tally,
    view_results,
)
from dal_jax.inspection._calibrate import smallest
from dal_jax.inspection._calibration import fit_calibration, view_p
from dal_jax.inspection._learn import Images, Normal, fit_noise, rescale_to_foreground
from dal_jax.inspection._results import picture_name
from dal_jax.inspection._verdict import by_distance, out_of_reach
from dal_jax.inspection._views import _together, list_views, queue_views

NAN = float("nan")


def record(p, low=None, high=None, status="OK"):
    status = "TIE" if np.isnan(p) and status == "OK" else status
    tested = status == "OK"
    return {
        "name": "x",
        "status": status,
        "p_value": p,
        "p_low": p if low is None else low,
        "p_high": p if high is None else high,
        "naive_p": p,
        "statistic": 2.0 if tested else NAN,
        "sd": 1.0 if tested else NAN,
        **dict.fromkeys(("estimate", "ci_low", "ci_high"), 2.0 if tested else NAN),
        **dict.fromkeys(("bonferroni_log10_p", "over_conditioned_p", "permutation_p"), NAN),
        "num_ties": 0,
        "truncation": [[1.0, 3.0]] if tested else [],
        "searched": [[-10.0, 10.0]] if tested else [],
        "region": [[0, 3]] if tested else [],
        "max_score": 1.0,
        "message": "",
    }


def rows(*records, alpha=0.05):
    sample = Sample("a.png", None, "test", "normal", None, "a")
    tested = [(ViewRef(sample, k, len(records)), one) for k, one in enumerate(records)]
    return view_results(tested, None, InspectOptions(alpha))


def test_the_level_of_a_view_reaches_its_search(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(128.0).reshape(8, 16, 1) ** 3)
    data = open_data(str(tmp_path), "folder")
    preparation = Preparation(size=4, view="tile")
    image = read_sample(data, data.samples[0])[0]
    reader = Reader(data, fit(preparation, [image]))
    listed = list_views(reader, data.samples)
    references = {one.sample.group: np.zeros((1, 4, 4, 1)) for one in listed}
    items = queue_views(reader, listed, references, 0.05)
    assert len(items) > 1 and reader.num_views(data.samples[0]) == len(items)
    assert [item.load().level for item in items] == [0.05 / len(items)] * len(items)
    assert queue_views(reader, listed, references)[0].load().level is None


def test_the_views_of_an_image_share_its_level():
    found = rows(
        record(0.02), record(0.012), record(NAN, status="NO_REGION"), record(0.0126, 0.012, 0.014)
    )
    words = ["not significant", "significant", "no region", "undecided"]
    assert [one.decision for one in found] == words
    assert [one.p_adjusted for one in found[:2]] == [0.08, 0.048]
    image = image_result(found)
    assert image.decision == "significant" and image.p_adjusted == 0.048
    assert (image.views, image.views_with_region, image.views_significant) == (4, 3, 1)
    assert image_result(rows(record(0.5), record(NAN, status="NON_FINITE"))).decision == (
        "no valid result"
    )
    assert np.isnan(image_result(rows(record(NAN, status="NO_REGION"))).p_adjusted)
    # One view alone is not adjusted.
    assert rows(record(0.04))[0].decision == "significant"


def with_components(*p):
    """A view of which each component was tested."""
    parts = [record(value) for value in p]
    status = max(part["status"] for part in parts)  # "TIE" comes after "OK"
    whole = {"region": [[0, 3 * len(p)]], "components": parts, "status": status}
    adjusted = np.min([one.p for one in holm([SelectiveP(value, value, value) for value in p])])
    return {**record(adjusted), **whole, "statistic": NAN, "sd": NAN}


def test_components_have_rows_and_are_adjusted_for_their_number_and_that_of_the_views():
    found = rows(with_components(0.008, 0.3, 0.011), record(0.04))
    assert [(one.view, one.component, one.components) for one in found] == [
        (0, 1, 3),
        (0, 2, 3),
        (0, 3, 3),
        (1, 0, 0),
    ]
    # Holm within the view, times two views.
    expected = [2 * 3 * 0.008, 2 * 0.3, 2 * 3 * 0.008, 2 * 0.04]
    assert [one.p_adjusted for one in found] == pytest.approx(expected)
    words = ["significant", "not significant", "significant", "not significant"]
    assert [one.decision for one in found] == words
    image = image_result(found)
    assert (image.views, image.views_with_region, image.views_significant) == (2, 2, 1)


def test_views_are_counted_as_views_and_regions_as_regions():
    counted = tally(rows(record(0.02), record(NAN, status="NO_REGION"), record(0.5)))
    assert counted[:3] == (1, 3, 2)
    assert counted.words == "3 views of 1 image: 2 not significant, 1 no region"
    parts = with_components(0.008, 0.3, 0.011)
    empty, failed = record(NAN, status="NO_REGION"), record(NAN, status="INVALID_INPUT")
    found = rows(parts, empty, failed)
    found += [one._replace(name="b.png") for one in rows(with_components(0.001))]
    counted = tally(found)
    assert counted[:3] == (2, 4, 4)
    assert counted.decisions == {
        "significant": 1,
        "no valid result": 1,
        "not significant": 3,
        "no region": 1,
    }
    assert counted.words == (
        "4 regions of 4 views of 2 images: 1 significant, 3 not significant; "
        "views without regions: 1 no valid result, 1 no region"
    )


def test_q_values_are_of_all_regions_of_a_run():
    p = np.array([0.008, 0.3, 0.011, 0.04])
    found = rows(with_components(*p[:3]), record(p[3]), record(NAN, status="NO_REGION"))
    harmonic = np.sum(1 / np.arange(1, 5))
    ranks = np.argsort(np.argsort(p)) + 1
    steps = p * harmonic * 4 / ranks
    expected = [min(1, min(s for s, q in zip(steps, p, strict=True) if q >= own)) for own in p]
    assert [one.q_value for one in found[:4]] == pytest.approx(expected)
    assert np.isnan(found[4].q_value)


def test_ranks_of_components_are_among_the_smallest_of_normal_views():
    normal = [with_components(0.2, 0.7), record(0.5), with_components(0.05, 0.06, 0.9)]
    held = fit_calibration(normal, ["a", "b", "c"])
    assert held.selective.p == (0.2, 0.5, 0.05)
    sample = Sample("a.png", None, "test", "normal", None, "a")
    tested = [(ViewRef(sample, 0, 1), with_components(0.1, 0.3))]
    found = view_results(tested, held, InspectOptions(decide_by="conformal"))
    assert [one.table_p("conformal") for one in found] == [2 / 4, 3 / 4]
    # A rank among the smallest ones is adjusted for the number of components already, but not for
    # that of the views: it can be small enough for alpha / V, whatever the number of components.
    assert [one.p_adjusted for one in found] == [2 / 4, 3 / 4]
    parts = with_components(0.01, 0.02, 0.03)
    tested = [(ViewRef(sample, k, 2), one) for k, one in enumerate((parts, record(0.9)))]
    for alpha, decision in ((0.5, "significant"), (0.49, "not significant")):
        found = view_results(tested, held, InspectOptions(alpha, "conformal"))
        assert [one.decision for one in found[:3]] == [decision] * 3
        assert bool(out_of_reach(held, alpha, 2)) == (decision != "significant")


def test_a_component_without_a_p_value_counts_as_one_in_the_calibration_as_in_the_table():
    tied = with_components(0.02, NAN, 0.3)
    found = rows(tied)
    assert [one.decision for one in found[:2]] == ["not significant", "no valid result"]
    assert [one.p_adjusted for one in found] == pytest.approx([0.06, NAN, 0.6], nan_ok=True)
    nothing = with_components(NAN, NAN)
    held = fit_calibration([record(0.5), tied, nothing], ["a", "b", "b"])
    assert held.selective.p == held.naive == (0.5, 0.02)
    assert held.selective.weights == (1.0, 0.5)
    assert [view_p(one).p for one in (tied, nothing)] == pytest.approx([0.06, NAN], nan_ok=True)
    assert smallest([record(0.5), tied, nothing]) == [1, 0]
    assert sum(part["views"] for part in by_distance([tied, nothing])) == 2


def test_ranks_hold_where_views_of_many_components_have_one_without_a_p_value():
    """Such views have smaller p: left out of the calibration, they would be called too often."""
    rng = np.random.default_rng(0)

    def drawn():
        return with_components(rng.random(), *([NAN, *rng.random(5)] if rng.random() < 0.5 else []))

    held = fit_calibration([drawn() for _ in range(99)], [f"g{k}" for k in range(99)])
    sample = Sample("a.png", None, "test", "normal", None, "a")
    called = []
    for _ in range(400):
        found = view_results(
            [(ViewRef(sample, 0, 1), drawn())], held, InspectOptions(0.2, "conformal")
        )
        called.append(any(one.decision == "significant" for one in found))
    # Standard errors of the tested and of the calibrating views.
    assert abs(np.mean(called) - 0.2) < 3 * np.sqrt(0.2 * 0.8 * (1 / 400 + 1 / 99))


def test_p_values_of_other_standard_deviations_are_those_of_a_wider_law():
    from scipy.stats import norm

    found = rows(record(0.1))[0].as_row()
    for factor in (0.8, 1.25):
        ends = norm.sf(np.array([1.0, 2.0, 3.0]) / factor)
        expected = (ends[1] - ends[2]) / (ends[0] - ends[2])
        assert found[f"p_sigma_{factor:g}"] == pytest.approx(expected, rel=1e-9)
    assert found["p_sigma_0.8"] < found["p_sigma_1.25"]


def test_pictures_have_the_names_of_their_images():
    """No two images share a picture, and no ending is doubled without need."""
    names = {"a.png", "a.jpg", "b", "b.png", "b.png.png", "d/c.png", "v.nii#3"}
    found = {name: picture_name(name, names) for name in names}
    assert len(set(found.values())) == len(names)
    assert (found["a.png"], found["a.jpg"], found["d/c.png"]) == ("a.png", "a.jpg.png", "d/c.png")
    assert (found["b"], found["b.png"]) == ("b.png", "b.png.png")
    assert all(name.endswith(".png") for name in found.values())


def test_no_text_of_a_table_becomes_a_formula():
    assert csv_text([{"name": "=1+1", "p_value": 0.5}]).split() == ["name,p_value", "'=1+1,0.5"]


def test_images_are_read_once_while_they_take_little_memory(tmp_path, monkeypatch):
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.arange(64.0).reshape(8, 8, 1) ** 3)
    data, names = open_data(str(tmp_path), "folder"), []
    fitted = fit(Preparation(size=4), [read_sample(data, data.samples[0])[0]])

    def counted(data, sample):
        names.append(sample.name)
        return read_sample(data, sample)

    monkeypatch.setattr(_views, "read_sample", counted)
    for limit, expected in ((2**20, "abc"), (0, "abcabc")):  # beyond it the latest one is kept
        monkeypatch.setattr(_views, "_KEPT", limit)
        names.clear()
        reader = Reader(data, fitted)
        for sample in 2 * data.samples:
            assert reader.read(sample) is reader.read(sample)
        assert names == [f"{name}.npy" for name in expected]


def test_volumes_of_one_name_do_not_overwrite_each_other(tmp_path):
    maps = VolumeMaps(tmp_path / "maps")
    for value, name in enumerate(("a#1.nii", "a#2.nii", "v.nii", "v.nii.gz")):
        write_volume(tmp_path / name, np.zeros((4, 6, 1)), np.eye(4))
        sample = Sample(f"{name}#0", tmp_path / name, "test", "unknown", None, name, 0)
        score = np.full((6, 4), float(value))
        maps.add(AssembledImage(sample, [], None, None, score, score > 9, score > 9, score))
    maps.close()
    found = {path.name: read_volume(path).voxels for path in (tmp_path / "maps").glob("*_score*")}
    assert {name: values.max() for name, values in found.items()} == {
        "a#1_score.nii.gz": 0.0,
        "a#2_score.nii.gz": 1.0,
        "v_score.nii.gz": 2.0,
        "v.nii.gz_score.nii.gz": 3.0,
    }


def test_noise_is_that_inside_the_foreground():
    """Zeros outside the foreground are not taken for a lack of noise, nor empty tiles for views."""
    rng, options = np.random.default_rng(3), LearnOptions(noise="iid")
    rows, columns = np.indices((8, 8))
    where = np.stack([(rows - 4) ** 2 + (columns - 4) ** 2 < r**2 for r in rng.uniform(2, 5, 400)])
    pixels = 2.0 * rng.standard_normal((400, 8, 8, 1)) * where[..., None]
    names = tuple(str(k) for k in range(400))
    fitted = fit_noise(Normal(pixels, names, names, where), options).covariance
    # 10000 values: standard error 0.014 of a standard deviation of 2.
    assert np.sqrt(fitted.apply(np.ones((8, 8, 1))).mean()) == pytest.approx(2.0, abs=0.06)
    whole = np.ones_like(where)
    np.testing.assert_array_equal(rescale_to_foreground(pixels, whole), pixels)


def test_views_without_foreground_are_not_trained_on(tmp_path):
    rng = np.random.default_rng(4)
    for k in range(3):
        grey = np.zeros((16, 64))
        grey[:, 24:40] = rng.uniform(0.2, 1.0, (16, 16))
        np.save(tmp_path / f"{k}.npy", grey)
    data = open_data(tmp_path)
    images = Images(data, data.samples)
    preparation = Preparation(16, "crop", "raw", "none", foreground="nonzero")
    fitted = fit(preparation, images)
    found = images.normal_views(fitted)
    assert len(found.pixels) == len(found.names) == len(found.groups) == 3
    assert found.where.all()
    random = images.training_views(fitted, 40, seed=0)
    assert 3 < len(random.pixels) == len(random.names) < 3 * 41
    assert random.where.any(axis=(1, 2)).all()


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A model of 16-pixel tiles and the tests of larger photographs, of which two are spotted."""
    root, rng = tmp_path_factory.mktemp("tiles"), np.random.default_rng(0)
    for folder in ("data/train/good", "data/test/good", "data/test/spot"):
        (root / folder).mkdir(parents=True)

    def photograph(path, spot=False):
        grey = 120 + 10 * rng.standard_normal((30, 44))
        if spot:
            grey[18:23, 6:11] += 90
        Image.fromarray(np.clip(grey, 1, 255).astype(np.uint8)).save(root / "data" / path)

    for k in range(12):
        photograph(f"train/good/{k}.png")
    for k in range(2):
        photograph(f"test/good/{k}.png")
        photograph(f"test/spot/{k}.png", spot=True)
    words = ["--view", "tile", "--size", "16", "--channels", "4,8", "--steps", "3", "--batch", "8"]
    words += ["--noise", "iid", "--flag-share", "0.01", "--out", str(root / "m")]
    assert main(["train", "--data", str(root / "data"), *words]) == 0
    words = ["--model", str(root / "m"), "--out", str(root / "out")]
    assert main(["test", str(root / "data"), *words]) == 0
    return root


@pytest.mark.slow
def test_tiles_cover_an_image_and_it_has_one_row(tiles):
    assert load_profile(tiles / "m").region == "peak"
    with open(tiles / "out" / "results.csv", encoding="utf-8", newline="") as file:
        views = list(csv.DictReader(file))
    with open(tiles / "out" / "images.csv", encoding="utf-8", newline="") as file:
        images = {row["name"]: row for row in csv.DictReader(file)}
    assert len(views) == 6 * len(images) == 24
    for name, image in images.items():
        own = [row for row in views if row["name"] == name]
        known = [float(row["p_adjusted"]) for row in own if row["p_adjusted"] != "nan"]
        assert float(image["p_adjusted"]) == min(known)
        for row in own:
            high = float(row["p_high"])
            assert np.isnan(high) or float(row["p_adjusted"]) == pytest.approx(min(1.0, 6 * high))
    for name in images:
        assert (tiles / "out" / "overlays" / name).is_file()


@pytest.mark.slow
def test_the_number_of_views_reaches_what_is_said_of_conformal_p_values(tiles, tmp_path, capsys):
    shutil.copytree(tiles / "m", tmp_path / "m")
    early = [
        "test",
        str(tiles / "data"),
        "--model",
        str(tmp_path / "m"),
        "--decide-by",
        "conformal",
    ]
    assert main([*early, "--out", str(tmp_path / "early")]) == 2
    assert "expected 'selective' for a model without a calibration" in capsys.readouterr().err
    assert not (tmp_path / "early").exists()  # nothing was tested in vain
    words = ["--model", str(tmp_path / "m"), "--data", str(tiles / "data"), "--control", "0"]
    assert main(["calibrate", *words]) == 0
    told = "the level of each view of an image of 6 views"
    assert told in capsys.readouterr().out
    words = ["test", str(tiles / "data"), "--model", str(tmp_path / "m"), "--no-overlays"]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 0  # three objects tell nothing, and their ranks are too large
    assert "The raw p-value decides unchecked: 3 normal objects" in capsys.readouterr().err
    assert main([*words, "--decide-by", "conformal"]) == 0
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_maps_that_are_missing_are_told(tiles, tmp_path, capsys):
    shutil.copytree(tiles / "out", tmp_path / "out")
    maps = sorted((tmp_path / "out" / "run").rglob("*.npz"))
    maps[3].write_bytes(maps[3].read_bytes()[:100])
    words = ["test", str(tiles / "data"), "--model", str(tiles / "m")]
    for _ in range(2):
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert "damaged (" in err or "no such file" in err
        assert "test again in another directory" in err
        maps[3].unlink(missing_ok=True)


AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2.0, 0, -40], [0, 0, 3.0, 10], [0, 0, 0, 1]])
SHAPE = (20, 24, 3)


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    """BraTS cases: a bright ellipse, nothing around it, tumours in the last slice of some."""
    root, rng = tmp_path_factory.mktemp("brains"), np.random.default_rng(1)
    x, y = np.meshgrid(np.linspace(-1, 1, 20), np.linspace(-1, 1, 24), indexing="ij")
    head = ((x / 0.8) ** 2 + (y / 0.8) ** 2 < 1)[..., None] & np.ones(SHAPE, bool)
    for case in range(14):
        voxels = np.where(head, 100 + 10 * rng.standard_normal(SHAPE), 0)
        marked = np.zeros(SHAPE, np.uint8)
        marked[8:12, 10:14, 2] = 1
        voxels[marked > 0] += 70
        name = f"BraTS2021_{case:05d}"
        folder = root / "data" / name
        folder.mkdir(parents=True)
        write_volume(folder / f"{name}_t1.nii.gz", voxels.astype(np.float32), AFFINE)
        write_volume(folder / f"{name}_seg.nii.gz", marked, AFFINE)
    words = ["--contrast", "t1", "--view", "crop", "--size", "20", "--intensity", "raw"]
    words += ["--background", "none", "--foreground", "nonzero", "--channels", "4,8"]
    words += ["--steps", "3", "--batch", "8", "--noise", "iid", "--flag-share", "0.02"]
    assert main(["train", "--data", str(root / "data"), "--out", str(root / "m"), *words]) == 0
    words = ["--model", str(root / "m"), "--out", str(root / "out"), "--no-overlays"]
    words += ["--alpha", "0.6"]  # so that the hardly trained network calls something
    assert main(["test", str(root / "data"), *words]) == 0
    return root


@pytest.mark.slow
def test_volumes_come_out_on_the_grid_of_those_that_went_in(brains):
    rows = [
        json.loads(line)
        for line in (brains / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    cases = {row["name"].partition("#")[0] for row in rows}
    assert len(cases) == 4  # a third of the patients, all of their slices
    called = 0
    for case in cases:
        stem = case.removesuffix(".nii.gz")
        made = {
            kind: read_volume(brains / "out" / "volumes" / f"{stem}_{kind}.nii.gz")
            for kind in ("score", "p_adjusted", "significant")
        }
        source = read_volume(brains / "data" / case)
        for volume in made.values():
            np.testing.assert_array_equal(volume.affine, source.affine)
            assert volume.voxels.shape == source.voxels.shape
        for row in (row for row in rows if row["name"].startswith(case)):
            index = int(row["name"].partition("#")[2])
            maps = {k: axial_slice(v.voxels, v.affine, index) for k, v in made.items()}
            inside = ~np.isnan(maps["p_adjusted"])
            assert inside.sum() == row["num_tested"]
            if row["num_tested"]:
                np.testing.assert_allclose(maps["p_adjusted"][inside], row["p_adjusted"], rtol=1e-6)
            significant = row["decision"] == "significant"
            np.testing.assert_array_equal(maps["significant"] > 0, inside & significant)
            called += significant
            assert np.isfinite(maps["score"]).sum() == 20 * 20
    assert called


@pytest.mark.slow
def test_nothing_outside_of_the_foreground_is_flagged(brains):
    flagged = 0
    for path in (brains / "out" / "volumes").rglob("*_p_adjusted.nii.gz"):
        case = path.parent.name
        head = read_volume(brains / "data" / case / f"{case}_t1.nii.gz").voxels != 0
        inside = ~np.isnan(read_volume(path).voxels)
        flagged += inside.sum()
        assert not (inside & ~head).any()
    assert flagged


def test_metrics_count_a_region_at_the_level_of_its_view():
    sample = Sample("a.png", None, "test", "normal", None, "a")
    for p_high, count, called in ((0.03, 1, 1), (0.03, 2, 0), (0.0125, 4, 1), (0.0126, 4, 0)):
        own = [record(0.0125, 0.012, p_high)] + [record(0.9)] * (count - 1)
        found = rows(*own)
        measures = Measures()
        measures.add(AssembledImage(sample, found, score=np.zeros((2, 2))))
        counted = measures.result(0.05)["significant"]["selective"]["normal"]
        assert counted["share"] == called / count
        assert called == (found[0].decision == "significant")


def test_every_significant_region_is_seen():
    """A view with more pixels than its image may flag what lies between the image's pixels."""
    image = np.random.default_rng(0).normal(size=(5, 5, 1))
    fitted = fit(Preparation(size=12, view="resize", intensity="raw"), [image])
    labels = np.zeros((12, 12), int)
    labels[2, 2], labels[5:8, 5:8], labels[7, 0] = 1, 2, 3
    sample = Sample("a.png", None, "test", "unknown", None, "a")
    own = [
        ViewResult("a.png", 0, 1, number, 3, "unknown", "a", "OK")._replace(
            decision="significant" if number < 3 else "not significant", p_adjusted=number / 100
        )
        for number in (1, 2, 3)
    ]
    found = views(fitted, image)
    maps = [(np.zeros((12, 12)), labels)]
    one = _together(sample, own, image, None, found, maps, fitted)
    alone = enlarge(labels == 1, found.extents[0])
    assert not alone.any()  # nothing of it would be left
    assert one.views[0].box == (1, 1, 2, 2) and one.significant[1, 1] and one.region[1, 1]
    assert one.p_adjusted[1, 1] == 0.01
    assert one.region[3, 0] and not one.significant[3, 0] and one.views[2].box == (3, 0, 4, 1)
    assert one.views[1].box == (2, 2, 3, 3)
    assert one.significant.sum() == 2 and one.region.sum() == 3
