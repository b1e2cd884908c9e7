"""Directories of runs: resumed after any kill, closed to other runs, refusing damage and loss."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dal_jax import DalJaxError, InputError, RunError
from dal_jax.runs import RunDirectory, ShardWriter, fingerprint, open_run

RUN = fingerprint("a run of these tests")
NUM_TASKS = 40


def record(task: int) -> dict[str, Any]:
    return {"p": 1 / (task + 3), "z": [math.inf, -0.0, task], "nested": {"text": '\n"ü'}}


def open_it(path: Path, num_tasks: int = NUM_TASKS) -> RunDirectory:
    return open_run(path, RUN, num_tasks, {"images": 40, "alpha": math.nan})


def fill(run: RunDirectory, process: int, tasks: Any) -> Path:
    with run.writer(process) as shard:
        for task in tasks:
            shard.append(task, record(task))
    return shard.path


def one_line(caught: pytest.ExceptionInfo[DalJaxError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_run_from_beginning_to_end(tmp_path: Path) -> None:
    run = open_it(tmp_path / "deep" / "run")
    assert run.finished() == {}
    fill(run, 1, range(1, NUM_TASKS, 2))
    with pytest.raises(RunError, match=r"20 of 40 tasks are not finished \(the first is 0\)"):
        run.collect()
    fill(run, 0, reversed(range(0, NUM_TASKS, 2)))
    again = open_it(tmp_path / "deep" / "run")
    assert again.finished() == {task: record(task) for task in range(NUM_TASKS)}
    assert list(again.finished()) == list(range(NUM_TASKS))
    assert math.isnan(again.description["alpha"])

    lines = again.collect().read_text().splitlines()
    assert [json.loads(line)["task"] for line in lines] == list(range(NUM_TASKS))
    assert json.loads(lines[2])["p"] == record(2)["p"]
    assert again.collect(tmp_path / "copy.jsonl").read_text().splitlines() == lines
    names = {path.name for path in run.path.iterdir()}
    expected = {"run.json", "results.jsonl", "shard-00000-000.jsonl", "shard-00001-000.jsonl"}
    assert names == expected  # and nothing temporary


def test_partial_results(tmp_path: Path) -> None:
    run = open_it(tmp_path)
    fill(run, 0, [7, 3])
    lines = run.collect(partial=True).read_text().splitlines()
    assert [json.loads(line)["task"] for line in lines] == [3, 7]


def test_keys_stand_for_tasks_that_come_and_go(tmp_path: Path) -> None:
    def opened(*keys: str) -> RunDirectory:
        return open_run(tmp_path, RUN, len(keys), {}, keys=keys)

    fill(opened("a", "b", "c"), 0, [0, 2])
    run = opened("c", "d", "a")
    assert run.finished() == {0: record(2), 2: record(0)}
    fill(run, 1, [1])
    assert opened("d").finished() == {0: record(1)}
    lines = opened("d", "a").collect().read_text().splitlines()
    assert [(json.loads(line)["task"], json.loads(line)["p"]) for line in lines] == [
        (0, record(1)["p"]),
        (1, record(0)["p"]),
    ]
    with pytest.raises(InputError, match="keys: 1 different ones for 2 tasks"):
        opened("a", "a")


def test_every_writer_has_a_file_of_its_own(tmp_path: Path) -> None:
    run = open_it(tmp_path)
    with run.writer(3) as one, run.writer(3) as two, run.writer(4) as three:
        names = [shard.path.name for shard in (one, two, three)]
        for task, shard in enumerate((one, two, three)):
            shard.append(task, record(task))
    assert names == ["shard-00003-000.jsonl", "shard-00003-001.jsonl", "shard-00004-000.jsonl"]
    before = one.path.read_bytes()
    fill(run, 3, [5])
    assert one.path.read_bytes() == before and len(run.finished()) == 4


@pytest.mark.parametrize("newline", [False, True])
def test_torn_tail_at_every_byte(tmp_path: Path, newline: bool) -> None:
    run = open_it(tmp_path)
    path = fill(run, 0, [0, 1, 2])
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        # With a newline: a page of the last line that never came to the disk.
        path.write_bytes(whole[:end] + b"\0" * newline + b"\n" * newline)
        assert list(run.finished()) == [0, 1]
    path.write_bytes(whole)
    assert list(run.finished()) == [0, 1, 2]


def test_torn_header(tmp_path: Path) -> None:
    run = open_it(tmp_path)
    path = fill(run, 0, [])
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert run.finished() == {}


def test_damage_before_the_end_is_refused(tmp_path: Path) -> None:
    run = open_it(tmp_path)
    path = fill(run, 0, [0, 1, 2])
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(3):
        for bad in (b"\n", lines[number][:-3] + b"\n", lines[number].replace(b":", b";", 1)):
            path.write_bytes(b"".join([*lines[:number], bad, *lines[number + 1 :]]))
            with pytest.raises(InputError, match=rf"shard-00000-000.jsonl:{number + 1}: damaged"):
                run.finished()


def test_shards_of_other_runs_are_refused(tmp_path: Path) -> None:
    run = open_it(tmp_path / "a")
    other = open_run(tmp_path / "b", fingerprint("another"), NUM_TASKS, {})
    path = fill(other, 7, [0, 1])
    (run.path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"shard-00007-000.jsonl:1: shard of the run") as caught:
        run.finished()
    assert RUN in one_line(caught)


def test_tasks_out_of_range_are_refused(tmp_path: Path) -> None:
    run = open_it(tmp_path)
    with run.writer(0) as shard:
        for task in (-1, NUM_TASKS):
            with pytest.raises(InputError, match=f"task: got {task}, expected 0 to 39"):
                shard.append(task, {})
        with pytest.raises(InputError, match="record"):
            shard.append(0, {"value": object()})
    assert run.finished() == {}
    fill(run, 1, [NUM_TASKS - 1])
    smaller = run._replace(num_tasks=NUM_TASKS - 1)
    with pytest.raises(InputError, match=r"shard-00001-000.jsonl:2: record of task 39"):
        smaller.finished()
    with pytest.raises(InputError, match="process: got -1"):
        run.writer(-1)


def test_records_of_one_task(tmp_path: Path) -> None:
    run = open_it(tmp_path)
    nan = {"p": math.nan, "seconds": 1.0, "host": "a"}
    with run.writer(0) as shard:
        shard.append(5, nan)
    with run.writer(1) as shard:
        shard.append(5, {"host": "b", "seconds": 2.0, "p": math.nan})
    same = run._replace(contradiction=lambda one, other: None)
    assert same.finished()[5]["seconds"] == 1.0
    with pytest.raises(InputError, match=r"shard-00001-000.jsonl:2: .*task 5 .*host") as caught:
        run.finished()
    assert "shard-00000-000.jsonl:2" in one_line(caught)
    assert same.collect(partial=True).exists()


def test_a_key_too_many_is_a_difference(tmp_path: Path) -> None:
    run = open_it(tmp_path)
    for process, extra in enumerate(({}, {"p": None})):
        with run.writer(process) as shard:
            shard.append(0, extra)
    with pytest.raises(InputError, match="another record of task 0"):
        run.finished()


@pytest.mark.parametrize(
    ("name", "arguments"), [("fingerprint", ("0" * 64, NUM_TASKS)), ("num_tasks", (RUN, 41))]
)
def test_other_runs_are_refused(tmp_path: Path, name: str, arguments: tuple[str, int]) -> None:
    open_it(tmp_path)
    with pytest.raises(InputError, match=f"holds another run: {name}") as caught:
        open_run(tmp_path, *arguments, {})
    held = {"fingerprint": RUN, "num_tasks": NUM_TASKS}
    expected = dict(zip(held, arguments, strict=True))
    message = one_line(caught)
    assert str(tmp_path) in message
    assert f"{name} {held[name]}, expected {expected[name]}" in message


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photograph.png").touch()
    with pytest.raises(InputError, match=r"holds 'photograph.png' and no run\.json"):
        open_it(tmp_path)
    with pytest.raises(InputError, match="cannot be used"):
        open_it(tmp_path / "photograph.png")
    with pytest.raises(InputError, match="cannot be used"):
        open_it(tmp_path / "photograph.png" / "run")
    with pytest.raises(InputError, match="num_tasks: got 0"):
        open_it(tmp_path / "new", 0)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 2}'])
def test_damaged_descriptions_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json': damaged|format 2, expected 1"):
        open_it(tmp_path)


def test_several_open_at_once(tmp_path: Path) -> None:
    # Threads race for a file as processes do, and start closer together; test_runs_hosts has
    # processes.
    def race(seed: int) -> int | None:
        start.wait()
        try:
            open_run(path, f"{seed % 2}", 3, {"seed": seed})
        except InputError:
            return None
        return seed % 2

    with ThreadPoolExecutor(8) as pool:
        for attempt in range(20):
            path, start = tmp_path / str(attempt), threading.Barrier(8)
            found = list(pool.map(race, range(8)))
            winner = int(json.loads((path / "run.json").read_text())["fingerprint"])
            assert sorted(found, key=str) == [winner] * 4 + [None] * 4
            assert [p.name for p in path.iterdir()] == ["run.json"]


def test_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert open_it(tmp_path)[:3] == open_it(tmp_path)[:3]
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("room", [0, 10])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    run = open_it(tmp_path)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if room:
            return write(descriptor, data[:room])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with run.writer(0) as shard:
        shard.append(0, record(0))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(RunError, match="No space left on device") as caught:
            shard.append(1, record(1))
        monkeypatch.undo()
        message = one_line(caught)
        assert shard.path.name in message and "kept" in message and "same command" in message
        with pytest.raises(RunError, match="closed"):
            shard.append(2, record(2))
    assert run.finished() == {0: record(0)}
    assert shard.path.read_bytes().endswith(b"\n")  # no torn line is left behind
    fill(run, 0, [1])
    assert list(run.finished()) == [0, 1]


def test_full_device() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    shard = ShardWriter(Path("/dev/full"), os.open("/dev/full", os.O_WRONLY), 3)
    with pytest.raises(RunError, match="'/dev/full': No space left"):
        shard.append(0, record(0))
    shard.close()


def test_failing_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = open_it(tmp_path), []

    def broken(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    slow, eager = run.writer(0, sync_seconds=1e9), run.writer(1, sync_seconds=0.0)
    monkeypatch.setattr(os, "fsync", broken)
    slow.append(0, record(0))
    assert not calls
    with pytest.raises(RunError, match="Input/output error"):
        eager.append(1, record(1))
    with pytest.raises(RunError, match="Input/output error"):
        slow.close()
    slow.close()  # does nothing
    monkeypatch.undo()
    # The line before a failed sync may or may not be on the disk; here it is.
    assert list(run.finished()) == [0, 1]


def test_full_results(tmp_path: Path) -> None:
    run = open_it(tmp_path, 1)
    fill(run, 0, [0])
    with pytest.raises(RunError, match="cannot write"):
        run.collect(tmp_path / "absent" / "results.jsonl")


LOOP = textwrap.dedent(
    """
    import sys, time
    from dal_jax.runs import open_run
    run = open_run(sys.argv[1], sys.argv[2], 10**6, {})
    done = run.finished()
    with run.writer(0) as shard:
        for task in range(10**6):
            if task not in done:
                shard.append(task, {"square": task**2, "text": "x" * (task % 300)})
    """
)


def start_loop(path: Path, *prefix: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", LOOP, str(path), RUN],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    counts = [0]
    for attempt in range(3):
        process = start_loop(tmp_path)
        shard = tmp_path / f"shard-00000-{attempt:03d}.jsonl"
        deadline = time.monotonic() + 20
        while not (shard.exists() and shard.stat().st_size > 20_000 + 777 * attempt):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = open_run(tmp_path, RUN, 10**6, {}).finished()
        counts.append(len(found))
        # One after the other, without a gap: what was appended before the kill is there.
        assert list(found) == list(range(len(found)))
        assert all(found[task]["square"] == task**2 for task in found)
    assert counts[0] < counts[1] < counts[2] < counts[3]


@pytest.mark.slow
def test_a_real_limit_on_the_size_of_files(tmp_path: Path) -> None:
    process = start_loop(tmp_path, "bash", "-c", 'ulimit -f 30; exec "$@"', "bash")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "RunError" in errors and "finished tasks are kept" in errors
    found = open_run(tmp_path, RUN, 10**6, {}).finished()
    assert list(found) == list(range(len(found))) and len(found) > 50
    assert (tmp_path / "shard-00000-000.jsonl").stat().st_size < 30 * 1024
