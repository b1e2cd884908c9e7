"""Job scripts: well-formed, well quoted, and run with a stand-in for srun and mpirun."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_runs_hosts import CLUSTER, WORKER, check_run, free_port

from dal_jax import InputError
from dal_jax.runs import job_script

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
HARD = ["two words", "it's", '"', "$HOME", "`id`", "a\nb", "*", "\\", "", "--", "ü"]


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose PATH begins with the stand-ins."""
    (tmp_path / "bin").mkdir()
    for name, text in {**STARTERS, "report": REPORT}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "nodes").write_text("127.0.0.1\n127.0.0.1\n")
    (tmp_path / "home").mkdir()
    kept = {name: v for name, v in os.environ.items() if not name.startswith(CLUSTER)}
    return {
        **kept,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
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


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("gpus", [None, 4])
def test_words_arrive_as_they_are(
    cluster: dict[str, str], scheduler: Any, processes: int, gpus: int | None
) -> None:
    setup = ["export EXTRA='set up'", 'test "$EXTRA" = "set up"']
    script = job_script(
        scheduler,
        ["report", *HARD],
        nodes=2 if processes == 2 else 1,
        processes_per_node=processes,
        gpus_per_node=gpus,
        setup=setup,
    )
    found = reports(script, cluster)
    assert len(found) == (4 if processes == 2 else 1)
    assert all(words == HARD for words, _, _ in found)
    assert all(folder == cluster["PBS_O_WORKDIR"] for _, _, folder in found)


@pytest.mark.parametrize("rank", ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"])
def test_pbs_tells_each_process_who_it_is(cluster: dict[str, str], rank: str) -> None:
    script = job_script("pbs", ["report"], nodes=2, processes_per_node=2, gpus_per_node=4)
    found = [variables for _, variables, _ in reports(script, {**cluster, "RANK": rank})]
    port = 61440 + 4711 % 4096
    assert found == [
        {
            "DAL_JAX_COORDINATOR": f"127.0.0.1:{port}",
            "DAL_JAX_NUM_PROCESSES": "4",
            "DAL_JAX_PROCESS_ID": str(k),
            "JAX_LOCAL_DEVICE_IDS": ["0,1", "2,3"][k % 2],
        }
        for k in range(4)
    ]


@pytest.mark.parametrize(("gpus", "ids"), [(None, [None, None]), (2, [None, None]), (4, "02")])
def test_slurm_shares_the_gpus(cluster: dict[str, str], gpus: int | None, ids: Any) -> None:
    script = job_script("slurm", ["report"], processes_per_node=2, gpus_per_node=gpus)
    found = [variables.get("JAX_LOCAL_DEVICE_IDS") for _, variables, _ in reports(script, cluster)]
    # One GPU each is what JAX does by itself.
    assert sorted(map(str, found)) == (["0,1", "2,3"] if gpus == 4 else ["None", "None"])


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_processes_of_a_job_find_one_another(
    cluster: dict[str, str], tmp_path: Path, scheduler: Any
) -> None:
    port = free_port()
    while port < 61440:  # the ports that follow from the number of a job
        port = free_port() % 4096 + 61440
    number = str(port - 61440)
    address = f"127.0.0.1:{port}"
    environ = {
        **cluster,
        "SLURM_JOB_ID": number,
        "PBS_JOBID": f"{number}[3].server",
        "JAX_COORDINATOR_BIND_ADDRESS": address,
    }
    run = tmp_path / "run"
    command = [sys.executable, "-c", WORKER, str(run)]
    out = bash(job_script(scheduler, command, processes_per_node=2), environ)
    check_run(run, out.splitlines(keepends=True), 2)


def test_slurm_goes_back_into_the_queue(cluster: dict[str, str]) -> None:
    folder = Path(cluster["PBS_NODEFILE"]).parent
    (folder / "bin" / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"; exit "$REFUSED"\n')
    (folder / "bin" / "scontrol").chmod(0o755)
    # The step signals the job's shell as Slurm does, goes on, and fails in the end.
    step = 'kill -USR1 "$1"; sleep 0.3; echo finished; exit 3'
    script = job_script("slurm", ["bash", "-c", step, "bash", "SHELL"]).replace("SHELL", '"$$"')
    path = folder / "job.sh"
    path.write_text(script)
    (folder / "bin" / "srun").write_text('#!/bin/bash\nshift 3; exec "$@"\n')
    for restarts, refused in (("0", "0"), ("49", "1"), ("50", "0")):
        environ = {**cluster, "SLURM_RESTART_COUNT": restarts, "REFUSED": refused}
        done = subprocess.run(["bash", str(path)], env=environ, text=True, capture_output=True)
        assert done.returncode == 3
        expected = ["scontrol requeue 4711", "finished"][restarts == "50" :]
        assert done.stdout.splitlines() == expected, done.stderr


def test_failed_setup_stops_the_job(cluster: dict[str, str], tmp_path: Path) -> None:
    for scheduler in ("slurm", "pbs"):
        (tmp_path / "job").write_text(job_script(scheduler, ["report"], setup=["false"]))  # type: ignore
        done = subprocess.run(["bash", str(tmp_path / "job")], env=cluster, capture_output=True)
        assert done.returncode == 1 and done.stdout == b""


def directives(script: str) -> list[str]:
    return re.findall(r"^#(?:SBATCH|PBS) (.*)$", script, re.MULTILINE)


def test_what_is_asked_for() -> None:
    options: Any = dict(
        nodes=3,
        processes_per_node=2,
        gpus_per_node=8,
        cpus_per_process=5,
        time="1-02:03:04",
        memory="64G",
        queue="long",
        account="project-1",
        name="null_study",
    )
    slurm, pbs = (job_script(s, ["dal-jax", "test"], **options) for s in ("slurm", "pbs"))
    assert directives(slurm) == [
        "--job-name=null_study",
        "--nodes=3",
        "--ntasks-per-node=2",
        "--cpus-per-task=5",
        "--gpus-per-node=8",
        "--mem=64G",
        "--time=26:03:04",
        "--partition=long",
        "--account=project-1",
        "--output=%x-%j.log",
        "--open-mode=append",
        "--signal=B:USR1@120",
        "--requeue",
    ]
    assert directives(pbs) == [
        "-N null_study",
        "-l select=3:ncpus=10:mpiprocs=2:ngpus=8:mem=64gb",
        "-l place=scatter",
        "-l walltime=26:03:04",
        "-q long",
        "-A project-1",
        "-j oe",
        "-r y",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"nodes": 0},
        {"nodes": -1},
        {"nodes": 1.5},
        {"processes_per_node": 0},
        {"gpus_per_node": 0},
        {"gpus_per_node": -2},
        {"gpus_per_node": 3, "processes_per_node": 2},
        {"gpus_per_node": 1, "processes_per_node": 2},
        {"cpus_per_process": 0},
        {"time": "0:00:00"},
        {"time": "soon"},
        {"time": "1:99:00"},
        {"memory": "0G"},
        {"memory": "-4G"},
        {"memory": "lots"},
        {"queue": "a\n#SBATCH --x"},
        {"account": "two words"},
        {"name": ""},
        {"name": "-x"},
    ],
    ids=str,
)
@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_nonsense_is_refused(scheduler: Any, options: dict[str, Any]) -> None:
    first = next(iter(options))
    with pytest.raises(InputError, match=f"^{first}: got .*expected") as caught:
        job_script(scheduler, ["dal-jax"], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", [[], "dal-jax test", ["a\0b"]])
def test_nonsense_commands_are_refused(command: Any) -> None:
    with pytest.raises(InputError, match="command"):
        job_script("slurm", command)


def test_other_schedulers_are_refused() -> None:
    with pytest.raises(InputError, match="scheduler: got 'lsf'"):
        job_script("lsf", ["dal-jax"])  # type: ignore
