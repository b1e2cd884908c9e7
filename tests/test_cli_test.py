"""`dal-jax test` of images without a profile: patterns, specifications, runs on disk."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from dal_jax import DalConfig, InputError, TestOptions
from dal_jax.cli import main
from dal_jax.cli._spec import expand_patterns
from dal_jax.diffusion import save_checkpoint
from dal_jax.inference import NullLaw
from dal_jax.inspection import inspect_images
from dal_jax.inspection._calibration import observed_of
from dal_jax.localizers import load_localizer
from dal_jax.models import UNetConfig, init_unet
from dal_jax.runs import Host

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
    assert found["images"] == 4 and found["decisions"]["no valid result"] == 1
    assert [r["name"] for r in found["results"]] == [f"x{k}.npy" for k in range(4)]
    words = ["test", "--model", folder / "model", "--image", folder / "x[01].npy"]
    words += ["--image", folder / "x2.npy", "--image", folder / "x3.npy"]
    words += ["--reference", folder / "[yz].npy", "--noise", "ar1:0.5:1", "--threshold", 0.4]
    same = json.loads(run(capsys, *words, "--json")[1])
    for one, two in zip(found["results"], same["results"], strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    alone = run(capsys, *words[:3], "--image", folder / "x1.npy", *words[9:], "--json")
    [alone] = json.loads(alone[1])["results"]
    assert alone.keys() == found["results"][1].keys()
    assert alone["p_value"] == found["results"][1]["p_value"]
    table = run(capsys, *words)[1]
    assert [row["name"] for row in csv.DictReader(table.splitlines())] == [
        f"x{k}.npy" for k in range(4)
    ]


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "results.csv").read_text().splitlines()))


def test_a_run_on_disk(capsys, folder, tmp_path):
    words = ["test", "--spec", folder / "spec.toml", "--out", tmp_path / "out", "--maps"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "4 views of 4 images: " in out and "random points checked" in out
    rows, home = rows_of(tmp_path / "out"), tmp_path / "out"
    assert [row["status"] for row in rows][3] == "INVALID_INPUT"
    lines = (home / "run" / "results.jsonl").read_text().splitlines()
    for row, line in zip(rows, map(json.loads, lines), strict=True):
        if line["status"] == "OK":
            assert float(row["p_value"]) == line["p_value"]
            region = np.load(home / "maps" / row["name"] / "region.npy")
            assert region.sum() == int(row["num_tested"])
            where = [int(row[side]) for side in ("top", "left", "bottom", "right")]
            inside = np.argwhere(region)
            assert where == [*inside.min(0), *(inside.max(0) + 1)]
            assert (home / "maps" / row["name"] / "figure.png").stat().st_size > 0
            assert (home / "overlays" / f"{row['name']}.png").stat().st_size > 0
    assert not (home / "maps" / "x3.npy").exists()
    before = [(home / name).read_bytes() for name in ("results.csv", "run/results.jsonl")]
    assert run(capsys, *words)[0] == 0  # nothing is left to do
    assert before == [(home / name).read_bytes() for name in ("results.csv", "run/results.jsonl")]
    for one, other in (("0.4", "0.5"), ('"z.npy"', '"x0.npy"')):
        (folder / "other.toml").write_text(SPEC.replace(one, other))
        words[2] = folder / "other.toml"
        code, _, err = run(capsys, *words)
        assert code == 2
        assert "holds another run" in err


def test_a_run_of_images_has_a_page(capsys, folder, tmp_path):
    pytest.importorskip("jinja2")
    words = ["--spec", folder / "spec.toml", "--out", tmp_path, "--alpha", "0.9"]
    assert run(capsys, "test", *words)[0] == 2  # the file says it
    (folder / "level.toml").write_text(SPEC + "alpha = 0.9\nregion = 'components'\n")
    words = ["--spec", folder / "level.toml", "--out", tmp_path]
    assert run(capsys, "test", *words)[0] == 0
    assert json.loads((tmp_path / "test.json").read_text())["alpha"] == 0.9
    rows = rows_of(tmp_path)
    assert {row["decision"] for row in rows} >= {"significant", "no valid result"}
    code, out, _ = run(capsys, "report", tmp_path)
    assert code == 0 and "of 4 views of 4 images: " in out and "3 pictures" in out


def test_images_of_one_name_go_by_their_folders(folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", np.load(folder / "x0.npy"))
    given = [tmp_path / "a" / "x.npy", tmp_path / "b" / ".." / "b" / "x.npy"]
    files = [folder / "y.npy"]
    localizer = load_localizer(folder / "model", 0.4)
    found = inspect_images(localizer, given, files, "iid:1", tmp_path / "out")
    assert [one.name for one in found.views] == ["a/x.npy", "b/x.npy"]
    assert (tmp_path / "out" / "overlays" / "a" / "x.npy.png").is_file()
    assert [one.warning for one in found.views] == ["", "the same picture as a/x.npy"]
    with pytest.raises(InputError, match=r"images: 'x\.npy' is given 2 times, expected once"):
        inspect_images(localizer, [given[0]] * 2, files, "iid:1", None)
    with pytest.raises(InputError, match="references: got none"):
        inspect_images(localizer, given, [], "iid:1", None)
    with pytest.raises(InputError, match="out: got none, expected a directory"):
        inspect_images(localizer, given, files, "iid:1", None, host=Host(0, 2))


def test_p_values_of_other_noise_have_the_alternative_of_the_test(folder):
    localizer = load_localizer(folder / "model", 0.4)
    files = [folder / f"x{k}.npy" for k in range(3)], [folder / "y.npy"]
    for alternative in ("greater", "less"):
        options = TestOptions(alternative=alternative, randomization=0.0)
        found = inspect_images(localizer, *files, "iid:1", None, options)
        for one, record in zip(found.views, found.records, strict=True):
            expected = NullLaw(1.25).p_value(observed_of(record), alternative)
            assert one.p_sigma[1.25] == expected != NullLaw(1.25).p_value(observed_of(record))


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
    rows = rows_of(tmp_path / "run")
    plain = json.loads(run(capsys, *words, "--no-first-window", "--json")[1])["results"]
    exact = json.loads(run(capsys, *words, "--engine", "sweep", "--json")[1])["results"]
    for one, row, none, other in zip(found, rows, plain, exact, strict=True):
        assert one["over_conditioned_p"] == pytest.approx(other["over_conditioned_p"], rel=1e-10)
        assert 10 * one["permutation_p"] in range(1, 11)
        assert float(row["over_conditioned_p"]) == one["over_conditioned_p"]
        assert float(row["permutation_p"]) == one["permutation_p"]
        assert none["over_conditioned_p"] is none["permutation_p"] is None
        assert one["num_evaluations"] == none["num_evaluations"] + 10  # the image and 9 others
        assert one["p_value"] == none["p_value"]
    alone = [*more[:3], "--image", folder / "x0.npy", *more[5:], "--json"]
    [alone] = json.loads(run(capsys, *alone)[1])["results"]
    for name in ("over_conditioned_p", "permutation_p", "p_value"):
        assert alone[name] == found[0][name]


BAD = {
    "unknown key": ("thresholds = 1\n", "unknown key 'thresholds'"),
    "no images": (SPEC.replace("images", "seed = 1 #"), "'images' is missing"),
    "no noise": (SPEC.replace("noise", "seed = 1 #"), "'noise' is missing"),
    "no fitting file": (SPEC.replace("x*", "w*"), "no file fits"),
    "type": (SPEC + "precision = 'high'\n", "precision: got 'high', expected a number"),
    "zero devices": (SPEC + "devices = 0\n", "devices: got 0, expected 1"),
    "batch size": (SPEC + "batch_size = 0\n", "batch_size: got 0"),
    "engine": (
        SPEC + "engine = 'exact'\n",
        "expected one of adaptive, sweep, scan",
    ),
    "permutations": (SPEC + "permutations = -1\n", "permutations: got -1"),
    "exact permutations": (
        SPEC + "engine = 'sweep'\npermutations = 9\n",
        "permutations: got 9, expected 0 with engine 'sweep'",
    ),
    "first window": (SPEC + "first_window = 1\n", "first_window: got 1, expected true or false"),
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
