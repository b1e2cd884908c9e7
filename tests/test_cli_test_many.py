"""`dal-jax test` on several images: patterns, specifications, runs on disk."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from dal_jax import DalConfig
from dal_jax.cli import main
from dal_jax.cli._spec import expand_patterns
from dal_jax.diffusion import save_checkpoint
from dal_jax.models import UNetConfig, init_unet

SPEC = """
model = "model"
images = ["x*.npy"]
references = ["y.npy", "z.npy"]
noise = "ar1:0.5:1"
threshold = 0.4
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    unet = UNetConfig(channels=(2, 3))
    save_checkpoint(folder / "model", init_unet(unet, 0), DalConfig(unet, image_size=8))
    for name in ("x0", "x1", "x2", "y", "z"):
        np.save(folder / f"{name}.npy", rng.normal(size=(8, 8)))
    np.save(folder / "x3.npy", np.full((8, 8), np.nan))
    (folder / "spec.toml").write_text(SPEC)
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_a_file_in_a_folder_with_a_bracketed_name_is_no_pattern(tmp_path):
    own = tmp_path / "scans[1]"
    assert expand_patterns(["x.npy"], own, "--image") == (own / "x.npy",)
    own.mkdir()
    for name in ("x.npy", "y.npy"):
        (own / name).touch()
    assert expand_patterns(["*.npy"], own, "--image") == (own / "x.npy", own / "y.npy")
    assert expand_patterns([own / "x.npy"], Path(), "--image") == (own / "x.npy",)


@pytest.mark.slow
def test_options_and_specification_are_the_same(capsys, folder, tmp_path):
    code, out, err = run(capsys, "test", "--spec", folder / "spec.toml", "--json")
    assert code == 0
    assert "x3.npy: image" in err
    found = json.loads(out)
    assert found["counts"]["INVALID_INPUT"] == 1
    assert [r["name"] for r in found["results"]] == [f"x{k}.npy" for k in range(4)]
    words = ["test", "--model", folder / "model", "--image", folder / "x[01].npy"]
    words += ["--image", folder / "x2.npy", "--image", folder / "x3.npy"]
    words += ["--reference", folder / "[yz].npy", "--noise", "ar1:0.5:1", "--threshold", 0.4]
    same = json.loads(run(capsys, *words, "--json")[1])
    for one, two in zip(found["results"], same["results"], strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    alone = run(capsys, *words[:3], "--image", folder / "x1.npy", *words[9:], "--json")
    alone = json.loads(alone[1])
    assert alone["p_value"] == found["results"][1]["p_value"]
    table = run(capsys, *words)[1]
    assert [row["name"] for row in csv.DictReader(table.splitlines())] == [
        f"x{k}.npy" for k in range(4)
    ]


def test_a_run_on_disk(capsys, folder, tmp_path):
    words = ["test", "--spec", folder / "spec.toml", "--out", tmp_path / "run", "--maps"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "4 images:" in out
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").read_text().splitlines()))
    assert [row["status"] for row in rows][3] == "INVALID_INPUT"
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    for row, line in zip(rows, map(json.loads, lines), strict=True):
        if line["status"] == "OK":
            assert float(row["p_value"]) == line["p_value"]
            region = np.load(tmp_path / "run" / "maps" / row["name"] / "region.npy")
            assert region.sum() == int(row["num_tested"])
            assert (tmp_path / "run" / "maps" / row["name"] / "figure.png").stat().st_size > 0
    before = (tmp_path / "run" / "results.jsonl").read_bytes()
    assert run(capsys, *words)[0] == 0  # nothing is left to do
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before
    for one, other in (("0.4", "0.5"), ('"z.npy"', '"x0.npy"')):
        (folder / "other.toml").write_text(SPEC.replace(one, other))
        words[2] = folder / "other.toml"
        code, _, err = run(capsys, *words)
        assert code == 2
        assert "holds another run" in err


@pytest.mark.slow
def test_more_p_values(capsys, folder, tmp_path):
    words = ["test", "--model", folder / "model", "--image", folder / "x[01].npy"]
    words += ["--reference", folder / "[yz].npy", "--noise", "ar1:0.5:1", "--threshold", 0.4]
    more = [*words, "--permutations", 9, "--first-window"]
    found = json.loads(run(capsys, *more, "--json")[1])["results"]
    spec = SPEC.replace("x*", "x[01]") + "permutations = 9\nfirst_window = true\n"
    (folder / "more.toml").write_text(spec)
    again = ["test", "--spec", folder / "more.toml", "--out", tmp_path / "run"]
    assert run(capsys, *again)[0] == 0
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").read_text().splitlines()))
    plain = json.loads(run(capsys, *words, "--no-first-window", "--json")[1])["results"]
    exact = json.loads(run(capsys, *words, "--engine", "sweep", "--json")[1])["results"]
    for one, row, none, other in zip(found, rows, plain, exact, strict=True):
        assert one["over_conditioned_p"] == pytest.approx(other["over_conditioned_p"], rel=1e-10)
        assert 10 * one["permutation_p"] in range(1, 11)
        assert float(row["over_conditioned_p"]) == one["over_conditioned_p"]
        assert float(row["permutation_p"]) == one["permutation_p"]
        assert list(row).index("permutation_p") == list(row).index("bonferroni_log10_p") + 2
        assert none["over_conditioned_p"] is none["permutation_p"] is None
        assert one["num_evaluations"] == none["num_evaluations"] + 10  # the image and 9 others
        assert one["p_value"] == none["p_value"]
    alone = [*more[:3], "--image", folder / "x0.npy", *more[5:], "--json"]
    alone = json.loads(run(capsys, *alone)[1])
    for name in ("over_conditioned_p", "permutation_p", "p_value"):
        assert alone[name] == found[0][name]


def test_compiled_programs_are_kept(capsys, folder, tmp_path):
    words = ["test", "--model", folder / "model", "--image", folder / "x0.npy"]
    words += ["--reference", folder / "y.npy", "--noise", "iid:1", "--cache", tmp_path / "cache"]
    assert run(capsys, *words)[0] == 0
    assert (tmp_path / "cache").is_dir()


BAD = {
    "unknown key": ("thresholds = 1\n", "unknown key 'thresholds'"),
    "no images": (SPEC.replace("images", "seed = 1 #"), "'images' is missing"),
    "no noise": (SPEC.replace("noise", "seed = 1 #"), "'noise' is missing"),
    "no fitting file": (SPEC.replace("x*", "w*"), "no file fits"),
    "type": (SPEC + "precision = 'high'\n", "precision is 'high', expected a number"),
    "zero devices": (SPEC + "devices = 0\n", "devices is 0, expected 1"),
    "batch size": (SPEC + "batch_size = 0\n", "batch_size is 0"),
    "engine": (
        SPEC + "engine = 'exact'\n",
        "expected one of adaptive, sweep, scan",
    ),
    "permutations": (SPEC + "permutations = -1\n", "permutations is -1"),
    "exact permutations": (
        SPEC + "engine = 'sweep'\npermutations = 9\n",
        "permutations is 9, expected 0 with engine 'sweep'",
    ),
    "first window": (SPEC + "first_window = 1\n", "first_window is 1, expected true or false"),
    "no TOML": ("model = \n", "spec"),
    "model": (SPEC.replace('"model"', '"nowhere"'), "nowhere"),
    "reference": (SPEC.replace("y.npy", "missing.npy"), "missing.npy"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_specifications(capsys, folder, case):
    text, words = BAD[case]
    (folder / "bad.toml").write_text(text)
    code, out, err = run(capsys, "test", "--spec", folder / "bad.toml")
    assert code == 2
    assert not out
    assert words in err
    assert err.count("\n") == 1


def test_one_way_to_say_it(capsys, folder):
    for words in (["--model", folder], ["--seed", 0], ["--devices", 1], ["--noise", "iid:2"]):
        code, _, err = run(capsys, "test", "--spec", folder / "spec.toml", *words)
        assert code == 2
        assert f"{words[0]}: expected none with --spec" in err and err.count("\n") == 1
    code, _, err = run(capsys, "test", "--spec", folder / "spec.toml", "--maps")
    assert code == 2
    assert "--maps: expected --out" in err
    code, _, err = run(capsys, "test", "--image", folder / "x0.npy")
    assert code == 2
    assert "--model" in err
