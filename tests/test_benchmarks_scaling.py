"""The simulated queue: no test is lost, one device does all the work, more are not slower."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.queue_model import (
    Costs,
    Run,
    process_seconds,
    requests,
    simulate_process,
    simulate_run,
)

COSTS = Costs(
    call=0.02, capacity=32, in_flight=64, start=3.0, compile=10.0, append=0.0, read=0.0, collect=0.0
)
TESTS = np.random.default_rng(0).choice([1, 35, 40, 45, 90], 5000, p=[0.45, 0.2, 0.2, 0.14, 0.01])


@pytest.mark.parametrize("evaluations", [1, 2, 18, 19, 26, 27, 28, 40, 93])
def test_a_test_asks_for_all_its_evaluations(evaluations: int) -> None:
    sizes = list(requests(evaluations))
    assert sum(sizes) == evaluations
    assert sizes[0] == 1 and min(sizes) > 0


def test_one_test_alone_waits_for_each_of_its_requests() -> None:
    done = simulate_process(np.array([40]), COSTS)
    assert done.calls == len(list(requests(40)))
    assert done.seconds == pytest.approx(done.calls * COSTS.call)
    assert done.latency == pytest.approx(done.seconds)


def test_many_tests_fill_the_batches() -> None:
    tests = TESTS[:2000]
    done = simulate_process(tests, COSTS)
    least = -(-tests.sum() // COSTS.capacity)
    # Partly filled calls come only with the last tests, at most one for each of their requests.
    assert least <= done.calls <= least + len(list(requests(90))) + 5
    assert done.latency.min() > 0


def test_a_batch_of_one_is_one_call_an_evaluation() -> None:
    costs = COSTS._replace(capacity=1, in_flight=3)
    assert simulate_process(TESTS[:50], costs).calls == TESTS[:50].sum()


def test_the_short_cut_agrees_with_the_simulation() -> None:
    whole = simulate_process(TESTS, COSTS).seconds
    # The short cut counts the full batches before the last tests without their order.
    assert process_seconds(TESTS, COSTS) == pytest.approx(whole, rel=0.005)
    assert process_seconds(TESTS[:100], COSTS) == simulate_process(TESTS[:100], COSTS).seconds
    assert process_seconds(TESTS[:0], COSTS) == 0


def test_one_device_does_the_sum_of_the_work() -> None:
    run = simulate_run(TESTS, 1, COSTS)
    assert run.useful == pytest.approx(TESTS.sum() / COSTS.capacity * COSTS.call)
    assert run.total == pytest.approx(3 + 10 + process_seconds(TESTS, COSTS))
    assert run.total == pytest.approx(run.started + run.working + run.collected)
    assert 0 < run.utilization < 1


@pytest.mark.parametrize("steal", [0, 64])
def test_more_devices_are_never_slower(steal: int) -> None:
    totals = [simulate_run(TESTS, n, COSTS, steal=steal).total for n in (1, 2, 4, 8, 16)]
    assert totals == sorted(totals, reverse=True)
    assert totals[1] > totals[0] / 2  # nor faster than the work allows


def test_more_devices_than_tests() -> None:
    run = simulate_run(TESTS[:3], 8, COSTS)
    assert run.total == pytest.approx(
        13 + max(simulate_process(TESTS[k : k + 1], COSTS).seconds for k in range(3))
    )


def test_a_slow_device_holds_up_shares_but_not_a_common_queue() -> None:
    speeds = np.array([2.0, 1.0, 1.0, 1.0])
    free = COSTS._replace(start=0.0, compile=0.0, claim=0.0)
    even = simulate_run(TESTS, 4, free).total
    shared = simulate_run(TESTS, 4, free, speeds=speeds).total
    stolen = simulate_run(TESTS, 4, free, speeds=speeds, steal=16).total
    assert shared == pytest.approx(2 * even, rel=0.05)  # the first share is one of four
    assert stolen < 4 / 3.5 * even * 1.1  # 3.5 devices' worth of speed, and the last chunks


def test_failures_lose_time_and_no_work() -> None:
    calm = simulate_run(TESTS, 4, COSTS)
    runs = [simulate_run(TESTS, 4, COSTS, mtbf=100.0, seed=seed) for seed in range(20)]
    hit = [run for run in runs if run.failures]
    assert len(hit) > 5
    for run in hit:
        pause = run.failures * (COSTS.detect + COSTS.requeue)
        assert run.total > calm.total + pause - 1e-9
        assert run.lost <= run.failures * 4 * (calm.total + 1)
    for run in set(runs) - set(hit):
        assert run == calm


def test_a_run_that_fails_too_often_never_ends() -> None:
    assert simulate_run(TESTS, 4, COSTS, mtbf=0.1).total == np.inf


def test_costs_of_files_count() -> None:
    calm = simulate_run(TESTS, 4, COSTS).total
    costs = COSTS._replace(collect=0.001)
    assert simulate_run(TESTS, 4, costs).total == pytest.approx(calm + 5000 * 0.001)


def test_tables_from_measured_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.dumps({"num_evaluations": int(value)}) + "\n" for value in TESTS[:200]]
    (tmp_path / "results.jsonl").write_text("".join(rows))
    measured = {
        "kind": "engine",
        "engine": "adaptive",
        "capacity": {"float32": 32},
        "seconds_per_test": 0.02,
        "evaluations_per_test": {"mean": 40.0},
        "batch_fill": 0.9,
        "start_seconds": 3.0,
        "compile_seconds": 10.0,
    }
    records = [
        {"kind": "images", "machine": {"cores": 2}},
        {**measured, "size": 8},
        {**measured, "size": 16, "evaluations_per_test": {"mean": 50.0}},
        {"kind": "engine", "engine": "adaptive", "size": 32, "failure": "not finished"},
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"records": records}))
    words = ["--rows", f"8={tmp_path / 'results.jsonl'}", "--bench", str(tmp_path / "bench.json")]
    inputs = tmp_path / "queue.json"
    options = ["--inputs", str(inputs), "--images", "2000", "--devices", "1", "4"]
    scaling.main([*words, *options])
    first = capsys.readouterr().out
    scaling.main(options)  # now from the file that was written
    assert capsys.readouterr().out == first
    for title in ("Inputs", "Runs", "Unlike devices", "Tests for a process", "Failures"):
        assert f"{title}\n\n| " in first
    kept = scaling.read_inputs(inputs)
    assert [entry.size for entry in kept] == [8, 16]
    assert sum(kept[0].histogram.values()) == sum(kept[1].histogram.values()) == 200
    # Size 16 has no rows of its own: the mean is the measured one, but for rounding to integers.
    long = {key: count for key, count in kept[1].histogram.items() if key > 1}
    mean = sum(key * count for key, count in long.items()) / sum(long.values())
    assert mean == pytest.approx(50.0, abs=0.5)
    # 0.02 s for 40 evaluations is 0.5 ms each; 32 of them in a call that is 90% full.
    assert kept[0].costs.call == pytest.approx(0.5e-3 * 32 * 0.9)


def test_the_inputs_in_the_repository_can_be_read() -> None:
    for entry in scaling.read_inputs(scaling.INPUTS):
        assert min(entry.histogram) >= 1 and entry.costs.call > 0
        assert entry.draw(10, 0).shape == (10,)


def test_utilization_is_of_all_devices() -> None:
    run = Run(10.0, 1.0, 8.0, 1.0, 30.0, 4, 0, 0.0)
    assert run.utilization == 0.75
    assert run.device_hours == pytest.approx(40 / 3600)
