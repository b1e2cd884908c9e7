"""A simulated queue: the cost of many tests on many devices, from measured costs of the parts.

Follows `dal_jax.search.run_side_by_side` within a process, and `dal_jax.run_tests` among
processes: each takes every count-th image, all wait for one another at the start and the end.
"""

import heapq
import json
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax.search import CALLS

# Sizes of a search's requests, in order: its image (1), the first grid, then sections, the checks.
GRID, SECTION, CHECKS = 18, 4, 8
# A run with more failures never ends.
MOST_FAILURES = 500


class Costs(NamedTuple):
    """Costs of one process with one device; in seconds, but for the two numbers."""

    call: float  # of a batch, the host's part included
    capacity: int  # evaluations in a batch
    in_flight: int  # tests under way
    start: float  # interpreter, imports, weights
    compile: float  # of the programs
    append: float = 64e-6  # of a record to the shard
    read: float = 74e-6  # of a record at the start
    collect: float = 146e-6  # of a record, by process 0 at the end
    detect: float = 100.0  # until the processes notice that one is lost
    requeue: float = 60.0  # until the job runs again (assumed)
    claim: float = 0.005  # of a chunk of work from a shared queue (assumed)


class Process(NamedTuple):
    """Simulation of one process."""

    seconds: float
    calls: int
    latency: np.ndarray  # seconds of each simulated test from its start to its end


class Run(NamedTuple):
    """Simulation of all processes; times in seconds."""

    total: float  # until the results are collected
    started: float  # part of it before the first test, compilation included
    working: float  # part of it until the last process is done
    collected: float  # part of it at the end, by one process
    useful: float  # full batches of all processes together
    devices: int
    failures: int
    lost: float  # device time of tests that were under way when a process was lost

    @property
    def device_hours(self) -> float:
        """Device time that is paid for, hours."""
        return self.devices * self.total / 3600

    @property
    def utilization(self) -> float:
        """Share of the device time that went into full batches."""
        return self.useful / (self.devices * self.total)


def requests(evaluations: int) -> Iterator[int]:
    """Yield the sizes of the requests of a test.

    Args:
        evaluations: Evaluations of the whole test, 1 or more.

    Yields:
        Sizes that add up to `evaluations`.
    """
    yield 1
    rest = evaluations - 1
    checks = CHECKS if rest > GRID + CHECKS else 0
    first = min(GRID, rest)
    if first:
        yield first
    rest -= first + checks
    while rest > 0:
        yield min(SECTION, rest)
        rest -= SECTION
    if checks:
        yield checks


def simulate_process(evaluations: np.ndarray, costs: Costs) -> Process:
    """Simulate one process call by call.

    Args:
        evaluations: Evaluations of its tests (n,), in order.
        costs: Costs of its calls.

    Returns:
        Time from the first to the last call, and the tests' latencies.
    """
    queue = deque(enumerate(np.asarray(evaluations).tolist()))
    waiting: deque[list[Any]] = deque()  # [test, evaluations not yet in a call]
    calls: deque[list[tuple[int, int]]] = deque()
    todo: dict[int, Iterator[int]] = {}
    missing: dict[int, int] = {}
    began = np.zeros(len(evaluations))
    ended = np.zeros(len(evaluations))
    now, count, waiting_for = 0.0, 0, 0
    while True:
        while queue and len(todo) < costs.in_flight:
            test, total = queue.popleft()
            todo[test] = requests(total)
            missing[test] = next(todo[test])
            waiting.append([test, missing[test]])
            waiting_for += missing[test]
            began[test] = now
        while len(calls) < CALLS and waiting_for and (waiting_for >= costs.capacity or not calls):
            call, room = [], costs.capacity
            while room and waiting:
                taken = min(room, waiting[0][1])
                call.append((waiting[0][0], taken))
                waiting[0][1] -= taken
                room -= taken
                if not waiting[0][1]:
                    waiting.popleft()
            waiting_for -= costs.capacity - room
            calls.append(call)
        if not calls:
            return Process(now, count, ended - began)
        now += costs.call
        count += 1
        for test, taken in calls.popleft():
            missing[test] -= taken
            if missing[test]:
                continue
            size = next(todo[test], 0)
            if size:
                missing[test] = size
                waiting.append([test, size])
                waiting_for += size
            else:
                ended[test] = now
                del todo[test], missing[test]


def process_seconds(evaluations: np.ndarray, costs: Costs) -> float:
    """Return the time of a process: full batches, the last tests call by call, appended records.

    Args:
        evaluations: Evaluations of its tests (n,), in order.
        costs: Costs of its calls.

    Returns:
        Seconds; those of `simulate_process` to about the length of a call.
    """
    tail = 4 * costs.in_flight
    head = float(np.sum(evaluations[:-tail])) if len(evaluations) > tail else 0.0
    drained = simulate_process(evaluations[-tail:], costs).seconds
    return head / costs.capacity * costs.call + drained + len(evaluations) * costs.append


def simulate_run(
    evaluations: np.ndarray,
    devices: int,
    costs: Costs,
    *,
    steal: int = 0,
    speeds: np.ndarray | None = None,
    mtbf: float = np.inf,
    seed: int = 0,
) -> Run:
    """Simulate a run with one process for each device.

    Args:
        evaluations: Evaluations of all tests (n,), in order.
        devices: Number of devices, 1 or more.
        costs: Costs of one process.
        steal: Number of tests that a process takes at a time from a common queue; 0 gives each
            process its share from the start, as in dal_jax.
        speeds: Factors (devices,) by which a process takes longer than its costs; None is 1.
        mtbf: Mean time between failures of a device, seconds; one failure stops all processes.
        seed: Seed of the failures.

    Returns:
        The run.
    """
    slow = np.ones(devices) if speeds is None else np.asarray(speeds, float)
    rng = np.random.default_rng(seed)
    images, left = len(evaluations), np.asarray(evaluations)
    useful = float(left.sum()) / costs.capacity * costs.call
    total = started = lost = 0.0
    failures = 0
    while True:
        before = costs.start * slow.max()
        before += (images - len(left)) * costs.read
        strikes = float(rng.exponential(mtbf / devices)) if np.isfinite(mtbf) else np.inf
        started += before + costs.compile * float(slow.max())
        if strikes >= before + _least(left, costs, slow, steal):
            each = costs.compile * slow + _work(left, costs, slow, steal)
            length = float(each.max(initial=0.0))
            if strikes >= before + length:
                break
        if failures == MOST_FAILURES:
            return Run(np.inf, started, np.inf, np.inf, useful, devices, failures, lost)
        failures += 1
        total += strikes + costs.detect + costs.requeue
        left, wasted = _interrupt(left, costs, slow, strikes - before)
        lost += wasted
    working = max(0.0, length - costs.compile * float(slow.max()))
    collected = images * costs.collect
    total += before + length + collected
    return Run(total, started, working, collected, useful, devices, failures, lost)


def _least(left: np.ndarray, costs: Costs, slow: np.ndarray, steal: int) -> float:
    """Return a lower bound on the seconds of the work; fast, since most failures come before it."""
    if steal:
        return 0.0
    sums = np.array([left[index :: len(slow)].sum() for index in range(len(slow))])
    return float((slow * sums).max()) / costs.capacity * costs.call


def _work(left: np.ndarray, costs: Costs, slow: np.ndarray, steal: int) -> np.ndarray:
    """Return the seconds until each process has nothing left to do."""
    devices = len(slow)
    if not steal:
        shares = (left[index::devices] for index in range(devices))
        return slow * [process_seconds(share, costs) for share in shares]
    free = [(0.0, index) for index in range(devices)]
    for first in range(0, len(left), steal):
        chunk = left[first : first + steal]
        when, index = free[0]
        seconds = float(chunk.sum()) / costs.capacity * costs.call + len(chunk) * costs.append
        heapq.heapreplace(free, (when + costs.claim + slow[index] * seconds, index))
    # Extra time of its last tests beside full batches.
    last = left[-costs.in_flight :]
    drain = simulate_process(last, costs).seconds - float(last.sum()) / costs.capacity * costs.call
    ends = np.zeros(devices)
    for when, index in free:
        ends[index] = when + (slow[index] * drain if when else 0.0)
    return ends


def _interrupt(
    left: np.ndarray, costs: Costs, slow: np.ndarray, seconds: float
) -> tuple[np.ndarray, float]:
    """Return the tests that are not finished after some seconds, and the lost device time."""
    devices, kept, lost = len(slow), [], 0.0
    for index in range(devices):
        share = left[index::devices]
        worked = max(0.0, seconds / slow[index] - costs.compile)
        done = min(worked / costs.call * costs.capacity, float(share.sum()))
        ends = np.cumsum(share)
        # Of the tests under way half are nearly done, in no order.
        finished = max(0, int(np.searchsorted(ends, done, "right")) - costs.in_flight // 2)
        spent = done - (float(ends[finished - 1]) if finished else 0.0)
        lost += spent / costs.capacity * costs.call * slow[index]
        kept.append(share[finished:])
    return np.concatenate(kept), lost


@dataclass(frozen=True)
class SizeInputs:
    """Costs of one image size, and the evaluations of its tests."""

    size: int
    costs: Costs
    histogram: dict[int, int]  # number of tests, by the evaluations of a test

    def draw(self, images: int, seed: int) -> np.ndarray:
        """Draw the evaluations of tests with the measured frequencies.

        Args:
            images: Number of tests.
            seed: Seed of the draw.

        Returns:
            Evaluations (images,), 1 or more.
        """
        counts = np.array(list(self.histogram.values()), float)
        values = np.array(list(self.histogram))
        return np.random.default_rng(seed).choice(values, images, p=counts / counts.sum())


def summarize(rows: dict[int, Path], bench: Path) -> dict[str, Any]:
    """Reduce measurements to the inputs of the simulation.

    Args:
        rows: Files results.jsonl of null images, from a run directory, by size.
        bench: File of `dal-jax bench --engines adaptive`.

    Returns:
        Machine, and by size costs and histogram; a size without rows takes those of the largest
        size that has them, stretched to the mean of the bench.
    """
    histograms: dict[int, dict[int, int]] = {}
    for size, file in sorted(rows.items()):
        lines = file.read_text().splitlines()
        counts = Counter(json.loads(line)["num_evaluations"] for line in lines)
        histograms[size] = dict(sorted(counts.items()))
    records = json.loads(bench.read_text())["records"]
    machine = next(record["machine"] for record in records if "machine" in record)
    sizes = {}
    for record in records:
        if record["kind"] != "engine" or record["engine"] != "adaptive" or "failure" in record:
            continue
        size, capacity = record["size"], record["capacity"]["float32"]
        mean = record["evaluations_per_test"]["mean"]
        each = record["seconds_per_test"] / mean
        rows_of = size if size in histograms else max(histograms)
        sizes[str(size)] = {
            "costs": {
                "call": each * capacity * record["batch_fill"],
                "capacity": capacity,
                "in_flight": 2 * capacity,
                "start": record["start_seconds"],
                "compile": record["compile_seconds"],
            },
            "evaluations": _stretch(histograms[rows_of], None if rows_of == size else mean),
            "rows_of_size": rows_of,
        }
    return {"machine": machine, "sizes": sizes}


def read_inputs(path: Path) -> list[SizeInputs]:
    """Read the inputs that `summarize` returned, from a JSON file."""
    return [
        SizeInputs(
            int(size),
            Costs(**entry["costs"]),
            {int(key): count for key, count in entry["evaluations"].items()},
        )
        for size, entry in json.loads(path.read_text())["sizes"].items()
    ]


def _stretch(histogram: dict[int, int], mean: float | None) -> dict[str, int]:
    """Scale the tests of more than one evaluation to a mean, if one is given."""
    several = {key: count for key, count in histogram.items() if key > 1}
    own = sum(key * count for key, count in several.items()) / max(1, sum(several.values()))
    factor = 1.0 if mean is None else mean / own
    out: Counter[str] = Counter()
    for key, count in histogram.items():
        out[str(key if key == 1 else max(2, round(factor * key)))] += count
    return dict(out)
