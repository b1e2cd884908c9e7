"""Processes of a run: real ones on this machine's loopback address, and refusals."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal_jax import InputError
from dal_jax.runs import Host, join_hosts, leave_hosts, share, wait_for_hosts

CLUSTER = ("SLURM_", "OMPI_", "PMI", "DAL_JAX_", "JAX_COORDINATOR", "JAX_LOCAL_DEVICE", "CUDA_")

# A whole run of squares: arguments DIR [COORDINATOR NUM_PROCESSES PROCESS_ID].
WORKER = """
import sys
import jax
from dal_jax.runs import *
where = (sys.argv[2], int(sys.argv[3]), int(sys.argv[4])) if len(sys.argv) > 2 else ()
host = join_hosts(*where, seconds=60)
assert join_hosts() == host  # a second time does nothing
run = open_run(sys.argv[1], fingerprint("squares"), 11, {})
left = share(sorted(set(range(11)) - run.finished().keys()), host)
wait_for_hosts("the tasks are shared")
with run.writer(host.index) as shard:
    for task in left:
        square = jax.jit(lambda a: a * a)(jax.numpy.float32(task))  # on this process's own device
        shard.append(task, {"square": square, "process": host.index})
wait_for_hosts("everything is written")
if host.index == 0:
    run.collect()
leave_hosts()
leave_hosts()
print(host.index, host.count, len(jax.local_devices()))
"""


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these tests were not themselves started by a scheduler."""
    for name in [name for name in os.environ if name.startswith(CLUSTER)]:
        monkeypatch.delenv(name)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def check_run(path: Path, outputs: list[str], count: int) -> None:
    assert sorted(outputs) == [f"{k} {count} 1\n" for k in range(count)]
    records = [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]
    assert records == [
        {"task": task, "square": float(task**2), "process": task % count} for task in range(11)
    ]


@pytest.mark.slow
def test_two_processes_make_a_run(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    environ = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COORDINATOR_BIND_ADDRESS": address,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "run"), address, "2", str(index)],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), outputs
    check_run(tmp_path / "run", [out for out, _ in outputs], 2)


def test_alone() -> None:
    assert join_hosts() == Host(0, 1)
    assert join_hosts(num_processes=1) == Host(0, 1)
    assert join_hosts("localhost:1", 1, 0) == Host(0, 1)
    wait_for_hosts("nobody")
    leave_hosts()
    assert not jax.distributed.is_initialized()


def test_alone_under_a_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm_variables(1, 0).items():
        monkeypatch.setenv(name, value)
    assert join_hosts() == Host(0, 1)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("DAL_JAX_NUM_PROCESSES", "1")  # asked to run alone all the same
    assert join_hosts() == Host(0, 1)


def slurm_variables(count: int, index: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1234", 2, None), "all three or none"),
        (("localhost:1234", None, 0), "all three or none"),
        ((None, 2, 0), "all three or none"),
        ((None, None, 0), "all three or none"),
        (("localhost:1234", 2, 2), "process_id: got 2, expected 0 to 1"),
        (("localhost:1234", 2, -1), "process_id: got -1"),
        (("localhost:1234", 0, 0), "num_processes: got 0"),
        (("localhost:1234", -3, 0), "num_processes: got -3"),
        (("localhost:1234", 2.0, 0), "num_processes: got 2.0"),
        (("localhost:1234", True, 0), "num_processes: got True"),
        (("localhost", 2, 0), "coordinator: got 'localhost', expected HOST:PORT"),
        (("localhost:", 2, 0), "coordinator"),
        ((":1234", 2, 0), "coordinator"),
        (("localhost:99999", 2, 0), "coordinator"),
    ],
)
def test_nonsense_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        join_hosts(*arguments)
    assert "\n" not in str(caught.value)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"DAL_JAX_NUM_PROCESSES": "two"}, "DAL_JAX_NUM_PROCESSES: got 'two'"),
        ({"DAL_JAX_NUM_PROCESSES": "2"}, "all three or none"),
        ({"DAL_JAX_PROCESS_ID": ""}, "DAL_JAX_PROCESS_ID: got ''"),
        ({"PMI_SIZE": "2"}, "found PMI_SIZE=2, but not how"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "found OMPI_COMM_WORLD_SIZE=2, but not how"),
        ({**slurm_variables(2, 0), "SLURM_NTASKS": "many"}, "found a cluster, but not how"),
    ],
)
def test_nonsense_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as caught:
        join_hosts()
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(0, 99), unique=True), st.integers(1, 7))
def test_shares_are_disjoint_and_complete(tasks: list[int], count: int) -> None:
    shares = [share(tasks, Host(index, count)) for index in range(count)]
    assert sorted(task for part in shares for task in part) == sorted(tasks)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
