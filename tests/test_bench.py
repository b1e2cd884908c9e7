"""What `dal_jax.bench` measures, with tiny networks: inputs, floor, counts, processes, tables."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dal_jax import DalConfig, InputError, Localizer, dal_localizer, from_score
from dal_jax.bench import (
    BenchSettings,
    Inputs,
    Prepared,
    Subject,
    adaptive_records,
    bare_seconds,
    choose_inputs,
    counted_calls,
    exact_record,
    in_process,
    load_inputs,
    measure,
    number,
    open_subject,
    save_inputs,
    tables,
    thread_limits,
)
from dal_jax.bench import _run as run_module
from dal_jax.bench._run import do
from dal_jax.diffusion import ReverseConfig, save_checkpoint
from dal_jax.models import UNetConfig, init_unet
from dal_jax.search import Evaluator, Functions

UNET = UNetConfig(1, (2, 3), time_dim=4)
CONFIG = DalConfig(unet=UNET, reverse=ReverseConfig(400, 2), image_size=8)


@pytest.fixture(scope="module")
def localizer() -> Localizer:
    return dal_localizer(init_unet(UNET, 0), CONFIG)


@pytest.fixture(scope="module")
def inputs(localizer: Localizer) -> Inputs:
    return choose_inputs(Subject(8, tests=4), localizer)


def test_all_images_are_flagged_and_about_half_of_all_would_be(
    localizer: Localizer, inputs: Inputs
) -> None:
    assert inputs.images.shape == inputs.references.shape == (4, 8, 8, 1)
    chosen = localizer.with_threshold(inputs.threshold)
    assert all(chosen.region(image).any() for image in inputs.images)
    assert (inputs.flagged, inputs.looked) == (16, 32)
    assert inputs.threshold == np.float32(inputs.threshold)


def test_images_depend_on_the_seed_alone(
    localizer: Localizer, inputs: Inputs, tmp_path: Path
) -> None:
    again = choose_inputs(Subject(8, tests=2, threshold=inputs.threshold), localizer)
    np.testing.assert_array_equal(again.images, inputs.images[:2])
    other = choose_inputs(Subject(8, tests=2, seed=1), localizer)
    assert not np.array_equal(other.images, again.images)
    save_inputs(tmp_path / "inputs.npz", inputs)
    for kept, given in zip(load_inputs(tmp_path / "inputs.npz"), inputs, strict=True):
        np.testing.assert_array_equal(kept, given)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "array", "other"])
def test_inputs_that_cannot_be_read_are_one_line(kind: str, inputs: Inputs, tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    save_inputs(path, inputs)
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "array":
        with open(path, "wb") as file:
            np.save(file, inputs.images)
    elif kind == "other":
        np.savez(path, images=inputs.images)
    else:
        path.write_bytes({"empty": b"", "text": b"no inputs", "cut": whole[:900]}[kind])
    told = "no such file" if kind == "missing" else r"damaged \(.*\)"
    with pytest.raises(InputError, match=rf"^inputs '.*inputs\.npz': {told}$"):
        load_inputs(path)


def test_a_threshold_that_flags_nothing_is_refused(localizer: Localizer) -> None:
    with pytest.raises(InputError, match=r"^threshold: got 1000, at which 0 of 128 null"):
        choose_inputs(Subject(8, tests=2, threshold=1000.0), localizer)


def test_a_network_that_gives_nan_is_refused() -> None:
    broken = from_score(lambda p, d, x: x[..., 0] * np.nan, (8, 8, 1), 1.0)
    with pytest.raises(InputError, match="NaN"):
        choose_inputs(Subject(8, tests=2), broken)


@pytest.mark.parametrize("kind", ["untrained", "model"])
def test_where_weights_come_from(kind: str, tmp_path: Path) -> None:
    if kind == "untrained":
        localizer, source = open_subject(Subject(8, seed=3, threshold=0.5))
        assert "untrained" in source and localizer.threshold == 0.5
        return
    save_checkpoint(tmp_path / "m", init_unet(UNET, 0), CONFIG)
    localizer, source = open_subject(Subject(16, model=str(tmp_path / "m")))
    assert localizer.image_shape == (16, 16, 1) and source == "a checkpoint"


def test_bad_subjects_are_refused() -> None:
    for bad in ({"size": 0}, {"size": 8, "tests": 0}, {"size": 8, "seed": -1}):
        with pytest.raises(InputError):
            Subject(**bad)
    with pytest.raises(InputError, match="both"):
        Subject(8, weights="a", model="b")


@pytest.mark.slow
def test_the_adaptive_engine_is_counted_and_timed(localizer: Localizer, inputs: Inputs) -> None:
    record, single = adaptive_records(localizer, inputs, batch_sizes=[None, 1], repeats=2)
    assert record["status"] == {"OK": 4}
    assert len(record["repeats"]) == 2
    assert record["seconds_per_test"] * record["tests_per_second"] == pytest.approx(1)
    assert set(record["forward_seconds_per_batch"]) == {"float32", "float64"}
    # The same tests whatever is under way beside them.
    assert record["evaluations_per_test"] == single["evaluations_per_test"]
    assert record["batch_fill"] > single["batch_fill"]
    wide = adaptive_records(localizer, inputs, dtype="float64", repeats=1)[0]
    assert wide["float64_share"] == 1 and set(wide["capacity"]) == {"float64"}


def test_more_devices_than_there_are(localizer: Localizer, inputs: Inputs) -> None:
    with pytest.raises(InputError, match="devices: got 99"):
        adaptive_records(localizer, inputs, devices=99)


@pytest.mark.slow
def test_the_exact_engine_counts_windows(localizer: Localizer, inputs: Inputs) -> None:
    record = exact_record(localizer, inputs._replace(images=inputs.images[:2]))
    second = Inputs(inputs.images[1:2], inputs.references[1:2], *inputs[2:])
    assert record["tests"] == 2 and len(record["windows"]) == 2
    assert record["windows_per_second"] > 0 and record["compile_seconds"] > 0
    once = exact_record(localizer, second, repeat_first=False)
    assert once["windows"] == record["windows"][1:] and once["compile_seconds"] is None


def test_calls_are_counted_only_inside(localizer: Localizer) -> None:
    functions = Functions(localizer.score_fn, localizer.reconstruct_fn, (8, 8, 1))
    evaluator = Evaluator(functions, localizer.params, localizer.draws)
    original = Evaluator.__call__
    with counted_calls() as counts:
        evaluator(np.zeros((3, 8, 8, 1)), (), "float32")
    assert counts == {"calls float32": 1, "images float32": 3}
    assert Evaluator.__call__ is original
    assert bare_seconds(evaluator, "float32", np.zeros((3, 8, 8, 1))) > 0


def test_thread_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--kept=1")
    assert thread_limits(0) == {"XLA_FLAGS": "--kept=1"}
    one = thread_limits(1, 2)
    assert one["OMP_NUM_THREADS"] == "1"
    flags = one["XLA_FLAGS"].split()
    assert flags[:2] == ["--kept=1", "--xla_force_host_platform_device_count=2"]
    monkeypatch.delenv("XLA_FLAGS")
    assert thread_limits(0) == {}


def test_processes_that_fail_leave_a_record() -> None:
    ask = [sys.executable, "-c"]
    assert in_process([*ask, "print('noise'); print('[1, 2]')"]) == [1, 2]
    failed = in_process([*ask, "raise ValueError('why')"])
    assert failed == {"failure": "exit code 1: ValueError: why"}
    killed = in_process([*ask, "import os; os.abort()"])
    assert killed["failure"].startswith("exit code -6")
    late = in_process([*ask, "import time; time.sleep(60)"], seconds=0.2)
    assert late == {"failure": "not finished within 0.2 s"}
    assert "no JSON" in in_process([*ask, "print('hello')"])["failure"]


@pytest.mark.slow
def test_a_task_is_done_from_plain_values(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", init_unet(UNET, 0), CONFIG)
    subject = asdict(Subject(8, tests=2, model=str(tmp_path / "m")))
    task = {"subject": subject, "inputs": str(tmp_path / "i.npz")}
    chosen = json.loads(json.dumps(do({**task, "do": "choose"})))
    assert chosen["machine"]["cores"] >= 1 and chosen["threshold"] > 0
    exact = do({**task, "do": "exact", "images": [1], "options": {"repeat_first": False}})
    assert exact["size"] == 8 and exact["tests"] == 1


def test_a_run_measures_every_size_and_goes_on_after_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def work(task: Any, **limits: Any) -> Any:
        asked.append((task["subject"]["size"], task["do"], task.get("images"), limits))
        if task["subject"]["size"] == 16:
            return {"failure": "too large"}
        return {"machine": {}} if task["do"] == "choose" else {"failure": "broke"}

    monkeypatch.setattr(run_module, "work", work)
    counts = {"tests": (4, 2), "exact_tests": (3, 1), "devices": (2,)}
    settings = BenchSettings(sizes=(8, 16, 32), threads=1, **counts)
    seen: list[Prepared] = []

    def beside(prepared: Prepared) -> Any:
        seen.append(prepared)
        yield {"kind": "peer", "size": prepared.subject.size}

    records = list(measure(settings, beside))
    kinds = [(record["size"], record["kind"], "failure" in record) for record in records]
    rest = [("engine", True), ("engine", True), ("speed", True), ("peer", False)]
    assert kinds == [
        *((8, *each) for each in [("images", False), *rest]),
        (16, "images", True),
        *((32, *each) for each in [("images", False), *rest]),
    ]
    assert [p.subject.tests for p in seen] == [4, 2]
    assert [a[2] for a in asked if a[1] == "exact"] == [3, 1]
    assert all(a[3]["threads"] == 1 for a in asked)


def test_numbers_are_short() -> None:
    values = [None, 3, 0.012345, 12.345, 1234.5, 99.96, 0.5]
    assert [number(v) for v in values] == ["-", "3", "0.0123", "12.3", "1234", "100", "0.5"]


def test_tables_show_failures() -> None:
    failed = {"size": 8, "engine": "sweep", "dtype": "float64", "failure": "late"}
    text = tables([{**failed, "kind": kind, "devices": 1, "threads": 1} for kind in KINDS])
    assert text.count("| failed") == 3 and text.count(": late") == 3
    assert len({line.count("|") for line in text.split("\n\n")[0].splitlines()}) == 1


KINDS = ("engine", "speed", "peer")
