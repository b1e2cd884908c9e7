"""Detectors that a text names, stored ones, and the command line's way to them."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_localizers_onnx import onnx, write  # noqa: F401 (a fixture)

from dal_jax import CheckpointError, InputError, load_localizer
from dal_jax.cli import main
from dal_jax.localizers import (
    detector_named,
    is_detector,
    load_detector,
    parse_detector,
    save_detector,
)

SIDE = 8
CODE = '''
import numpy as np

from_table = {"scale": 1.0}


def score(x):
    """The mean of nine neighbours, without its sign."""
    padded = np.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return from_table["scale"] * abs(rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


class Model:
    def score(self, x):
        return score(x)


model = Model()
'''
NAME = "own_detector:score"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The user's module in the present folder; nothing of it stays behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_detector.py").write_text(CODE)
    yield tmp_path
    sys.modules.pop("own_detector", None)


def test_texts_name_detectors_or_kinds():
    assert detector_named(None) is None
    for text in ("dal", "mdps:pl,start=150", "mdps:mvtec/tile", "dall"):
        assert detector_named(text) is None
    found = detector_named("onnx:/a/b.onnx,output=map,batch_size=2")
    assert found is not None and not found.is_code and found.output == "map"
    assert parse_detector("a.b:c.d,dtype=float32").is_code
    assert "nothing_here" not in sys.modules
    for text, message in (
        (":score", "source: got ':score', expected MODULE:FUNCTION or onnx:FILE"),
        ("a:", "source: got 'a:', expected MODULE:FUNCTION"),
        ("a:b,output=c", "output: got 'c', expected none with a"),
        ("onnx:a,dtype=float32", "dtype: got 'float32', expected none with onnx"),
        ("a:b,bath_size=2", "unknown key 'bath_size', did you mean 'batch_size'?"),
    ):
        with pytest.raises(InputError, match=message):
            detector_named(text)


def test_functions_are_imported_by_their_names(module):
    for name in (NAME, "own_detector:model.score"):
        localizer = parse_detector(name).for_images((4, 4, 1)).open(0.5)
        assert localizer.score(np.ones((4, 4, 1)))[1, 1] == pytest.approx(1.0)
    (module / "broken.py").write_text("import nothing_of_this_name\n")
    for text, message in (
        ("mdpss:pl", "no module 'mdpss' is found here, and no kind of localizer has this name"),
        ("own_detector:scores", "module 'own_detector' has no 'scores'"),
        ("broken:score", "importing 'broken' failed: ModuleNotFoundError: No module named"),
        ("own_detector:from_table", "function: got dict, expected a function of images"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            parse_detector(text).for_images((4, 4, 1)).open(0.5)
        assert "\n" not in str(caught.value)


def test_stored_code_runs_only_if_it_is_named_again(module):
    save_detector("model", parse_detector(f"{NAME},batch_size=7").for_images((4, 4, 1)))
    del sys.modules["own_detector"]
    for given, told in ((None, "None"), ("os:getcwd", "'os:getcwd'")):
        with pytest.raises(
            InputError, match=f"which runs only if --localizer names it, got {told}"
        ):
            load_localizer("model", 0.5, localizer=given)
    assert "own_detector" not in sys.modules
    localizer = load_localizer("model", 0.5, draws=3, localizer=NAME)
    assert localizer.threshold == 0.5 and localizer.image_shape == (4, 4, 1)
    assert localizer.score_fn.batch_size == 7
    sys.modules["own_detector"].from_table["scale"] = 1.01  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=f"detector '{NAME}' has changed: its scores of a fixed"):
        load_localizer("model", 0.5, localizer=NAME)
    sys.modules["own_detector"].from_table["scale"] = 1 + 1e-6  # type: ignore[attr-defined]
    load_localizer("model", 0.5, localizer=NAME)


def test_a_folder_holds_a_detector_or_a_network(module):
    config = parse_detector(NAME).for_images((4, 4, 1))
    save_detector("model", config)
    assert is_detector("model") and not is_detector("other")
    (module / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds detector.json and config.json, expected one"):
        load_localizer("model", localizer=NAME)
    with pytest.raises(InputError, match="holds a network, expected a folder of its own"):
        save_detector("model", config)
    (module / "model" / "config.json").unlink()
    (module / "model" / "detector.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"detector '.*detector.json'"):
        load_localizer("model", localizer=NAME)


def test_a_stored_onnx_file_is_a_copy(onnx, module):  # noqa: F811
    write(onnx, module / "a.onnx")
    save_detector("model", parse_detector("onnx:a.onnx").for_images((8, 8, 1)))
    (module / "a.onnx").unlink()
    localizer = load_detector("model", 0.4)
    assert localizer.threshold == 0.4 and "sha256" in localizer.score_fn.identity
    with pytest.raises(InputError, match=r"localizer: got 'onnx:a\.onnx', expected none"):
        load_detector("model", 0.4, localizer="onnx:a.onnx")
    with open(module / "model" / "detector.onnx", "ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match=r"is not the file of detector\.json"):
        load_detector("model", 0.4)


def photographs(root: Path) -> Path:
    """Sixteen normal images, and four to test, two of them with a bright square."""
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 16), ("test/good", 2), ("test/spot", 2)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = 100 + 10 * rng.normal(size=(SIDE, SIDE))
            if folder == "test/spot":
                pixels[2:6, 2:6] += 60
            path = root / folder / f"{folder[-4]}{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return root


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


TRAIN = ("--size", SIDE, "--noise", "iid", "--flag-share", 0.05, "--background", "none")


@pytest.mark.parametrize("kind", ["code", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_folder_is_tested_with_a_detector(capsys, module, kind, request):
    name, again = NAME, ("--localizer", NAME)
    if kind == "onnx":
        write(request.getfixturevalue("onnx"), module / "a.onnx", batch=1)
        name, again = "onnx:a.onnx", ()
    data = photographs(module / "data")
    words = ["train", "--data", data, "--localizer", name, "--out", "model", *TRAIN]
    code, told, _ = run(capsys, *words)
    assert code == 0 and "views of normal images" in told
    code, _, error = run(capsys, *words, "--steps", 5)
    assert code == 2 and "--steps: expected none with" in error
    if kind == "code":
        code, _, error = run(capsys, "test", data, "--model", "model")
        assert code == 2 and "which runs only if --localizer names it, got None" in error
    calibrate = ["calibrate", "--model", "model", "--data", data, "--control", 4]
    assert run(capsys, *calibrate, *again)[0] == 0
    test = ["test", data, "--model", "model", "--out", "run", *again, "--decide-by", "selective"]
    assert run(capsys, *test)[0] == 0
    with open(module / "run" / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    spots = {row["decision"] for row in rows if "spot" in row["name"]}
    assert spots == {"significant"} or kind == "onnx"  # whose weights are random
    assert run(capsys, *test)[0] == 0  # resumed
    code, _, error = run(capsys, *test, "--engine", "sweep")
    assert code == 2 and "expected 'adaptive', False" in error


def test_images_are_tested_without_a_model(capsys, module):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, SIDE, SIDE))
    x[2:6, 2:6] += 3
    np.save(module / "x.npy", x)
    np.save(module / "y.npy", y)
    words = ["test", "--image", "x.npy", "--reference", "y.npy", "--noise", "iid:1"]
    code, told, _ = run(capsys, *words, "--localizer", NAME, "--threshold", 1.5, "--json")
    assert code == 0
    [result] = json.loads(told)["results"]
    assert result["status"] == "OK" and result["p_value"] < 0.01
    code, _, error = run(capsys, *words)
    assert code == 2 and "--model: got none, expected a checkpoint (or --spec, or --loc" in error
    code, _, error = run(capsys, *words, "--localizer", NAME, "--draws", "y.npy")
    assert code == 2 and "--draws: got 'y.npy', expected none with a detector" in error
    spec = 'images = ["x.npy"]\nreferences = ["y.npy"]\nnoise = "iid:1"\n'
    (module / "run.toml").write_text(f'localizer = "{NAME}"\n{spec}')
    del sys.modules["own_detector"]
    code, _, error = run(capsys, "test", "--spec", "run.toml")
    assert code == 2 and "is code, which a file cannot name" in error
    assert "own_detector" not in sys.modules


@pytest.mark.slow
def test_an_onnx_file_is_named_in_a_file_of_settings(capsys, module, onnx):  # noqa: F811
    (module / "there").mkdir()
    write(onnx, module / "there" / "a.onnx")
    np.save(module / "there" / "x.npy", np.random.default_rng(0).normal(size=(SIDE, SIDE)))
    np.save(module / "there" / "y.npy", np.zeros((SIDE, SIDE)))
    spec = 'images = ["x.npy"]\nreferences = ["y.npy"]\nnoise = "iid:1"\n'
    spec += 'localizer = "onnx:a.onnx"\nthreshold = 0.5\n'
    (module / "there" / "run.toml").write_text(spec)
    code, told, _ = run(capsys, "test", "--spec", "there/run.toml", "--json")
    assert code == 0
    assert json.loads(told)["results"][0]["status"] == "OK"


def test_normal_images_give_a_threshold(capsys, module):
    data = photographs(module / "data")
    words = ["train", "--images", data / "train" / "good", "--localizer", NAME, "--out", "model"]
    code, told, _ = run(capsys, *words, "--json")
    assert code == 0
    found = json.loads(told)
    assert found["steps"] == 0 and 0.3 < found["threshold"] < 0.6
    assert load_localizer("model", found["threshold"], localizer=NAME).image_shape == (8, 8, 1)


@pytest.mark.parametrize(
    "option", ["--steps 3", "--batch 3", "--lr 0.1", "--clip 1", "--ema 0.5", "--devices 1"]
)
def test_options_of_training_are_refused_for_what_is_not_trained(capsys, module, option):
    given = ["--data", "absent", "--localizer", "wafers:score", "--out", "m"]
    assert main(["train", *given, *option.split()]) == 2
    error = capsys.readouterr().err
    assert (
        error.endswith("with wafers:score, which is not trained\n") and option.split()[0] in error
    )
