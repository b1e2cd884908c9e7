"""The verbs do their work: train, localize, test, import-weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from dal_jax import __version__, run_lengths
from dal_jax.cli import main
from dal_jax.cli._train import cut_views
from dal_jax.localizers import load_localizer
from dal_jax.models import UNetConfig, state_dict_layout, unet_shapes

RNG = np.random.default_rng(0)
TRAIN = ["--channels", "2,3", "--steps", "4", "--batch", "4", "--log-every", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny trained model, images and weights."""
    folder = tmp_path_factory.mktemp("verbs")
    np.save(folder / "stack.npy", RNG.normal(size=(8, 8, 8, 1)))
    np.save(folder / "x.npy", RNG.normal(size=(8, 8, 1)))
    for name in ("y", "z"):
        np.save(folder / f"{name}.npy", RNG.normal(size=(8, 8)))
    words = ["train", "--images", folder / "stack.npy", "--out", folder / "model", *TRAIN]
    assert main([str(word) for word in words]) == 0
    return folder


def run_json(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    code = main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


@pytest.mark.slow
def test_train_reports_and_resumes(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    words = ["train", "--images", folder / "stack.npy", "--out", tmp_path / "m", *TRAIN]
    whole = run_json(capsys, *words, "--steps", 8)
    assert whole["num_images"] == 8 and np.isfinite(whole["loss"])
    again = ["train", "--images", folder / "stack.npy", "--out", folder / "copy", *TRAIN]
    run_json(capsys, *again)
    run_json(capsys, *again, "--steps", 8)
    x = np.load(folder / "x.npy")
    scores = [load_localizer(d).score(x) for d in (tmp_path / "m", folder / "copy")]
    # A resumed run is the uninterrupted one bit for bit.
    np.testing.assert_array_equal(*scores)


@pytest.mark.slow
def test_train_on_a_folder_of_larger_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    for k in range(2):
        pixels = RNG.integers(0, 256, (18, 27)).astype(np.uint8)
        pillow.fromarray(pixels).save(tmp_path / "images" / f"{k}.png")
    words = ["train", "--images", tmp_path / "images", "--out", tmp_path / "m", "--size", 8, *TRAIN]
    fields = run_json(capsys, *words)
    assert fields["num_images"] == 2 * 2 * 3
    assert fields["config"]["image_size"] == [8, 8]


def test_cut_views_are_the_images_parts() -> None:
    images = RNG.normal(size=(2, 5, 7, 1))
    views = cut_views(images, 2)
    assert views.shape == (2 * 2 * 3, 2, 2, 1)
    np.testing.assert_array_equal(views[1], images[0, 0:2, 2:4])
    np.testing.assert_array_equal(views[-1], images[1, 2:4, 4:6])


def test_localize(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    words = ["localize", "--model", folder / "model", "--image", folder / "x.npy"]
    words += ["--threshold", 0.5, "--seed", 3]
    fields = run_json(capsys, *words)
    x = np.load(folder / "x.npy")
    localizer = load_localizer(folder / "model", 0.5, 3)
    np.testing.assert_array_equal(fields["score"], localizer.score(x))
    assert fields["region"] == run_lengths(localizer.region(x))
    assert fields["region_shape"] == [8, 8]
    filed = run_json(capsys, *words, "--out", tmp_path / "out")
    np.testing.assert_array_equal(np.load(filed["region"]), localizer.region(x))
    np.testing.assert_array_equal(np.load(filed["reconstruction"]), localizer.reconstruct(x))
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == filed
    names = ["figure.png", "reconstruction.npy", "region.npy", "result.json", "score.npy"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert main([str(word) for word in words]) == 0
    assert "pixels flagged" in capsys.readouterr().out


# What every form of `test` writes; metrics and volumes where there are labels and volumes.
FILES = {"results.csv", "rows.jsonl", "images.csv", "test.json", "run", "overlays", "maps"}


@pytest.mark.parametrize("engine", ["sweep", "scan"])
def test_test(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, engine: str
) -> None:
    words = ["test", "--model", folder / "model", "--image", folder / "x.npy", "--engine", engine]
    words += ["--reference", folder / "y.npy", "--reference", folder / "z.npy"]
    words += ["--noise", "iid:1", "--threshold", 0.6, "--out", tmp_path / "out", "--maps"]
    settings = run_json(capsys, *words)
    [fields] = map(json.loads, (tmp_path / "out" / "rows.jsonl").read_text().splitlines())
    assert fields["status"] == "OK"
    assert 0 <= fields["p_low"] <= fields["p_value"] <= fields["p_high"] <= 1
    assert fields["p_high"] - fields["p_low"] <= 1e-3
    region = np.load(tmp_path / "out" / "maps" / "x.npy" / "region.npy")
    difference = np.load(folder / "x.npy")[..., 0] - np.mean(
        [np.load(folder / "y.npy"), np.load(folder / "z.npy")], axis=0
    )
    # Means of a few doubles: 1e-12 is a hundred times their rounding.
    assert abs(fields["statistic"] - difference[region].mean()) < 1e-12
    assert abs(fields["sd"] - np.sqrt(1.5 / region.sum())) < 1e-12
    assert fields["z"] == pytest.approx(fields["statistic"] / fields["sd"])
    called = fields["p_high"] <= 0.05
    assert fields["decision"] == ("significant" if called else "not significant")
    assert settings["decisions"] == {fields["decision"]: 1}
    told = ("alpha", "alternative", "region", "noise", "threshold", "seed", "version")
    expected = [0.05, "two-sided", "all", "iid:1", 0.6, 0, __version__]
    assert [settings[name] for name in told] == expected and len(settings["references"]) == 2
    filed = json.loads((tmp_path / "out" / "test.json").read_text())
    assert filed == {name: settings[name] for name in filed}
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert (tmp_path / "out" / "maps" / "x.npy" / "figure.png").stat().st_size > 0


def test_test_prints_a_table(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ["test", "--model", folder / "model", "--image", folder / "x.npy"]
    words += ["--reference", folder / "y.npy", "--noise", "iid:1", "--threshold", 0.6]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "selective p" in out and "status OK" in out


def test_no_region_is_a_status(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ["test", "--model", folder / "model", "--image", folder / "x.npy"]
    words += ["--reference", folder / "y.npy", "--noise", "iid:1", "--threshold", 1e6]
    [fields] = run_json(capsys, *words)["results"]
    assert fields["status"] == "NO_REGION" and fields["decision"] == "no region"
    assert fields["p_value"] is None and fields["region"] == []


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_import_weights(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, prefix: str
) -> None:
    config = UNetConfig(1, (2, 3), time_dim=4)
    assert unet_shapes(config)
    arrays = {
        prefix + name: RNG.uniform(0.1, 0.5, size=shape).astype(np.float32)
        for name, _, shape, _ in state_dict_layout(config)
    }
    np.savez(tmp_path / "weights.npz", **arrays)
    words = ["import-weights", tmp_path / "weights.npz", tmp_path / "m", "--arch", "dal-unet"]
    fields = run_json(capsys, *words, "--size", 8)
    assert fields["config"]["unet"]["channels"] == [2, 3]
    score = load_localizer(tmp_path / "m").score(np.load(folder / "x.npy"))
    assert score.shape == (8, 8) and np.isfinite(score).all()
    words = ["localize", "--model", tmp_path / "m", "--image", folder / "x.npy"]
    assert run_json(capsys, *words)["threshold"] == 0.8


SHRUNK = ("unet.channels=[2,3]", "unet.time_dim=4")
KINDS = {
    "mdps": ",".join(["mdps:pl", *SHRUNK]),
    "glad": ",".join(["glad:faithful", *SHRUNK, "unet.attention=[1]", "depths=[1,2]"]),
    "autoencoder": "autoencoder:small,network.channels=[2,3]",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["autoencoder", "mdps", "glad"])
def test_other_localizers_are_trained_and_tested(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, kind: str
) -> None:
    words = ["train", "--localizer", KINDS[kind], "--images", folder / "stack.npy", *TRAIN[2:]]
    if kind == "glad":
        np.save(tmp_path / "textures.npy", RNG.normal(size=(3, 8, 8, 1)))
        words += ["--textures", tmp_path / "textures.npy"]
    found = run_json(capsys, *words, "--out", tmp_path / "m")
    assert found["threshold"] > 0
    config = found["config"]
    if kind != "autoencoder":
        assert config["pixel_scale"] not in (0.0, 1.0)  # learned
        assert len(config["feature_scales"]) == 2
    if kind == "glad":
        assert config["stop_distance"] > 0
    case = ["--image", folder / "x.npy", "--reference", folder / "y.npy"]
    threshold = ["--noise", "iid:1", "--threshold", f"{found['threshold'] / 2:g}"]
    [result] = run_json(capsys, "test", "--model", tmp_path / "m", *case, *threshold)["results"]
    assert result["status"] == "OK" and 0 <= result["p_value"] <= 1


@pytest.mark.slow
def test_settings_of_training_are_those_of_the_preset_unless_given(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    preset = "training.dtype=bfloat16,training.grad_clip=0.5,training.log_every=1,training.steps=9"
    words = ["train", "--localizer", f"{KINDS['autoencoder']},{preset}", "--out", tmp_path]
    run_json(capsys, *words, "--images", folder / "stack.npy", "--clip", 2, "--steps", 3)
    made = json.loads((tmp_path / "training.json").read_text())
    assert made["step"] == 3
    wanted = {"dtype": "bfloat16", "grad_clip": 2.0, "log_every": 1, "batch_size": 64}
    assert wanted.items() <= made["train"].items()


@pytest.mark.slow
def test_another_use_of_a_network(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ["localize", "--model", folder / "model", "--image", folder / "x.npy"]
    scores = [run_json(capsys, *words, *more)["score"] for more in ([], ["--localizer", "mdps:pl"])]
    assert scores[0] != scores[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--localizer", "dall"], "localizer: unknown kind 'dall', did you mean 'dal'?"),
        (["--localizer", "mdps:best"], "localizer: unknown preset 'best' of mdps, expected pl, "),
        (["--localizer", "glad", "--eta", "0.5"], "--eta: got 0.5, expected none with glad"),
        (["--textures", "."], "textures '.': no image in this folder"),
        (["--localizer", "glad", "--textures", "."], "textures '.': no image in this folder"),
        (
            ["--extractor", "resnet:w.npz"],
            "--extractor: got 'resnet:w.npz', expected none ",
        ),
        (
            ["--localizer", "mdps", "--extractor", "w.npz"],
            "--extractor: got 'w.npz', expected ",
        ),
        (
            ["--localizer", "mdps", "--extractor", "vgg:w.npz"],
            "extractor: unknown kind 'vgg', expected resnet, vit",
        ),
    ],
)
def test_bad_localizers_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    tmp_path: Path,
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["train", "--images", str(folder / "stack.npy"), "--out", str(tmp_path / "m"), *words]
    assert main(given) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(f"dal-jax train: {expected}"), message
    assert "\n" not in message
    assert not (tmp_path / "m").exists()
