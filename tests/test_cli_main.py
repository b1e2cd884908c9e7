"""The command as a whole: help, versions, refusals in one line with exit code 2."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("tqdm")

import dal_jax
from dal_jax import run_lengths
from dal_jax._files import dumps
from dal_jax.cli import main
from dal_jax.diffusion import DalConfig, ReverseConfig, save_checkpoint
from dal_jax.models import UNetConfig, init_unet

VERBS = ["demo", "train", "localize", "test", "import-weights"]
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of an untrained network, images and spoilt files."""
    folder = tmp_path_factory.mktemp("cli")
    config = DalConfig(
        unet=UNetConfig(1, (2, 3), time_dim=4), reverse=ReverseConfig(400, 2), image_size=(8, 8)
    )
    save_checkpoint(folder / "model", init_unet(config.unet, 0), config)
    nothing = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), init_unet(config.unet, 0))
    save_checkpoint(folder / "nan_model", nothing, config)
    rng = np.random.default_rng(0)
    for name in ("x", "y", "z"):
        np.save(folder / f"{name}.npy", rng.normal(size=SHAPE))
    np.save(folder / "stack.npy", rng.normal(size=(6, 8, 8, 1)))
    np.save(folder / "draws.npy", rng.normal(size=(3, *SHAPE)))
    np.save(folder / "wrong_draws.npy", np.zeros((2, *SHAPE)))
    np.save(folder / "nan.npy", np.full(SHAPE, np.nan))
    np.save(folder / "infinite.npy", np.full(SHAPE, np.inf))
    np.save(folder / "large.npy", np.zeros((16, 16)))
    np.save(folder / "colour.npy", np.zeros((8, 8, 3)))
    np.save(folder / "indefinite.npy", -np.eye(64))
    np.save(folder / "small_matrix.npy", np.eye(5))
    (folder / "truncated.npy").write_bytes((folder / "x.npy").read_bytes()[:200])
    (folder / "text.txt").write_text("no image")
    (folder / "half").mkdir()
    (folder / "half" / "config.json").write_text('{"format": 1, "conf')
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 not all of it")
    np.savez(folder / "incomplete.npz", **{"out.bias": np.zeros(1)})
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def one(folder: Path, verb: str, **options: str) -> list[str]:
    """Words of a command that works, with some options replaced."""
    words = [verb]
    given = {"model": "model", "image": "x.npy"}
    if verb == "test":
        given |= {"reference": "y.npy", "noise": "iid:1"}
    for name, value in {**given, **options}.items():
        literal = name in ("noise", "threshold", "precision", "alpha", "engine", "seed")
        words += [f"--{name}", value if literal else str(folder / value)]
    return words


def test_noise_has_no_default(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Images are in the units of their file (8-bit ones over 255): no default fits them all."""
    words = one(folder, "test")
    where = words.index("--noise")
    code, out, err = run(capsys, *words[:where], *words[where + 2 :])
    assert code == 2 and out == ""
    assert "--noise: got none, expected the covariance of an image" in err and err.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, err = run(capsys, verb, "--help")
    assert code == 0 and err == ""
    assert "--seed" in out and "--json" in out


def test_help_names_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(verb in out for verb in VERBS)
    code, out, _ = run(capsys, "--version")
    assert code == 0 and out.strip() == dal_jax.__version__


@pytest.mark.parametrize("words", [[], ["dance"], ["test"], ["train", "--steps", "many"]])
def test_wrong_words_are_refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2 and out == ""
    assert err.startswith("dal-jax") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("localize", {"model": "absent"}, "checkpoint"),
        ("localize", {"model": "half"}, "damaged"),
        ("localize", {"image": "absent.npy"}, "no such file"),
        ("localize", {"image": "truncated.npy"}, "unreadable"),
        ("localize", {"image": "text.txt"}, "unknown kind"),
        ("localize", {"image": "nan.npy"}, "NaN or infinite"),
        ("localize", {"image": "infinite.npy"}, "NaN or infinite"),
        ("localize", {"image": "large.npy"}, "shape (16, 16, 1)"),
        ("localize", {"image": "colour.npy"}, "shape (8, 8, 3)"),
        ("localize", {"draws": "wrong_draws.npy"}, "draws"),
        ("localize", {"draws": "absent.npy"}, "no such file"),
        ("localize", {"draws": "truncated.npy"}, "damaged ("),
        ("localize", {"draws": "broken.npz"}, "damaged ("),
        ("localize", {"draws": "incomplete.npz"}, "damaged ("),
        pytest.param(
            *("localize", {"model": "nan_model"}, "NaN or infinite scores"),
            marks=pytest.mark.slow,
        ),
        ("localize", {"threshold": "0"}, "threshold"),
        ("localize", {"threshold": "-1"}, "threshold"),
        ("localize", {"threshold": "nan"}, "threshold"),
        ("localize", {"seed": "-1"}, "seed"),
        ("localize", {"out": "text.txt"}, "expected a folder"),
        ("test", {"reference": "large.npy"}, "shape (16, 16, 1)"),
        ("test", {"reference": "nan.npy"}, "NaN or infinite"),
        ("test", {"noise": "iid:0"}, "sigma"),
        ("test", {"noise": "iid:-1"}, "sigma"),
        ("test", {"noise": "iid:one"}, "noise"),
        ("test", {"noise": "ar1:1:1"}, "rho"),
        ("test", {"noise": "pink"}, "noise"),
        ("test", {"noise": "absent.npy"}, "noise"),
        ("test", {"precision": "1"}, "precision"),
        ("test", {"alpha": "2"}, "alpha"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    verb: str,
    options: dict[str, str],
    message: str,
) -> None:
    before = sorted(folder.rglob("*"))
    code, out, err = run(capsys, *one(folder, verb, **options))
    assert code == 2 and out == ""
    assert err.startswith(f"dal-jax {verb}: ") and err.count("\n") == 1
    assert message in err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("train", ["--view", "crop"], "--view: expected none without --data"),
        ("train", ["--grey"], "--colour: expected none without --data"),
        ("train", ["--noise", "auto"], "--noise: expected none without --data"),
        ("test", ["--decide-by", "conformal"], "--decide-by: expected none without FOLDER"),
    ],
)
def test_no_option_is_ignored(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    verb: str,
    options: list[str],
    message: str,
) -> None:
    words = one(folder, "test")
    if verb == "train":
        words = ["train", "--images", folder / "stack.npy", "--out", tmp_path / "new"]
    code, out, err = run(capsys, *words, *options)
    assert code == 2 and out == "" and err == f"dal-jax {verb}: {message}\n"


@pytest.mark.parametrize("matrix", ["indefinite.npy", "small_matrix.npy"])
def test_bad_covariance_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, matrix: str
) -> None:
    code, out, err = run(capsys, *one(folder, "test", noise=str(folder / matrix)))
    assert code == 2 and out == "" and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "absent"], "no such file"),
        (["--images", "nan.npy"], "NaN or infinite"),
        (["--images", "stack.npy", "--size", "16"], "expected 1 to 8 for the images"),
        (["--images", "stack.npy", "--steps", "0"], "steps"),
        (["--images", "stack.npy", "--lr", "-1"], "learning_rate"),
        (["--images", "stack.npy", "--channels", "wide"], "--channels"),
        (["--images", "stack.npy", "--channels", "2,2,2,2,2"], "multiples of 16"),
        (["--images", "stack.npy", "--activation", "softmax"], "activation"),
        (["--images", "stack.npy", "--eta", "2"], "eta"),
        (["--images", "stack.npy", "--start", "5000"], "start"),
        (["--images", "stack.npy", "--filter-size", "2"], "filter_size"),
        (["--images", "stack.npy", "--seed", "-3"], "seed"),
    ],
)
def test_bad_training_is_one_line(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    code, out, err = run(capsys, "train", "--out", tmp_path / "new", *options)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("dal-jax train: ") and message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("absent.npz", "no such file"),
        ("broken.npz", "damaged"),
        ("incomplete.npz", "no array"),
        ("text.txt", "expected .npz"),
    ],
)
def test_bad_weights_are_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, file: str, message: str
) -> None:
    code, out, err = run(capsys, "import-weights", folder / file, tmp_path / "new")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("dal-jax import-weights: ") and message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["typer", "tqdm"])
def test_missing_extra_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, err = run(capsys, "--help")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert missing in err and 'pip install "dal-jax[cli]"' in err


def test_run_lengths_cover_the_region() -> None:
    region = np.random.default_rng(0).uniform(size=(5, 7)) > 0.5
    flat = np.zeros(35, bool)
    for start, length in run_lengths(region):
        assert not flat[start : start + length].any()
        flat[start : start + length] = True
    np.testing.assert_array_equal(flat, region.ravel())
    assert run_lengths(np.zeros((2, 2), bool)) == []


def test_json_has_no_bare_nan() -> None:
    text = dumps({"a": np.nan, "b": np.array([np.inf, -np.inf, 1.5]), "c": np.int64(3)})
    assert json.loads(text) == {"a": None, "b": ["Infinity", "-Infinity", 1.5], "c": 3}
