"""Streams: discoveries online, drift, and a folder that fills."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import special, stats

from dal_jax import InputError
from dal_jax.cli import main
from dal_jax.inspection import (
    DRIFT_LEVEL,
    STREAM,
    StreamRow,
    drift_martingale,
    drift_warning,
    inspect_folder,
    load_calibration,
    online_levels,
    page,
    stream_rows,
    watch_folder,
)

pytest.importorskip("online_fdr")


def test_levels_are_those_of_the_paper():
    """Javanmard and Montanari 2018: beta_t (D + 1) / (1 + 1/2 + ... + 1/t), sum of beta = alpha."""
    alpha, p = 0.1, [1e-9, 0.4, 1e-9, 0.02, 1e-4, 0.9, 1e-12]
    t = np.arange(1, 100_001)
    shape = np.log(np.maximum(t, 2)) / (t * np.exp(np.sqrt(np.log(t))))
    # The rest is an integral, of 2 u^3 exp(-u) with u^2 = log t.
    whole = shape.sum() + 12 * special.gammaincc(4, math.sqrt(math.log(t[-1] + 0.5)))
    levels, discoveries = online_levels(p, alpha), 0
    for k, one in enumerate(p):
        ratio = levels[k] / (shape[k] / np.sum(1 / t[: k + 1]) * (discoveries + 1))
        assert ratio * whole == pytest.approx(0.97631 * alpha, rel=1e-4)  # at most alpha
        discoveries += one <= levels[k]
    assert discoveries == 4
    assert online_levels([], alpha).shape == (0,)


def test_levels_do_not_depend_on_later_p_values():
    p = np.random.default_rng(0).uniform(size=40) ** 8
    whole = online_levels(p, 0.05)
    for count in (1, 7, 39):
        np.testing.assert_array_equal(online_levels(p[:count], 0.05), whole[:count])


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_the_false_discovery_rate_of_dependent_streams(shared):
    """One error that all tests share, as that of a common reference."""
    rng, rates, found = np.random.default_rng(3), [], 0
    for _ in range(300):
        anomalous = rng.uniform(size=60) < 0.3
        noise = math.sqrt(shared) * rng.normal() + math.sqrt(1 - shared) * rng.normal(size=60)
        p = 2 * stats.norm.sf(np.abs(noise + 5 * anomalous))
        called = p <= online_levels(p, 0.1)
        rates.append((called & ~anomalous).sum() / max(1, called.sum()))
        found += (called & anomalous).sum()
    assert np.mean(rates) + 2 * stats.sem(rates) <= 0.1
    assert found > 300 * 60 * 0.3 * 0.5  # it finds something


@pytest.mark.parametrize("alpha", [0, 1, math.nan])
def test_rates_out_of_range_are_named(alpha):
    with pytest.raises(InputError, match="alpha: got"):
        online_levels([0.5], alpha)


def test_streams_without_drift_seldom_alarm():
    alarms = 0
    for seed in range(200):
        drawn = np.random.default_rng(seed).standard_t(2, size=300)
        scores = np.round(drawn, 1) if seed % 2 else drawn  # ties, too
        drift = drift_martingale(scores.tolist(), seed, 20)
        assert drift.shape == (280,) and (drift > 0).all()
        alarms += drift.max() >= 20
    assert alarms <= 200 * 0.05 + 2 * math.sqrt(200 * 0.05 * 0.95)


def test_the_martingale_has_mean_one():
    last = [
        drift_martingale(np.random.default_rng(seed).normal(size=12).tolist(), seed)[-1]
        for seed in range(4000)
    ]
    assert np.mean(last) == pytest.approx(1, abs=3 * stats.sem(last))


@pytest.mark.parametrize("at", [200, 1500])
@pytest.mark.parametrize("way", [1, -1])
def test_a_shift_of_one_standard_deviation_shows(at, way):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scores = [*rng.normal(size=at), *rng.normal(way, 1, size=200)]
        drift = drift_martingale(scores, seed, 20)
        assert drift[-200:].max() >= 1 / DRIFT_LEVEL
        assert drift[: at - 20].max() < 1 / DRIFT_LEVEL


def test_scores_that_are_missing_change_nothing():
    scores = np.random.default_rng(0).normal(size=30).tolist()
    gaps = [*scores[:10], math.nan, *scores[10:], math.nan]
    one, two = drift_martingale(scores), drift_martingale(gaps)
    np.testing.assert_array_equal(one, np.delete(two, [10, 31]))
    assert two[10] == two[9] and drift_martingale([], known=0).shape == (0,)


def inspection(*images, alpha=0.05):
    """Results of images (name, group, p, score) in one view each."""
    rows = [SimpleNamespace(name=n, group=g, p_adjusted=p) for n, g, p, _ in images]
    views = [SimpleNamespace(name=n, max_score=s) for n, _, _, s in images]
    return SimpleNamespace(images=rows, views=views, options=SimpleNamespace(alpha=alpha))


def test_rows_stay_as_they_were():
    images = [(f"{k}.png", f"{k}", p, k % 7.0) for k, p in enumerate([1e-9, math.nan, 0.3, 1e-7])]
    first = stream_rows(inspection(*images[:2]), [1.0, 2.0])
    later = stream_rows(inspection(*images[1:]), [1.0, 2.0], first)  # the first file is gone
    np.testing.assert_equal(later[:2], first)
    assert [row.name for row in later] == ["0.png", "1.png", "2.png", "3.png"]
    assert [row.discovery for row in later] == [True, False, False, True]
    assert math.isnan(later[1].level) and later[2].level == online_levels([1e-9, 0.3], 0.05)[1]
    np.testing.assert_equal(stream_rows(inspection(*images), [1.0, 2.0]), later)
    for other, baseline in ((0.1, [1.0, 2.0]), (0.05, [1.0, 2.0, 3.0])):
        with pytest.raises(InputError, match=r"stream: got another .* when '.\.png' came"):
            stream_rows(inspection(*images, alpha=other), baseline, later)


def test_an_object_bets_once():
    shots = [(f"{k}.png", f"object {k // 50}", 0.5, 9.0 + k % 50) for k in range(100)]
    rows = stream_rows(inspection(*shots), np.linspace(0, 1, 50).tolist())
    assert len({row.drift for row in rows}) == 2
    assert not drift_warning(rows)
    apart = [(name, name, p, score) for name, _, p, score in shots]
    told = drift_warning(stream_rows(inspection(*apart), np.linspace(0, 1, 50).tolist()))
    assert "look otherwise" in told and "1% of streams" in told


def photograph(seed, spot=False):
    grey = 120 + 12 * np.random.default_rng(seed).standard_normal((16, 16))
    grey[4:10, 5:11] += 70 * spot
    return Image.fromarray(np.clip(grey, 1, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    root = tmp_path_factory.mktemp("normal")
    for seed in range(17):
        path = root / f"{'train' if seed else 'test'}/good/{seed:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(seed).save(path)
    model = tmp_path_factory.mktemp("model") / "m"
    words = ["train", "--data", root, "--out", model, "--view", "crop", "--size", "16"]
    words += [
        "--channels",
        "4,8",
        "--steps",
        "3",
        "--batch",
        "8",
        "--noise",
        "iid",
        "--region",
        "all",
        "--randomization",
        "1",
    ]
    assert main([str(word) for word in [*words, "--flag-share", "0.05"]]) == 0
    words = ["calibrate", "--model", model, "--data", root, "--control", "0"]
    assert main([str(word) for word in words]) == 0
    return model


@pytest.mark.slow
def test_a_folder_that_fills(calibrated, tmp_path, capsys):
    folder, out = tmp_path / "line", tmp_path / "run"
    folder.mkdir()
    (folder / "readme.txt").write_text("no image")

    def copy(size=None):
        photograph(102, True).save(tmp_path / "whole.png")
        (folder / "c.png").write_bytes((tmp_path / "whole.png").read_bytes()[:size])

    between = {  # the looks at the folder
        1: lambda: photograph(100, True).save(folder / "b.png"),
        3: lambda: (photograph(101).save(folder / "a.png"), copy(60)),
        4: lambda: copy(80),
        5: lambda: copy(90),
        6: copy,
    }
    looks = []

    def wait(_):
        looks.append(1)
        between.get(len(looks), lambda: None)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dal_jax.inspection._stream.time.sleep", wait)
        stream = watch_folder(folder, calibrated, out, decide_by="selective", overlays=False)
        found, rows = next(stream)
        assert [row.name for row in rows] == ["b.png"] and 0 < rows[0].p_adjusted < 1
        found, rows = next(stream)
        assert [row.name for row in rows] == ["b.png", "a.png"]
        found, rows = next(stream)
        assert [row.name for row in rows] == ["b.png", "a.png", "c.png"]
        assert len({one.name for one in found.images}) == 3
    told = capsys.readouterr().err
    assert told.count("waiting for images") == told.count("not used") == 1
    # What is there does not change when the run goes on, here without one of the images.
    (folder / "a.png").unlink()
    photograph(103).save(folder / "d.png")
    again = watch_folder(folder, calibrated, out, decide_by="selective", overlays=False, every=0.01)
    found, longer = next(again)
    np.testing.assert_equal(longer[:3], rows)
    assert longer[3].name == "d.png"
    assert len(found.images) == 3
    plain = inspect_folder(folder, calibrated, None, decide_by="selective")
    alone = {one.name: one.p_adjusted for one in plain.images}
    for row in longer:
        assert row.name == "a.png" or row.p_adjusted == pytest.approx(alone[row.name], nan_ok=True)
    text = page(out).path.read_text()
    assert "As a stream of 4 images" in text and "No drift of the images shows" in text
    lines = (out / STREAM).read_text().splitlines()
    assert lines[0].split(",") == list(StreamRow._fields) and len(lines) == 5
    assert (
        len(load_calibration(calibrated).object_scores) == load_calibration(calibrated).num_groups
    )


@pytest.mark.slow
def test_an_image_that_goes_before_its_test_does_not_end_a_stream(
    calibrated, tmp_path, monkeypatch, capsys
):
    folder, looks = tmp_path / "line", []
    folder.mkdir()
    photograph(100, True).save(folder / "b.png")

    def inspect(*args, **options):
        looks.append(1)
        if len(looks) == 1:
            (folder / "b.png").unlink()
        if len(looks) == 3:
            raise InputError("model: damaged")
        return inspect_folder(*args, **options)

    def wait(_):
        if not (folder / "b.png").exists():
            photograph(100, True).save(folder / "b.png")

    monkeypatch.setattr("dal_jax.inspection._stream.time.sleep", wait)
    monkeypatch.setattr("dal_jax.inspection._stream.inspect_folder", inspect)
    stream = watch_folder(folder, calibrated, tmp_path / "run", decide_by="selective")
    _, rows = next(stream)
    assert [row.name for row in rows] == ["b.png"] and len(looks) == 2
    assert capsys.readouterr().err.count("waiting for images") == 1
    photograph(101).save(folder / "c.png")
    with pytest.raises(InputError, match="model: damaged"):  # nothing is missing: no reason to wait
        next(stream)


@pytest.mark.slow
def test_the_command_prints_images_as_they_come(calibrated, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "line"
    folder.mkdir()
    photograph(100, True).save(folder / "b.png")
    looks = []

    def wait(_):
        looks.append(1)
        if len(looks) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("dal_jax.inspection._stream.time.sleep", wait)
    words = ["test", folder, "--model", calibrated, "--out", tmp_path / "run", "--watch", "5"]
    assert main([str(word) for word in [*words, "--decide-by", "selective", "--json"]]) == 130
    printed = capsys.readouterr()
    row = json.loads(printed.out)
    assert row["name"] == "b.png" and row["level"] == online_levels([0.5], 0.05)[0]
    assert "1 images, 0 discoveries" in printed.err


def test_what_cannot_be_watched_is_one_line(calibrated, tmp_path, capsys):
    for words, told in (
        (["--watch", "5"], "--watch: expected --out"),
        (["--watch", "0", "--out", str(tmp_path / "o")], "every: got 0.0"),
        (["--watch", "5", "--num-processes", "2"], "--num-processes: expected none with --watch"),
    ):
        assert main(["test", str(tmp_path), "--model", str(calibrated), *words]) == 2
        assert told in capsys.readouterr().err
    assert main(["test", "--image", "x.npy", "--model", str(calibrated), "--watch", "5"]) == 2
    assert "--watch: expected none without FOLDER" in capsys.readouterr().err
