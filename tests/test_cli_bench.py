"""`dal-jax bench`: records, tables, files and refusals, with tiny networks."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("tqdm")

from dal_jax.cli import _bench, _repository, main
from dal_jax.diffusion import DalConfig, ReverseConfig, save_checkpoint
from dal_jax.models import UNetConfig, init_unet


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny untrained network."""
    unet = UNetConfig(1, (2, 3), time_dim=4)
    config = DalConfig(unet=unet, reverse=ReverseConfig(400, 2), image_size=8)
    folder = tmp_path_factory.mktemp("bench") / "model"
    save_checkpoint(folder, init_unet(unet, 0), config)
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main(["bench", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_records_in_print_and_in_a_file(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    words = ["--model", model, "--sizes", 8, "--tests", 5, "--repeats", 1, "--engines", "adaptive"]
    out = tmp_path / "bench.json"
    more = ["--batch-sizes", "2", "--devices", "2", "--threads", 1, "--out", out, "--json"]
    code, printed, told = run(capsys, *words, *more)
    assert code == 0, told
    whole = json.loads(printed)
    assert json.loads(out.read_text()) == whole
    images, adaptive, *speeds = whole["records"]
    assert images["kind"] == "images" and images["machine"]["cores"] >= 1
    assert "checkpoint" in images["weights"]
    assert (adaptive["size"], adaptive["dtype"], adaptive["tests"]) == (8, "float32", 5)
    assert adaptive["overhead_over_forward"] > 0.5  # below 1 by noise alone
    assert adaptive["evaluations_per_test"]["max"] >= adaptive["evaluations_per_test"]["median"] > 1
    assert 0 < adaptive["batch_fill"] <= 1 and 0 < adaptive["float64_share"] < 1
    assert adaptive["seconds_per_test"] > 0 and adaptive["peak_memory_mb"] > 10
    assert adaptive["compile_seconds"] > 0 and adaptive["start_seconds"] > 0
    assert [(s["kind"], s["devices"], s["batch_size"]) for s in speeds] == [
        ("speed", 2, 2),
        ("speed", 2, None),
    ]
    assert all(s["tests_per_second"] > 0 for s in speeds)


def test_what_fails_is_recorded_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(plan: Any, beside: Any) -> Any:
        yield {"kind": "images", "size": 8, "failure": "nothing is flagged"}
        yield {"kind": "engine", "size": 16, "engine": "sweep", "dtype": "float64", "failure": "?"}

    monkeypatch.setattr(_bench, "measure", measured)
    code, out, err = run(capsys)
    assert code == 0
    assert "| 16 " in out and "failed" in out
    assert "size 8: nothing is flagged" in out and "nothing is flagged" in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--sizes", "8,x"], "--sizes"),
        (["--sizes", ""], "sizes"),
        (["--sizes", "0"], "sizes"),
        (["--tests", "0"], "tests"),
        (["--engines", "quick"], "engines"),
        (["--engines", "sweep:float16"], "engines"),
        (["--devices", "0"], "devices"),
        (["--threads", "3"], "threads"),
        (["--repeats", "0"], "repeats"),
        (["--limit-seconds", "0"], "limit_seconds"),
        (["--seed", "-1"], "seed"),
        (["--model", "a", "--weights", "b"], "weights, model"),
        (["--peer-python", "no/such/python"], "--peer-python"),
        (["--peer", "--peer-tests", "0"], "peer"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], words: list[str], named: str) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2 and out == ""
    assert err.startswith("dal-jax bench: ") and named in err and err.count("\n") == 1


def test_the_peer_needs_the_repository(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_repository.dal_jax, "__file__", str(tmp_path / "dal_jax" / "__init__.py"))
    code, _, err = run(capsys, "--peer")
    assert code == 2 and "benchmarks" in err and err.count("\n") == 1
