"""Runs on disk: the same numbers however a run was interrupted or shared out."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_same_record
from helpers import published_batch as dal_test_batch
from helpers import published_options as TestOptions
from search_cases import pooled_localizer

from dal_jax import (
    ImageToTest,
    InputError,
    QueuedImage,
    RunError,
    as_record,
    contradiction,
    run_tests,
)
from dal_jax.runs import Host, decode, open_run
from dal_jax.runs._records import canonical

LOCALIZER = pooled_localizer()
COUNT = 12


def _case(number: int) -> ImageToTest:
    x, x_ref = np.random.default_rng(number).normal(size=(2, *LOCALIZER.image_shape))
    if number == 5:
        x[0, 0] = np.nan
    return ImageToTest(x, x_ref)


ITEMS = [QueuedImage(f"image {k}", k, partial(_case, k)) for k in range(COUNT)]


def _run(folder: Path, **changed: Any) -> list[dict[str, Any]]:
    arguments = {"items": ITEMS, "noise": "iid:1", "options": TestOptions(), **changed}
    return run_tests(folder, LOCALIZER, **arguments)


def _assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_same_record(one, other, str(one["name"]))


def test_a_run_is_the_batch(tmp_path):
    found = _run(tmp_path)
    cases = [_case(k) for k in range(COUNT)]
    x, x_ref = (np.array(column) for column in list(zip(*cases, strict=True))[:2])
    results = dal_test_batch(LOCALIZER, x, x_ref, "iid:1", batch_size=2)
    records = [{"name": f"image {k}", **as_record(r)} for k, r in enumerate(results)]
    _assert_same(found, records)
    assert [record["status"] for record in found].count("INVALID_INPUT") == 1
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in lines] == list(range(COUNT))


def test_an_interrupted_run_goes_on(tmp_path):
    def stop(done: int, record: dict[str, Any]) -> None:
        if done == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt

    stops = [1, 4, 9, 0]
    for count in (1, 4, 9):
        told = rf"^{count} of 12 tests are kept in .*parts, the same command goes on"
        with pytest.raises(KeyboardInterrupt, match=told):
            _run(tmp_path / "parts", progress=stop, batch_size=1)
        shards = (tmp_path / "parts").glob("shard-*.jsonl")
        # The first line of each tells what run it is of.
        assert sum(len(p.read_text().splitlines()) - 1 for p in shards) == count
        assert not (tmp_path / "parts" / "results.jsonl").exists()
    before = _lines_of_shards(tmp_path / "parts")
    _assert_same(_run(tmp_path / "parts"), _run(tmp_path / "whole"))
    assert before < _lines_of_shards(tmp_path / "parts")  # nothing finished was computed again
    assert len(_lines_of_shards(tmp_path / "parts")) == COUNT


def test_processes_share_a_run(tmp_path):
    # One after the other here, so nothing to wait for; the last one finds what is missing.
    _run(tmp_path / "shared", host=Host(2, 3))
    with pytest.raises(RunError, match="tasks are not finished"):
        _run(tmp_path / "shared", host=Host(0, 3))
    _assert_same(_run(tmp_path / "shared"), _run(tmp_path / "alone"))


def test_another_run_is_refused(tmp_path):
    _run(tmp_path)
    for changed in ({"noise": "iid:2"}, {"options": TestOptions(precision=0.01)}):
        with pytest.raises(InputError, match="holds another run"):
            _run(tmp_path, **changed)
    with pytest.raises(InputError, match="keys: 12 different ones for 13 tasks"):
        _run(tmp_path, items=[*ITEMS, ITEMS[0]])


def test_a_run_goes_on_with_more_images_or_fewer(tmp_path):
    first = _run(tmp_path / "run", items=ITEMS[:8])
    changed = [ITEMS[2]._replace(identity="of another size"), *ITEMS[4:]]
    before = _lines_of_shards(tmp_path / "run")
    second = _run(tmp_path / "run", items=changed)
    assert before < _lines_of_shards(tmp_path / "run")  # nothing is repeated or lost
    assert len(_lines_of_shards(tmp_path / "run") - before) == 5
    _assert_same(second[1:5], first[4:])
    _assert_same(second, _run(tmp_path / "whole", items=changed))
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [item.name for item in changed]
    _assert_same(_run(tmp_path / "run", items=ITEMS[:8]), first)


def test_what_was_refused_is_loaded_again(tmp_path):
    def broken() -> ImageToTest:
        raise InputError("cut off")

    items = [
        QueuedImage(f"image {k}", k, broken if k == 1 else i.load) for k, i in enumerate(ITEMS)
    ]
    first = _run(tmp_path / "run", items=items)
    assert first[1]["message"] == "cut off"
    before = _lines_of_shards(tmp_path / "run")
    _assert_same(_run(tmp_path / "run", items=items), first)
    assert _lines_of_shards(tmp_path / "run") == before  # the same refusal is not stored twice
    mended = _run(tmp_path / "run")
    _assert_same(mended, _run(tmp_path / "whole"))
    assert len(_lines_of_shards(tmp_path / "run") - before) == 1
    _assert_same(_run(tmp_path / "run", items=items), mended)  # a finished test is kept


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    real, written = os.write, []

    def write(descriptor: int, data: bytes) -> int:
        if b'"record"' in data or b'"task"' in data:
            written.append(data)
            if len(written) == 5:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr("os.write", write)
    with pytest.raises(RunError, match="No space left"):
        _run(tmp_path / "full", batch_size=1)
    monkeypatch.undo()
    _assert_same(_run(tmp_path / "full"), _run(tmp_path / "whole"))


def test_records_of_one_test_may_differ_by_rounding(tmp_path):
    first = _run(tmp_path)
    kept = json.loads((tmp_path / "run.json").read_text())["fingerprint"]
    run = open_run(tmp_path, kept, COUNT, {}, contradiction, [i.key for i in ITEMS])
    ok = next(k for k, record in enumerate(first) if record["status"] == "OK")
    near = {**first[ok], "seconds": 0.0, "num_evaluations": 1, "num_disagreements": 3}
    for name in ("statistic", "p_value", "naive_p", "max_score"):
        near[name] = first[ok][name] * (1 + 1e-13)
    near["p_low"], near["p_high"] = first[ok]["p_low"] - 1e-4, first[ok]["p_low"] + 1e-12
    with run.writer(1) as shard:
        shard.append(ok, near)
    assert canonical(list(run.finished().values())) == canonical(first)  # that of the first shard
    for changed in (
        {"status": "TIE"},
        {"statistic": first[ok]["statistic"] + 1e-6},
        {"region": [[0, 1]]},
        {"p_low": 0.0, "p_high": first[ok]["p_low"] - 1e-6},
    ):
        assert contradiction(first[ok], {**near, **changed}) is not None, changed


PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_test_run as t
from dal_jax.runs import join_hosts, leave_hosts
words = json.loads(sys.argv[3])
host = join_hosts(*words["hosts"]) if words["hosts"] else t.Host(0, 1)
seen = lambda done, record: print(done, flush=True)
t.run_tests(sys.argv[2], t.LOCALIZER, t.ITEMS, "iid:1", t.TestOptions(dtype="float64"),
            host=host, progress=seen, batch_size=words["batch_size"])
leave_hosts()
"""


def _start(folder: Path, flags: str = "", hosts: Any = None, batch_size: int | None = None) -> Any:
    words = json.dumps({"hosts": hosts, "batch_size": batch_size})
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(folder), words],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_ENABLE_X64": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: Any) -> None:
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [decode(json.loads(line)) for line in lines]


def _lines_of_shards(folder: Path) -> set[str]:
    """The lines of all finished tests."""
    shards = folder.glob("shard-*.jsonl")
    return {line for path in shards for line in path.read_text().splitlines()[1:]}


@pytest.mark.slow
def test_devices_processes_and_kills_change_no_result(tmp_path):
    """One device; eight; two processes that talk; one killed with -9 time and again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    eight = "--xla_force_host_platform_device_count=8"
    running = [_start(tmp_path / "one"), _start(tmp_path / "eight", eight)]
    for process in running:
        _finish(process)
    pair = [_start(tmp_path / "two", hosts=(address, 2, k), batch_size=1) for k in range(2)]
    for process in pair:
        _finish(process)
    for _ in range(3):
        process = _start(tmp_path / "killed", batch_size=1)
        assert process.stdout.readline()  # what earlier runs left
        line = process.stdout.readline()  # the first result of this one
        assert line, process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    _finish(_start(tmp_path / "killed"))
    whole = _lines(tmp_path / "one")
    assert len(whole) == COUNT
    for name in ("eight", "two", "killed"):
        _assert_same(_lines(tmp_path / name), whole)
    assert len(list((tmp_path / "two").glob("shard-*.jsonl"))) == 2
    assert len(list((tmp_path / "killed").glob("shard-*.jsonl"))) == 4
