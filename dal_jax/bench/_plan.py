"""A whole run of measurements: which records there will be, one size after the other."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax._dal_test import DTYPES, ENGINES, TestOptions
from dal_jax._errors import InputError
from dal_jax.bench._process import work
from dal_jax.bench._subject import Subject
from dal_jax.localizers import localizer_preset


class Prepared(NamedTuple):
    """What the measurements of one size have in common.

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
    """What to measure; of a tuple with one entry per size the last entry serves the sizes left.

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
        """What is measured at the size of this position.

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
