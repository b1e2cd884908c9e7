"""An experiment shared by two processes that talk to each other gives the same tables."""

import os
import socket
import subprocess
import sys

import pytest
from experiment_cases import assert_same_tables, tables

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

SPEC = """
size = 8
steps = [1]
etas = [1.0]
starts = [460]
default_steps = 2
calibration_images = 4
null_images = 6
images = 4
signals = [3.0]
timed_images = 2
channels = [4, 8]
train_size = 8
train_steps = 2
threshold = 0.4
"""


def start(folder, out, *words):
    code = "import sys; from dal_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "experiment", "steps"]
    command += ["--spec", "spec.toml", "--out", out]
    return subprocess.Popen(
        [*command, "--models", f"models-{out}", *words],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow  # that shared runs give the same results is in test_test_run.py, too
def test_two_processes_share_an_experiment(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id"]
    together = [start(tmp_path, "two", *shared, str(index)) for index in range(2)]
    for process in [*together, start(tmp_path, "one")]:
        said, _ = process.communicate(timeout=280)
        assert process.returncode == 0, said
    names = {"steps.csv", "steps.npz", "thresholds.csv", "work.csv", "runs.csv"}
    assert names <= tables(tmp_path / "one").keys()
    assert_same_tables(tmp_path / "two", tmp_path / "one")
    shards = list((tmp_path / "two" / "runs").glob("*/shard-00001-*.jsonl"))
    assert any(len(path.read_text().splitlines()) > 1 for path in shards)
