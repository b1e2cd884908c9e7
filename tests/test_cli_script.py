"""`dal-jax script`: the command line of a local run becomes a job."""

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("tqdm")

from dal_jax.cli import main
from dal_jax.runs import job_script

COMMAND = ["test", "--spec", "my run.toml", "--out", "run", "--json"]


def test_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["script", "slurm", "--nodes", "2", "--setup", "module load a", "--setup", "true"]
    assert main([*words, "--", *COMMAND]) == 0
    out, err = capsys.readouterr()
    expected = job_script("slurm", ["dal-jax", *COMMAND], nodes=2, setup=["module load a", "true"])
    assert out == expected and err == ""
    assert "command=(dal-jax test --spec 'my run.toml' --out run --json)" in out
    assert out.index("module load a") < out.index("\ntrue") < out.index("command=(")


def test_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "nodes": 2,
        "processes-per-node": 4,
        "gpus-per-node": 8,
        "cpus-per-process": 6,
        "time": "3:00:00",
        "memory": "100G",
        "account": "a",
        "name": "n",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    given = {name.replace("-", "_"): value for name, value in options.items()}
    for scheduler, queue in (("slurm", "--partition"), ("pbs", "--queue")):
        assert main(["script", scheduler, *words, queue, "q", "--", *COMMAND]) == 0
        expected = job_script(scheduler, ["dal-jax", *COMMAND], queue="q", **given)  # type: ignore
        assert capsys.readouterr().out == expected


def test_writes_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "jobs" / "run.sh"
    assert main(["script", "pbs", "--out", str(path), "--", *COMMAND]) == 0
    assert capsys.readouterr().out == f"qsub {path}\n"
    assert path.read_text() == job_script("pbs", ["dal-jax", *COMMAND])
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0

    assert main(["script", "slurm", "--json", "--", *COMMAND]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["scheduler"] == "slurm" and fields["out"] is None
    assert fields["script"] == job_script("slurm", ["dal-jax", *COMMAND])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm"], "COMMAND"),
        (["lsf", "--", *COMMAND], "lsf"),
        (["slurm", "--nodes", "0", "--", *COMMAND], "nodes: got 0"),
        (["slurm", "--gpus-per-node", "0", "--", *COMMAND], "gpus_per_node: got 0"),
        (["pbs", "--processes-per-node", "-1", "--", *COMMAND], "processes_per_node: got -1"),
        (["pbs", "--out", "/dev/null/job.sh", "--", *COMMAND], "cannot write"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["script", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["script", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--seed" in out and "--json" in out and "--setup" in out
