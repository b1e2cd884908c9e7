"""The job scripts of examples/: run with a stand-in for srun and mpirun."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_runs_hosts import CLUSTER, WORKER, check_run, free_port

EXAMPLES = Path(__file__).parents[1] / "examples"
# Each stand-in starts the command NTASKS times at once, with the variables of the real one.
STARTERS = {
    "srun": """#!/bin/bash
for option; do
  case "$option" in
    --ntasks=*) n=${option#*=} ;;
    --*) ;;
    *) break ;;
  esac
  shift
done
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=$n
for ((k = 0; k < n; k++)); do SLURM_PROCID=$k SLURM_LOCALID=$((k % 2)) "$@" & done
wait
""",
    "mpirun": """#!/bin/bash
[ "$1" = -n ] || exit 9
n=$2; shift 2
for ((k = 0; k < n; k++)); do env "$RANK=$k" "$@" & done
wait
""",
}
# Prints its arguments and what it was told in variables.
REPORT = f"""#!{sys.executable}
import json, os, sys
names = [n for n in os.environ if n.startswith(("DAL_JAX", "JAX_LOCAL", "SLURM_PROCID"))]
line = json.dumps([sys.argv[1:], {{n: os.environ[n] for n in names}}, os.getcwd()])
os.write(1, (line + "\\n").encode())
"""


def job(scheduler: str, command: list[str], **changes: str) -> str:
    """A script as a user edits it: another command, and other lines in place of some."""
    text = (EXAMPLES / f"{scheduler}.sh").read_text()
    lines = {
        "command=(dal-jax test --spec run.toml --out run)": f"command=({shlex.join(command)})",
        "source env/bin/activate": "true",
        "module load openmpi": "true",
    }
    for old, new in {**lines, **changes}.items():
        assert text.count(f"\n{old}\n") == (0 if scheduler == "slurm" and "module" in old else 1)
        text = text.replace(f"\n{old}\n", f"\n{new}\n")
    return text


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose PATH begins with the stand-ins."""
    (tmp_path / "bin").mkdir()
    for name, text in {**STARTERS, "report": REPORT}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "nodes").write_text("127.0.0.1\n" * 4)
    (tmp_path / "home").mkdir()
    kept = {name: v for name, v in os.environ.items() if not name.startswith(CLUSTER)}
    return {
        **kept,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "4",
        "PBS_JOBID": "4711.server",
        "PBS_NODEFILE": str(tmp_path / "nodes"),
        "PBS_O_WORKDIR": str(tmp_path / "home"),
        "RANK": "OMPI_COMM_WORLD_RANK",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }


def bash(script: str, environ: dict[str, str]) -> str:
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0 and checked.stderr == ""
    path = Path(environ["PBS_NODEFILE"]).with_name("job.sh")
    path.write_text(script)
    done = subprocess.run(
        ["bash", str(path)],
        env=environ,
        cwd=environ["PBS_O_WORKDIR"],
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def reports(script: str, environ: dict[str, str]) -> list[Any]:
    found = [json.loads(line) for line in bash(script, environ).splitlines()]
    return sorted(found, key=lambda report: sorted(report[1].items()))


@pytest.mark.parametrize("rank", ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"])
@pytest.mark.parametrize("gpus", [0, 2])
def test_pbs_tells_each_process_who_it_is(cluster: dict[str, str], rank: str, gpus: int) -> None:
    numbers = "processes_per_node=2 gpus_per_process="
    script = job("pbs", ["report", "two words"], **{f"{numbers}2": f"{numbers}{gpus}"})
    found = reports(script, {**cluster, "RANK": rank})
    assert all(words == ["two words"] for words, _, _ in found)
    assert all(folder == cluster["PBS_O_WORKDIR"] for _, _, folder in found)
    port = 61440 + 4711 % 4096
    assert [variables for _, variables, _ in found] == [
        {
            "DAL_JAX_COORDINATOR": f"127.0.0.1:{port}",
            "DAL_JAX_NUM_PROCESSES": "4",
            "DAL_JAX_PROCESS_ID": str(k),
            **({"JAX_LOCAL_DEVICE_IDS": ["0,1", "2,3"][k % 2]} if gpus else {}),
        }
        for k in range(4)
    ]


@pytest.mark.parametrize(("gpus", "ids"), [(0, {"None"}), (2, {"None"}), (4, {"0,1", "2,3"})])
def test_slurm_shares_the_gpus(cluster: dict[str, str], gpus: int, ids: set[str]) -> None:
    node = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    node |= {"SLURM_GPUS_ON_NODE": str(gpus)} if gpus else {}
    found = reports(job("slurm", ["report", "two words"]), {**cluster, **node})
    assert [words for words, _, _ in found] == [["two words"]] * 2
    # One GPU each is what JAX does by itself.
    assert {str(variables.get("JAX_LOCAL_DEVICE_IDS")) for _, variables, _ in found} == ids


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_processes_of_a_job_find_one_another(
    cluster: dict[str, str], tmp_path: Path, scheduler: Any
) -> None:
    port = free_port()
    while port < 61440:  # the ports that follow from the number of a job
        port = free_port() % 4096 + 61440
    number = str(port - 61440)
    (tmp_path / "nodes").write_text("127.0.0.1\n" * 2)
    environ = {
        **cluster,
        "SLURM_JOB_ID": number,
        "SLURM_NTASKS": "2",
        "PBS_JOBID": f"{number}[3].server",
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
    }
    run = tmp_path / "run"
    numbers = {"processes_per_node=2 gpus_per_process=2": "processes_per_node=2 gpus_per_process=0"}
    script = job(
        scheduler,
        [sys.executable, "-c", WORKER, str(run)],
        **(numbers if scheduler == "pbs" else {}),
    )
    check_run(run, bash(script, environ).splitlines(keepends=True), 2)


def test_slurm_goes_back_into_the_queue(cluster: dict[str, str]) -> None:
    folder = Path(cluster["PBS_NODEFILE"]).parent
    (folder / "bin" / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"; exit "$REFUSED"\n')
    (folder / "bin" / "scontrol").chmod(0o755)
    # The step signals the job's shell as Slurm does, goes on, and fails in the end.
    step = 'kill -USR1 "$1"; sleep 0.3; echo finished; exit 3'
    path = folder / "job.sh"
    path.write_text(job("slurm", ["bash", "-c", step, "bash", "SHELL"]).replace("SHELL", '"$$"'))
    (folder / "bin" / "srun").write_text('#!/bin/bash\nshift 3; exec "$@"\n')
    for restarts, refused in (("0", "0"), ("49", "1"), ("50", "0")):
        environ = {**cluster, "SLURM_RESTART_COUNT": restarts, "REFUSED": refused}
        done = subprocess.run(["bash", str(path)], env=environ, text=True, capture_output=True)
        assert done.returncode == 3
        expected = ["scontrol requeue 4711", "finished"][restarts == "50" :]
        assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_failed_setup_stops_the_job(
    cluster: dict[str, str], tmp_path: Path, scheduler: str
) -> None:
    script = job(scheduler, ["report"]).replace("\ntrue\n", "\nfalse\n")
    (tmp_path / "job").write_text(script)
    done = subprocess.run(["bash", str(tmp_path / "job")], env=cluster, capture_output=True)
    assert done.returncode == 1 and done.stdout == b""
