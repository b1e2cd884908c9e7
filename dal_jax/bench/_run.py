"""Runs of measurements, each in a fresh process with memory and compilation of its own."""

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

from dal_jax._config import option, same_option
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
from dal_jax.localizers import FORM, localizer_preset

# One thread of a CPU; the host part of the client of JAX may overlap a little.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def thread_limits(threads: int = 0, host_devices: int | None = None) -> dict[str, str]:
    """Return the environment variables of a process with these numbers of threads and devices.

    Args:
        threads: Number of threads: 1, or 0 for one per core.
        host_devices: Number of devices into which JAX divides the processor; None keeps it as it
            is. Other devices are not affected.

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
        flags.append(ONE_THREAD)  # at the end: anything after its second word is ignored
    joined = " ".join(flag for flag in flags if flag)
    return {**variables, "XLA_FLAGS": joined} if joined else variables


def in_process(
    command: Sequence[str],
    variables: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> Any:
    """Run a program whose last line of output is JSON.

    Args:
        command: Command to be run.
        variables: Variables added to the environment.
        seconds: Time limit in seconds; None is none.

    Returns:
        The value of that line, or {"failure": why} if the program failed or took too long.

    Example:
        >>> in_process([sys.executable, "-c", "print('[1, 2]')"])
        [1, 2]
    """
    # A cache of compiled programs would hide the cost of compilation.
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
    """Run a task in a fresh process.

    Args:
        task: Task: "do" is "choose", "adaptive" or "exact"; "subject" holds the fields of a
            `Subject`; "inputs" is the file of the images; "images" is the number of them to take;
            "options" go to the measuring function.
        threads: Number of threads, as for `thread_limits`.
        host_devices: Number of host devices, as for `thread_limits`.
        seconds: Time limit in seconds; None is none.

    Returns:
        The result of `do`, or a failure.

    Example:
        >>> work({"do": "choose", "subject": {"size": 8}, "inputs": "8.npz"}, seconds=0.01)
        {'failure': 'not finished within 0.01 s'}
    """
    command = [sys.executable, "-m", "dal_jax.bench"]
    given = json.dumps({**task, "launched": time.time()})
    return in_process([*command, given], thread_limits(threads, host_devices), seconds)


def do(task: Mapping[str, Any]) -> Any:
    """Run a task of `work` in this process.

    Args:
        task: Task, as for `work`.

    Returns:
        The machine and the chosen inputs for "choose", a list of records for "adaptive", one record
        for "exact".
    """
    subject = Subject(**task["subject"])
    localizer, source = open_subject(subject)
    # Start of the interpreter, imports and weights: the cost of every process besides compilation.
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
    """Return some of the images: the first ones, or those of a list."""
    if count is None:
        return inputs
    kept = list(range(min(count, len(inputs.images)))) if isinstance(count, int) else list(count)
    return inputs._replace(images=inputs.images[kept], references=inputs.references[kept])


class Prepared(NamedTuple):
    """Subject and images of all measurements of one size.

    Example:
        >>> settings = BenchSettings(sizes=(8, 16))
        >>> prepared = Prepared(settings.subject(1), Path("16.npz"), settings)
        >>> prepared.subject.size
        16
    """

    subject: Subject
    inputs: Path  # .npz file of the images
    settings: "BenchSettings"  # of the whole run


# Further measurement on the same images.
Beside = Callable[[Prepared], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a bench run; the last entry of a tuple serves all sizes without their own.

    Raises:
        InputError: A value does not fit.

    Example:
        >>> settings = BenchSettings(sizes=(8, 16, 32), tests=(64, 8))
        >>> [settings.subject(position).tests for position in range(3)]
        [64, 8, 8]
    """

    sizes: tuple[int, ...] = option((8, 16, 32), "Sides of the images in pixels.", metavar="S,...")
    tests: tuple[int, ...] = option(
        (64,),
        "Number of null images with a region that the adaptive engine tests side by side, one for "
        "all sizes or one for each.",
        metavar="N,...",
    )
    exact_tests: tuple[int, ...] = option(
        (2,),
        "Number of these images that an exact engine tests, one for all sizes or one for each.",
        metavar="N,...",
    )
    engines: tuple[str, ...] = option(
        ("adaptive", "sweep"),
        "Engines: adaptive, sweep or scan, each with a dtype if wanted: adaptive,sweep:float32.",
        metavar="ENGINE,...",
    )
    weights: tuple[str, ...] = option(
        (),
        "Weights as for import-weights, one file for all sizes or one for each. Without them and "
        "without --model, the network is untrained.",
        metavar="FILE,...",
    )
    model: tuple[str, ...] = option(
        (), "Checkpoints in place of weights, one for all sizes or one for each.", metavar="DIR,..."
    )
    localizer: str | None = option(
        None,
        "Another use of the network, as in train: mdps:pl, glad:pl,start=300, ...; by default the "
        "one that it was trained for.",
        metavar=FORM,
    )
    threshold: float | None = option(
        None,
        "Threshold of the score; by default half of the null images are flagged.",
        metavar="L",
    )
    devices: tuple[int, ...] = option(
        (),
        "Also measure the tests per second on these numbers of devices (of cores, on a processor).",
        metavar="N,...",
    )
    batch_sizes: tuple[int, ...] = option(
        (),
        "Also measure the tests per second with these numbers of concurrent tests.",
        metavar="N,...",
    )
    precision: float = same_option(TestOptions, "precision")
    repeats: int = option(3, "Number of repetitions, whose medians are reported.")
    threads: int = option(0, "Number of threads: 1, or 0 for all cores.")
    limit_seconds: float = option(1800.0, "Time limit of one measurement in seconds.")
    seed: int = same_option(TestOptions, "seed")

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
        if self.weights and self.model:
            raise InputError("weights, model: got both, expected one at most")
        for position in range(len(self.sizes)):
            self.subject(position)

    def subject(self, position: int) -> Subject:
        """Return the subject at the size of this position.

        Args:
            position: Position of the size among `sizes`, from 0.

        Returns:
            The settings of the localizer and the images.
        """
        return Subject(
            size=self.sizes[position],
            tests=at(self.tests, position),
            weights=at(self.weights, position) if self.weights else None,
            model=at(self.model, position) if self.model else None,
            threshold=self.threshold,
            seed=self.seed,
            localizer=self.localizer,
        )


def at(values: tuple[Any, ...], position: int) -> Any:
    """Return the entry for a size, the last one where there are fewer entries than sizes."""
    return values[min(position, len(values) - 1)]


def measure(settings: BenchSettings, beside: Beside | None = None) -> Iterator[dict[str, Any]]:
    """Measure everything that the settings name, each in a process of its own.

    Args:
        settings: Settings of the run.
        beside: Function for a further measurement at each size, such as that of the peer.

    Yields:
        Records as they come; a failed measurement gives a record with "failure". The first record
        of a size has the kind "images" and holds machine, weights and threshold.

    Example:
        >>> settings = BenchSettings(sizes=(8,), limit_seconds=0.01)  # too short for any process
        >>> [(record["kind"], record["failure"]) for record in measure(settings)]
        [('images', 'not finished within 0.01 s')]
    """
    with tempfile.TemporaryDirectory() as folder:
        for position, size in enumerate(settings.sizes):
            prepared = Prepared(settings.subject(position), Path(folder, f"{size}.npz"), settings)
            chosen = _work(prepared, "choose")
            yield {"kind": "images", "size": size, **chosen}
            if "failure" in chosen:
                continue
            for engine in settings.engines:
                yield _engine(prepared, engine, at(settings.exact_tests, position))
            if settings.devices or settings.batch_sizes:
                yield from _speeds(prepared)
            if beside is not None:
                yield from beside(prepared)


def _work(prepared: Prepared, do: str, host_devices: int | None = None, **task: Any) -> Any:
    whole = {"do": do, "subject": asdict(prepared.subject), "inputs": str(prepared.inputs), **task}
    settings = prepared.settings
    return work(
        whole, threads=settings.threads, host_devices=host_devices, seconds=settings.limit_seconds
    )


def _engine(prepared: Prepared, engine: str, exact_tests: int) -> dict[str, Any]:
    settings = prepared.settings
    name, _, dtype = engine.partition(":")
    dtype = TestOptions(engine=name, dtype=dtype or None).dtype
    options = {"dtype": dtype, "precision": settings.precision}
    told = {"kind": "engine", "size": prepared.subject.size, "engine": name, "dtype": dtype}
    if name != "adaptive":
        options |= {"engine": name}
        return {**told, **_work(prepared, "exact", images=exact_tests, options=options)}
    found = _work(prepared, "adaptive", options={**options, "repeats": settings.repeats})
    return {**told, **(found[0] if isinstance(found, list) else found)}


def _speeds(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Yield the speeds of the adaptive engine for numbers of devices and of concurrent tests."""
    settings = prepared.settings
    for count in settings.devices or (1,):
        told = {"kind": "speed", "size": prepared.subject.size, "devices": count}
        told |= {"engine": "adaptive", "dtype": "float32"}
        options = {
            "precision": settings.precision,
            "repeats": settings.repeats,
            "devices": count,
            "batch_sizes": [*settings.batch_sizes, None],
        }
        found = _work(prepared, "adaptive", count, options=options)
        if isinstance(found, list):
            yield from ({**record, **told} for record in found)
        else:
            yield {**told, **found}
