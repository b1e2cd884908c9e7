"""Type I error and power: complete tables, however often a run was interrupted; bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from experiment_cases import (
    assert_figures_and_words,
    assert_same_tables,
    check_resumed,
    finished,
    narrow_models,
    records,
    table,
    tables,
    tear_anywhere,
)

from dal_jax.cli import main
from experiments import NAMES, _experiment, _methods, power, type1_error
from experiments._experiment import Context, run_experiment
from experiments._models import Model
from experiments._records import METHODS

SMALL: dict[str, Any] = {
    "sizes": (8,),
    "images": (12,),
    "permutation_images": (4,),
    "permutations": 20,
    "train_sizes": (8,),
    "train_steps": 2,
    "threshold": 1.6,  # some images of this network have no region, some have
}
TYPE1 = type1_error.Settings(**SMALL)
POWER = power.Settings(**{**SMALL, "noises": ("iid:1",), "signals": (0.5, 4.0)})
PUBLISHED = [method for method in METHODS if method != "thinned"]  # those without randomization
SPEC = "\n".join(
    f"{key} = {list(value) if isinstance(value, tuple) else value}" for key, value in SMALL.items()
)


_narrow = narrow_models(_methods)
type1 = finished("type1_error", TYPE1)
powered = finished("power", POWER)


@pytest.mark.slow
def test_the_tables_are_complete(type1: Path):
    rows = table(type1, "type1_error")
    keys = [(row["noise"], row["method"], row["alpha"]) for row in rows]
    assert len(set(keys)) == len(keys) == len(TYPE1.noises) * len(PUBLISHED) * len(TYPE1.levels)
    for row in rows:
        few = row["method"] == "permutation"
        assert row["images"] == (4 if few else 12)
        assert row["tested"] + row["no_region"] + row["failed"] == row["images"]
        assert row["failed"] == 0
        assert row["rejected"] <= row["tested"]
    head, *lines = (type1 / "type1_error.csv").read_text().splitlines()
    assert head.split(",") == list(rows[0]) and len(lines) == len(rows)
    runs = table(type1, "runs")
    assert len({row["run"] for row in runs}) == len(runs) == 2 * len(TYPE1.noises)


@pytest.mark.slow
def test_empty_regions_are_counted(type1: Path):
    found = 0
    for row in table(type1, "type1_error"):
        part = "permutation" if row["method"] == "permutation" else "window"
        name = f"size=8-noise={row['noise'].replace(':', '_')}-baselines={part}"
        states = [record["status"] for record in records(type1, name)]
        assert row["no_region"] == states.count("NO_REGION")
        assert row["tested"] == states.count("OK")
        found += row["no_region"]
    assert found  # or the test would show nothing


@pytest.mark.slow
def test_the_permutation_images_are_the_first_ones(type1: Path):
    for noise in ("iid_1", "ar1_0.5_1"):
        whole, few = (
            records(type1, f"size=8-noise={noise}-baselines={part}")
            for part in ("window", "permutation")
        )
        for one, two in zip(whole, few, strict=False):
            assert one["region"] == two["region"]
            assert one["naive_p"] == two["naive_p"]
        # 20 permutations: multiples of 1/21, none of them 0.
        p = [record["permutation_p"] for record in few if record["status"] == "OK"]
        assert p and np.allclose(np.array(p) * 21 % 1 % 1, 0, atol=1e-9) and min(p) > 0


@pytest.mark.slow
def test_power_and_its_regions(powered: Path):
    rows = table(powered, "power")
    assert {(row["signal"], row["method"]) for row in rows} == {
        (signal, method) for signal in POWER.signals for method in PUBLISHED
    }
    regions = table(powered, "regions")
    assert [row["signal"] for row in regions] == list(POWER.signals)
    for row in regions:
        states = [
            record["status"]
            for record in records(
                powered, f"size=8-noise=iid_1-signal={row['signal']}-baselines=window"
            )
        ]
        assert row["no_region"] == states.count("NO_REGION")
        assert 0 <= row["touching"] <= row["images"] - row["no_region"]
        assert 0 < row["flagged_share"] <= 1 and 0 <= row["covered_share"] <= 1


@pytest.mark.slow
def test_the_rest_is_written(type1: Path, powered: Path):
    for out, name in ((type1, "type1_error"), (powered, "power")):
        assert_figures_and_words(out, [name], PUBLISHED)
        assert json.loads((out / "experiment.json").read_text())["experiment"] == name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_cut_off_anywhere_goes_on_to_the_same_tables(
    type1: Path, powered: Path, models: Path, tmp_path: Path, seed: int
):
    name, settings, whole = (("type1_error", TYPE1, type1), ("power", POWER, powered))[seed % 2]
    assert len(list(whole.glob("runs/*/shard-*.jsonl"))) >= 4
    context = Context(tmp_path / "out", models)
    check_resumed(name, settings, whole, context, tear_anywhere(seed))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_tables(
    type1: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    load, calls = _experiment._Load.__call__, []

    def interrupted(self: Any) -> Any:
        calls.append(self.number)
        if len(calls) in (5, 14, 30):
            raise KeyboardInterrupt
        return load(self)

    monkeypatch.setattr(_experiment._Load, "__call__", interrupted)
    context = Context(tmp_path, models, batch_size=2)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_experiment("type1_error", type1_error.EXPERIMENT, TYPE1, context)
        assert not tables(tmp_path)
    run_experiment("type1_error", type1_error.EXPERIMENT, TYPE1, context)
    assert_same_tables(tmp_path, type1)


def _refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The one line with which the command refuses."""
    code = main(["experiment", *map(str, words)])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert err.startswith("dal-jax experiment: ")
    return err


@pytest.mark.parametrize(
    ("words", "spec", "message"),
    [
        (["typ1_error"], "", "unknown experiment 'typ1_error', did you mean 'type1_error'?"),
        (["dance"], "", "unknown experiment 'dance', expected type1_error, power"),
        (["power", "--preset", "papr"], "", "unknown 'papr', did you mean 'paper'?"),
        (["power"], 'preset = "slow"', "unknown 'slow', expected quick, standard, paper"),
        (["power"], "signal = [1.0]", "unknown key 'signal', did you mean 'signals'?"),
        (["type1_error"], "sises = [8]", "unknown key 'sises', did you mean 'sizes'?"),
        (["type1_error"], "sizes = 8", "sizes: got 8, expected a list"),
        (["type1_error"], "sizes = [8.5]", "sizes: got 8.5, expected a whole number"),
        (["type1_error"], 'precision = "high"', "precision: got 'high', expected a number"),
        (["type1_error"], "engine = 1", "engine: got 1, expected a string"),
        (["type1_error"], "over_conditioned = 1", "expected true or false"),
        (["type1_error"], "train_steps = true", "train_steps: got True, expected a whole number"),
        (["type1_error"], "sizes = [8, 16]", "images has 1 entries, expected 2, one for each of"),
        (["type1_error"], "sizes = []", "sizes is empty"),
        (["type1_error"], "sizes = [8", "--spec"),
        (["type1_error", "--seed", "-1"], "", "--seed: got -1, expected 0 or more"),
        (["type1_error"], "seed = -1", "seed: got -1, expected 0 or more"),
        (["type1_error"], "preset = ['quick']", "preset: unknown ['quick']"),
        (["type1_error"], "levels = []", "levels is empty"),
        (["power"], "signals = []", "signals is empty"),
        pytest.param(  # is noticed when the model has been trained
            *(["power"], "threshold = -1", "threshold: got -1.0, expected a positive"),
            marks=pytest.mark.slow,
        ),
        (["type1_error"], "precision = 2", "precision: got 2.0, expected"),
        (["type1_error"], 'engine = "exakt"', "engine: got 'exakt', expected one of"),
        (["power"], 'noises = ["pink"]', "noise 'pink': expected iid:SIGMA"),
        (["power"], "images = [0]\npermutation_images = [0]", "nothing to be tested"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    models: Path,
    tmp_path: Path,
    words: list[str],
    spec: str,
    message: str,
):
    given = {line.partition(" =")[0] for line in spec.splitlines()}
    rest = [line for line in SPEC.splitlines() if line.partition(" =")[0] not in given]
    (tmp_path / "spec.toml").write_text("\n".join([spec, *rest]))
    folders = ["--out", tmp_path / "out", "--models", models]
    assert message in _refused(capsys, *words, "--spec", tmp_path / "spec.toml", *folders)
    assert not list(tmp_path.glob("out/*"))


def test_a_missing_specification_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    words = ("power", "--spec", tmp_path / "no.toml", "--out", tmp_path / "out")
    assert "no such file" in _refused(capsys, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["power"], "holds experiment 'type1_error', expected 'power'"),
        (["type1_error", "--seed", "1"], "holds a run with seed = 0, expected 1"),
        (["type1_error", "--preset", "paper"], "holds a run with"),
    ],
)
def test_another_run_is_not_overwritten(
    capsys: pytest.CaptureFixture[str],
    type1: Path,
    models: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
):
    (tmp_path / "spec.toml").write_text(SPEC)
    before = {path: path.read_bytes() for path in type1.rglob("*") if path.is_file()}
    spec = ["--spec", tmp_path / "spec.toml"] if "--preset" not in words else []
    error = _refused(capsys, *words, *spec, "--out", type1, "--models", models)
    assert message in error and str(type1) in error
    assert {path: path.read_bytes() for path in type1.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "mine", "holds 'thesis.tex' and no experiment.json"),
        ("experiment.json", "{", "experiment.json': damaged"),
        ("experiment.json", "[]", "experiment.json': damaged"),
        ("experiment.json", '{"experiment": "power"}', "experiment.json': damaged"),
    ],
)
def test_foreign_files_are_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: str, message: str
):
    (tmp_path / name).write_text(content)
    assert message in _refused(capsys, "type1_error", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


@pytest.mark.slow
def test_the_command_runs_and_goes_on(
    capsys: pytest.CaptureFixture[str], type1: Path, models: Path, tmp_path: Path
):
    (tmp_path / "spec.toml").write_text(SPEC)
    words = ["experiment", "type1_error", "--spec", tmp_path / "spec.toml"]
    words += ["--out", type1, "--models", models]
    before = tables(type1)
    assert main([str(word) for word in words]) == 0
    assert (
        capsys.readouterr().out.strip()
        == type1_error.summary(
            {name: table(type1, name) for name in ("type1_error", "effects", "work")}
        ).strip()
    )
    np.testing.assert_equal(tables(type1), before)  # NaN is equal to NaN here
    assert main([*map(str, words), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == {"experiment": "type1_error", "out": str(type1)}


def test_experiments_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["experiment", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)


@pytest.mark.study
def test_null_p_values_are_uniform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some minutes: a model of this project's training, 5000 null images of size 8."""
    monkeypatch.setattr(_methods, "Model", Model)
    settings = type1_error.Settings(
        sizes=(8,),
        noises=("iid:1",),
        images=(5000,),
        permutation_images=(0,),
        train_sizes=(8,),
        over_conditioned=False,
    )
    context = Context(tmp_path / "out", tmp_path / "models")
    run_experiment("type1_error", type1_error.EXPERIMENT, settings, context)
    rows = table(tmp_path / "out", "type1_error")
    assert {row["method"] for row in rows} == {"selective", "naive", "bonferroni"}
    for row in rows:
        alpha = row["alpha"]
        error = np.sqrt(alpha * (1 - alpha) / row["tested"])
        assert row["failed"] == 0 and row["tested"] > 2000
        if row["method"] == "selective":
            assert abs(row["rate"] - alpha) <= 2 * error
            assert row["ks_p"] > 0.01
        elif row["method"] == "naive" and alpha == 0.05:
            assert row["rate"] - alpha > 5 * error
        elif row["method"] == "bonferroni":
            assert row["rejected"] == 0
