"""A simulated queue: what many tests cost on many devices, from measured costs of the parts.

Follows `dal_jax.search.run_side_by_side` within a process, and `dal_jax.run_tests` among
processes: each takes every count-th image, all wait for one another at the start and the end.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dal_jax.search import CALLS

# What a search asks for, in order: its image, the first grid, then so many at a time, the checks.
GRID, SECTION, CHECKS = 18, 4, 8
# A run that fails as often never ends.
MOST_FAILURES = 500


class Costs(NamedTuple):
    """Of one process with one device; seconds where nothing else is said."""

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
    """What one process did."""

    seconds: float
    calls: int
    latency: np.ndarray  # seconds of each simulated test from its start to its end


class Run(NamedTuple):
    """What all processes did; seconds."""

    total: float  # until the results are collected
    started: float  # of it before the first test, compilation included
    working: float  # until the last process is done
    collected: float  # at the end, by one process
    useful: float  # full batches of all processes together
    devices: int
    failures: int
    lost: float  # device time of tests that were under way when a process was lost

    @property
    def device_hours(self) -> float:
        """What is paid for."""
        return self.devices * self.total / 3600

    @property
    def utilization(self) -> float:
        """Share of it that went into full batches."""
        return self.useful / (self.devices * self.total)


def requests(evaluations: int) -> Iterator[int]:
    """Sizes of the requests of a test.

    Args:
        evaluations: of the whole test, 1 or more.

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
    """One process call by call.

    Args:
        evaluations: (n,) of its tests, in order.
        costs: of its calls.

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
    """Time of a process: full batches first, the last tests call by call, records appended.

    Args:
        evaluations: (n,) of its tests, in order.
        costs: of its calls.

    Returns:
        Seconds; those of `simulate_process` but for what rounds to a call.
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
    """A run of as many processes as devices.

    Args:
        evaluations: (n,) of all tests, in order.
        devices: 1 or more.
        costs: of one of them.
        steal: 0: each process has its share from the start, as in dal_jax; else a process takes
            so many tests at a time from a common queue.
        speeds: (devices,) how many times longer a process takes than the costs say; None is 1.
        mtbf: mean time between failures of a device, seconds; one failure stops all processes.
        seed: of the failures.

    Returns:
        What it took.
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
        left, wasted = _interrupted(left, costs, slow, strikes - before)
        lost += wasted
    working = max(0.0, length - costs.compile * float(slow.max()))
    collected = images * costs.collect
    total += before + length + collected
    return Run(total, started, working, collected, useful, devices, failures, lost)


def _least(left: np.ndarray, costs: Costs, slow: np.ndarray, steal: int) -> float:
    """What the work takes at least; quickly told, since most failures come before it."""
    if steal:
        return 0.0
    sums = np.array([left[index :: len(slow)].sum() for index in range(len(slow))])
    return float((slow * sums).max()) / costs.capacity * costs.call


def _work(left: np.ndarray, costs: Costs, slow: np.ndarray, steal: int) -> np.ndarray:
    """Seconds until each process has nothing left to do."""
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
    # What its last tests take longer than in full batches.
    last = left[-costs.in_flight :]
    drain = simulate_process(last, costs).seconds - float(last.sum()) / costs.capacity * costs.call
    ends = np.zeros(devices)
    for when, index in free:
        ends[index] = when + (slow[index] * drain if when else 0.0)
    return ends


def _interrupted(
    left: np.ndarray, costs: Costs, slow: np.ndarray, seconds: float
) -> tuple[np.ndarray, float]:
    """Tests that are not finished after so many seconds, and device time that was for nothing."""
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
