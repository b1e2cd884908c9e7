"""Processor time that the host spends on a test, beside the compiled programs and their dispatch.

It bounds how many tests a second one process can feed to its devices, however fast they are:

    python benchmarks/host_share.py --sizes 64 --tests 128
    python benchmarks/host_share.py --sizes 256 --tests 96 --score cheap

The host does the same whatever the score costs; with the cheap one, large sizes take seconds.

Several batches of the same tests, the first of which compiles the programs:

    python benchmarks/host_share.py --sizes 8 --tests 256 --batches 3

The time is that of the thread that drives the search. What that thread spends inside calls of
compiled programs (their dispatch and, on a CPU, perhaps their execution) is reported apart.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from dal_jax import Localizer, dal_test_batch, from_score
from dal_jax.bench import Subject, choose_inputs, open_subject
from dal_jax.search import Evaluator, _lanes, _rounds


class Share(NamedTuple):
    """Milliseconds of the host's thread for one test."""

    host: float  # beside compiled programs
    dispatch: float  # in calls of compiled programs
    wall: float  # whole time
    process: float  # processor time of all threads
    evaluations: float  # of the score, for one test


class Clock:
    """Time of this thread inside compiled programs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.thread_time() - started

        return timed

    def programs(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that makes the same programs, each of which is timed."""

        def made(*arguments: Any) -> Any:
            programs = make(*arguments)
            return type(programs)(*(self._timed(value) for value in programs))

        return made

    def _timed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return _TimedPrograms(value, self)
        return self.around(value)


class _TimedPrograms:
    """Programs by a key, each of which is timed."""

    def __init__(self, programs: dict[Any, Any], clock: Clock):
        self._programs, self._clock = programs, clock

    def __getitem__(self, key: Any) -> Any:
        return self._clock.around(self._programs[key])


def cheap_score(params: Any, draws: Any, x: Any) -> Any:
    """Return a smooth mix of each pixel and two neighbours."""
    x = x[..., 0]
    beside = jnp.roll(x, 1, 0) + jnp.roll(x, 1, 1)
    return jnp.abs(x + 0.3 * beside + 0.1 * jnp.tanh(x))


def measure(
    subject: Subject, localizer: Localizer, clock: Clock, randomization: float, batches: int
) -> list[Share]:
    """Measure the tests of one image size, with all programs compiled, or batch after batch.

    Args:
        subject: Size and number of the images.
        localizer: Localizer of images of this size; its threshold is chosen here.
        clock: Clock of the compiled programs.
        randomization: Gamma, as in `dal_test`.
        batches: Number of equal batches; 0 for one whose programs are compiled before.

    Returns:
        The share of the host in each batch.
    """
    inputs = choose_inputs(subject, localizer)
    localizer, tests = localizer._replace(threshold=inputs.threshold), subject.tests

    def run(count: int) -> Any:
        parts = inputs.images[:count], inputs.references[:count]
        return dal_test_batch(localizer, *parts, "iid:1.0", randomization=randomization)

    def share() -> Share:
        clock.seconds = 0.0
        clocks = time.thread_time, time.perf_counter, time.process_time
        started = [now() for now in clocks]
        results = run(tests)
        took = [now() - before for now, before in zip(clocks, started, strict=True)]
        evaluations = sum(result.num_evaluations for result in results) / tests
        inside = clock.seconds
        host, dispatch, wall, process = (
            1e3 * seconds / tests for seconds in (took[0] - inside, inside, *took[1:])
        )
        return Share(host, dispatch, wall, process, evaluations)

    if not batches:
        run(min(tests, 4))  # compiles
    return [share() for _ in range(max(1, batches))]


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description="Host milliseconds per test.")
    parser.add_argument("--sizes", default="64,256", help="sides of the images, pixels")
    parser.add_argument("--tests", type=int, default=32, help="number of tests of each size")
    parser.add_argument("--batches", type=int, default=0, help="number of them; 0: compile before")
    parser.add_argument("--randomization", type=float, default=0.5, help="gamma of the tests")
    scores = "dal", "cheap"
    parser.add_argument(
        "--score", choices=scores, default="dal", help="an untrained network or not"
    )
    chosen = parser.parse_args()
    clock = Clock()
    Evaluator.__call__ = clock.around(Evaluator.__call__)  # type: ignore[method-assign]
    for module in (_lanes, _rounds):
        module._programs_for = clock.programs(module._programs_for)  # type: ignore[assignment]
    print("size  host ms  dispatch ms  wall ms  all threads ms  evaluations, all for one test")
    for size in map(int, chosen.sizes.split(",")):
        subject = Subject(size, tests=chosen.tests)
        if chosen.score == "cheap":
            localizer = from_score(cheap_score, (size, size, 1), threshold=1.0)
        else:
            localizer, _ = open_subject(subject)
        for share in measure(subject, localizer, clock, chosen.randomization, chosen.batches):
            print(
                f"{size:4d} {share.host:8.2f} {share.dispatch:12.2f} {share.wall:8.1f} "
                f"{share.process:15.1f} {share.evaluations:12.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
