"""Plans of measurements, each in a fresh process: its memory and compilation are its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax._dal_test import DTYPES, ENGINES, TestOptions
from dal_jax._errors import InputError
from dal_jax.bench._measure import adaptive_records, exact_record, machine
from dal_jax.bench._subject import (
    Inputs,
    Subject,
    choose_inputs,
    load_inputs,
    open_subject,
    save_inputs,
)
from dal_jax.localizers import localizer_preset

# On one thread of a CPU; the host part of its client may overlap a little.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def thread_limits(threads: int = 0, host_devices: int | None = None) -> dict[str, str]:
    """Environment variables of a process that shall use so many threads and devices.

    Args:
        threads: 1, or 0 for as many as there are cores.
        host_devices: into which JAX divides the processor; other devices are not touched.

    Returns:
        Variables by name, to be added to the environment.

    Example:
        >>> thread_limits(threads=1)["OMP_NUM_THREADS"]
        '1'
    """
    flags = [os.environ.get("XLA_FLAGS", "")]
    if host_devices is not None:
        flags.append(f"--xla_force_host_platform_device_count={host_devices}")
    variables: dict[str, str] = {}
    if threads == 1:
        variables |= {name: "1" for name in POOLS}
        flags.append(ONE_THREAD)  # last: what follows its second word is not read
    joined = " ".join(flag for flag in flags if flag)
    return {**variables, "XLA_FLAGS": joined} if joined else variables


def in_process(
    command: Sequence[str],
    variables: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> Any:
    """Runs a program whose last line of output is JSON.

    Args:
        command: to be run.
        variables: added to the environment.
        seconds: limit; None is none.

    Returns:
        What it printed, or {"failure": why} if it failed or took too long.

    Example:
        >>> in_process([sys.executable, "-c", "print('[1, 2]')"])
        [1, 2]
    """
    # A cache of compiled programs would hide what compilation costs.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    try:
        done = subprocess.run(
            list(command),
            env={**environment, **(variables or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"not finished within {seconds:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failure": f"exit code {done.returncode}: {last[:200]}"}
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        return json.loads(last)
    except ValueError:
        return {"failure": f"printed no JSON: {last[:200]}"}


def work(
    task: Mapping[str, Any],
    *,
    threads: int = 0,
    host_devices: int | None = None,
    seconds: float | None = None,
) -> Any:
    """Has a fresh process do a task.

    Args:
        task: "do" is "choose", "adaptive" or "exact"; "subject" holds the fields of a `Subject`;
            "inputs" is the file of the images, "images" how many of them to take; "options" go
            to the measuring function.
        threads: as for `thread_limits`.
        host_devices: as for `thread_limits`.
        seconds: limit; None is none.

    Returns:
        What `do` returned, or a failure.

    Example:
        >>> work({"do": "choose", "subject": {"size": 8}, "inputs": "8.npz"}, seconds=0.01)
        {'failure': 'not finished within 0.01 s'}
    """
    command = [sys.executable, "-m", "dal_jax.bench"]
    given = json.dumps({**task, "launched": time.time()})
    return in_process([*command, given], thread_limits(threads, host_devices), seconds)


def do(task: Mapping[str, Any]) -> Any:
    """Runs a task of `work` in this process.

    Args:
        task: as for `work`.

    Returns:
        For "choose" the machine and what was chosen, for "adaptive" a list of records, for
        "exact" one.
    """
    subject = Subject(**task["subject"])
    localizer, source = open_subject(subject)
    # Interpreter, imports and weights: what every process of a run pays besides compilation.
    start = {"start_seconds": time.time() - task["launched"]} if "launched" in task else {}
    if task["do"] == "choose":
        inputs = choose_inputs(subject, localizer)
        save_inputs(task["inputs"], inputs)
        return {
            "machine": machine(),
            "weights": source,
            "threshold": inputs.threshold,
            "flagged_null_images": f"{inputs.flagged} of {inputs.looked}",
        }
    inputs = _first(load_inputs(task["inputs"]), task.get("images"))
    options = task.get("options", {})
    if task["do"] == "exact":
        return {"size": subject.size, **exact_record(localizer, inputs, **options), **start}
    records = adaptive_records(localizer, inputs, **options)
    return [{"size": subject.size, **record, **start} for record in records]


def _first(inputs: Inputs, count: int | Sequence[int] | None) -> Inputs:
    """Some of the images: the first ones, or those of a list."""
    if count is None:
        return inputs
    kept = list(range(min(count, len(inputs.images)))) if isinstance(count, int) else list(count)
    return inputs._replace(images=inputs.images[kept], references=inputs.references[kept])


class Prepared(NamedTuple):
    """Subject and images of all measurements of one size.

    Example:
        >>> plan = Plan(sizes=(8, 16))
        >>> prepared = Prepared(plan.subject(1), Path("16.npz"), plan)
        >>> prepared.subject.size
        16
    """

    subject: Subject
    inputs: Path  # .npz file of the images
    plan: "Plan"  # the whole run


# Measures something else on the same images.
Beside = Callable[[Prepared], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Plan:
    """Settings of a bench run; the last entry of a tuple serves all sizes that have none.

    Raises:
        InputError: a value does not fit.

    Example:
        >>> plan = Plan(sizes=(8, 16, 32), tests=(64, 8))
        >>> [plan.subject(position).tests for position in range(3)]
        [64, 8, 8]
    """

    sizes: tuple[int, ...] = (8, 16, 32)  # sides of the images, pixels
    tests: tuple[int, ...] = (64,)  # per size, images with a region, adaptive engine
    exact_tests: tuple[int, ...] = (2,)  # per size, the first of these images, exact engine
    engines: tuple[str, ...] = ("adaptive", "sweep")  # or with a dtype, "sweep:float32"
    weights: tuple[str, ...] = ()  # per size, state dict files
    models: tuple[str, ...] = ()  # per size, checkpoints
    threshold: float | None = None  # None: half of the null images are flagged
    devices: tuple[int, ...] = ()  # numbers of devices at which speed is measured
    batch_sizes: tuple[int, ...] = ()  # numbers of tests under way at which it is
    precision: float = TestOptions.precision
    repeats: int = 3  # of which the medians are given
    threads: int = 0  # 1, or 0 for all cores
    limit_seconds: float = 1800.0  # of one measurement
    seed: int = 0  # of the images, the draws and an untrained network
    localizer: str | None = None  # as `localizer_preset` takes it

    def __post_init__(self) -> None:
        if self.localizer is not None:
            localizer_preset(self.localizer)
        for name in ("sizes", "tests", "exact_tests", "devices", "batch_sizes"):
            values = getattr(self, name)
            if any(value < 1 for value in values):
                raise InputError(f"{name}: got {values}, expected numbers of 1 or more")
        if not (self.sizes and self.tests and self.exact_tests):
            raise InputError("sizes, tests, exact_tests: got none, expected at least one number")
        for engine in self.engines:
            name, _, dtype = engine.partition(":")
            if name not in ENGINES or (dtype and dtype not in DTYPES):
                known = f"{', '.join(ENGINES)}, perhaps with :float32 or :float64"
                raise InputError(f"engines: got {engine!r}, expected {known}")
            TestOptions(engine=name, dtype=dtype or None)
        if self.threads not in (0, 1):
            raise InputError(f"threads: got {self.threads}, expected 1, or 0 for all cores")
        if self.repeats < 1:
            raise InputError(f"repeats: got {self.repeats}, expected 1 or more")
        if not self.limit_seconds > 0:
            raise InputError(f"limit_seconds: got {self.limit_seconds}, expected above 0")
        if self.weights and self.models:
            raise InputError("weights, models: got both, expected one at most")
        for position in range(len(self.sizes)):
            self.subject(position)

    def subject(self, position: int) -> Subject:
        """Returns the subject at the size of this position.

        Args:
            position: of the size among `sizes`, from 0.

        Returns:
            The localizer and the images.
        """
        return Subject(
            size=self.sizes[position],
            tests=at(self.tests, position),
            weights=at(self.weights, position) if self.weights else None,
            model=at(self.models, position) if self.models else None,
            threshold=self.threshold,
            seed=self.seed,
            localizer=self.localizer,
        )


def at(values: tuple[Any, ...], position: int) -> Any:
    """The entry for a size, the last one where there are fewer entries than sizes."""
    return values[min(position, len(values) - 1)]


def measure(plan: Plan, beside: Beside | None = None) -> Iterator[dict[str, Any]]:
    """Measures what a plan says, each thing in a process of its own.

    Args:
        plan: what.
        beside: measures something more at each size, the peer for instance.

    Yields:
        Records as they come; what failed is a record with "failure". The first record of a size
        has the kind "images" and tells machine, weights and threshold.

    Example:
        >>> plan = Plan(sizes=(8,), limit_seconds=0.01)  # too short for any process
        >>> [(record["kind"], record["failure"]) for record in measure(plan)]
        [('images', 'not finished within 0.01 s')]
    """
    with tempfile.TemporaryDirectory() as folder:
        for position, size in enumerate(plan.sizes):
            prepared = Prepared(plan.subject(position), Path(folder, f"{size}.npz"), plan)
            chosen = _work(prepared, "choose")
            yield {"kind": "images", "size": size, **chosen}
            if "failure" in chosen:
                continue
            for engine in plan.engines:
                yield _engine(prepared, engine, at(plan.exact_tests, position))
            if plan.devices or plan.batch_sizes:
                yield from _speeds(prepared)
            if beside is not None:
                yield from beside(prepared)


def _work(prepared: Prepared, do: str, host_devices: int | None = None, **task: Any) -> Any:
    whole = {"do": do, "subject": asdict(prepared.subject), "inputs": str(prepared.inputs), **task}
    plan = prepared.plan
    return work(whole, threads=plan.threads, host_devices=host_devices, seconds=plan.limit_seconds)


def _engine(prepared: Prepared, engine: str, exact_tests: int) -> dict[str, Any]:
    plan = prepared.plan
    name, _, dtype = engine.partition(":")
    dtype = TestOptions(engine=name, dtype=dtype or None).dtype
    options = {"dtype": dtype, "precision": plan.precision}
    told = {"kind": "engine", "size": prepared.subject.size, "engine": name, "dtype": dtype}
    if name != "adaptive":
        options |= {"engine": name}
        return {**told, **_work(prepared, "exact", images=exact_tests, options=options)}
    found = _work(prepared, "adaptive", options={**options, "repeats": plan.repeats})
    return {**told, **(found[0] if isinstance(found, list) else found)}


def _speeds(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Tests per second of the adaptive engine against devices and tests under way."""
    plan = prepared.plan
    for count in plan.devices or (1,):
        told = {"kind": "speed", "size": prepared.subject.size, "devices": count}
        told |= {"engine": "adaptive", "dtype": "float32"}
        options = {
            "precision": plan.precision,
            "repeats": plan.repeats,
            "devices": count,
            "batch_sizes": [*plan.batch_sizes, None],
        }
        found = _work(prepared, "adaptive", count, options=options)
        if isinstance(found, list):
            yield from ({**record, **told} for record in found)
        else:
            yield {**told, **found}
