"""Measurements in this process: whole searches, their floor, and the machine."""

import contextlib
import math
import os
import platform
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dal_jax._compat import exact_arithmetic
from dal_jax._dal_test import TestOptions, TestResult, dal_test, dal_test_batch, evaluator_of
from dal_jax._errors import InputError
from dal_jax._version import __version__
from dal_jax.bench._subject import Inputs
from dal_jax.localizers import Localizer
from dal_jax.search import CALLS, AdaptiveOptions, Evaluator


def memory() -> dict[str, Any]:
    """Return the peak memory of this process, and of its first device if reported, in MiB."""
    try:
        import resource
    except ImportError:  # the module is missing on Windows
        return {"peak_memory_mb": None}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out: dict[str, Any] = {"peak_memory_mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        out["peak_device_memory_mb"] = stats["peak_bytes_in_use"] / 2**20
    return out


def machine() -> dict[str, Any]:
    """Describe this machine: cores, memory, devices and versions, without any names.

    Returns:
        Numbers and words by field, ready for JSON.

    Example:
        >>> machine()["cores"] >= 1
        True
    """
    devices = jax.local_devices()
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return {
        "cores": len(allowed),
        "memory_gib": _memory_gib(),
        "processor": platform.machine(),
        "system": platform.system(),
        "device_platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "dal_jax": __version__,
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


# Approximate seconds that a measurement of the bare forward pass lasts, and its most calls.
FLOOR_SECONDS, FLOOR_CALLS = 0.5, 200


def bare_seconds(evaluator: Evaluator, dtype: str, images: np.ndarray) -> float:
    """Return the seconds of one full batch by the evaluator's program, with arrays on the devices.

    The number of concurrent calls is that of a search, so that both overlap alike.

    Args:
        evaluator: Evaluator whose program is measured.
        dtype: Dtype of the program.
        images: Images (N, H, W, C), repeated to fill the batch.

    Returns:
        Wall time of many calls in seconds, divided by their number.

    Example:
        >>> from dal_jax.search import Functions
        >>> def brightness(params, draws, x):
        ...     return x.sum(-1)
        >>> functions = Functions(brightness, lambda params, draws, x: x, (4, 4, 1))
        >>> bare_seconds(Evaluator(functions, (), ()), "float32", np.zeros((1, 4, 4, 1))) > 0
        True
    """
    program, prepared = evaluator._program(dtype, False)
    count = evaluator.capacity(dtype)
    used = np.full(count // program.lanes, program.lanes, np.int32)
    batch = np.resize(images, (count, *images.shape[1:])).astype(dtype)
    with exact_arithmetic():
        batch = jax.device_put(batch, program.apply.input_shardings[0][-2])
        jax.block_until_ready(program.apply(prepared, (), batch, used))
        started = time.perf_counter()
        jax.block_until_ready(program.apply(prepared, (), batch, used))
        once = time.perf_counter() - started
        calls = int(np.clip(FLOOR_SECONDS / once, 2, FLOOR_CALLS))
        under_way: deque[Any] = deque()
        started = time.perf_counter()
        for _ in range(calls):
            under_way.append(program.apply(prepared, (), batch, used))
            if len(under_way) >= CALLS:
                jax.block_until_ready(under_way.popleft())
        jax.block_until_ready(list(under_way))
    return (time.perf_counter() - started) / calls


@contextlib.contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Count calls and images of every evaluator, by dtype.

    Yields:
        Running counts, by "calls DTYPE" and "images DTYPE".

    Example:
        >>> from dal_jax.search import Functions
        >>> def brightness(params, draws, x):
        ...     return x.sum(-1)
        >>> functions = Functions(brightness, lambda params, draws, x: x, (4, 4, 1))
        >>> with counted_calls() as counts:
        ...     _ = Evaluator(functions, (), ())(np.zeros((3, 4, 4, 1)), (), "float32")
        >>> counts["calls float32"], counts["images float32"]
        (1, 3)
    """
    counts: Counter[str] = Counter()
    original = Evaluator.__call__

    def counting(
        self: Evaluator, images: Any, draws: Any, dtype: str, used: Any = None, **how: Any
    ) -> Any:
        counts[f"calls {dtype}"] += 1
        counts[f"images {dtype}"] += len(images) if used is None else int(sum(used))
        return original(self, images, draws, dtype, used, **how)

    Evaluator.__call__ = counting  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Evaluator.__call__ = original  # type: ignore[method-assign]


NOISE = "iid:1.0"


def adaptive_records(
    localizer: Localizer,
    inputs: Inputs,
    *,
    dtype: str = "float32",
    batch_sizes: Sequence[int | None] = (None,),
    devices: int | None = None,
    repeats: int = 3,
    precision: float = TestOptions.precision,
) -> list[dict[str, Any]]:
    """Time runs of many tests by the adaptive engine, and alternately their floor.

    Args:
        localizer: Localizer to be measured.
        inputs: Images, references and threshold.
        dtype: Dtype of the search.
        batch_sizes: Numbers of concurrent tests; None is the default of `dal_test_batch`.
        devices: Number of devices; None is all.
        repeats: Number of repetitions, whose medians are reported.
        precision: Precision of the tests.

    Returns:
        A record for each batch size; `benchmarks/README.md` describes the fields.

    Raises:
        InputError: There are fewer devices than requested.

    Example:
        >>> from dal_jax.localizers import from_score
        >>> localizer = from_score(lambda params, draws, x: x.sum(-1), (2, 2, 1), threshold=1.0)
        >>> images, references = np.full((1, 2, 2, 1), 2.0), np.zeros((1, 2, 2, 1))
        >>> inputs = Inputs(images, references, threshold=1.0, flagged=1, looked=1)
        >>> record = adaptive_records(localizer, inputs, repeats=1)[0]
        >>> record["engine"], record["tests"], record["overhead_over_forward"] > 0
        ('adaptive', 1, True)
    """
    used = jax.local_devices()
    if devices is not None:
        if not 1 <= devices <= len(used):
            raise InputError(f"devices: got {devices}, expected 1 to {len(used)}")
        used = used[:devices]
    localizer = localizer.with_threshold(inputs.threshold)
    evaluator = evaluator_of(localizer, devices=used)
    compiled = {}
    for name in dict.fromkeys([dtype, "float64"]):
        started = time.perf_counter()
        evaluator.capacity(name)
        compiled[name] = time.perf_counter() - started
    common = {
        "engine": "adaptive",
        "dtype": dtype,
        "tests": len(inputs.images),
        "devices": len(used),
        "capacity": {name: evaluator.capacity(name) for name in compiled},
        "compile_seconds": sum(compiled.values()),
    }

    def run(count: int, batch_size: int | None, **more: Any) -> list[TestResult]:
        return dal_test_batch(
            localizer,
            inputs.images[:count],
            inputs.references[:count],
            NOISE,
            batch_size=batch_size,
            devices=used,
            dtype=dtype,
            precision=precision,
            randomization=0.0,  # the inputs were chosen by their own flagged pixels
            **more,
        )

    # Compiles the programs, and those for more points than most searches need.
    run(1, None)
    run(1, None, adaptive=AdaptiveOptions(spacing=0.1))
    records = []
    for batch_size in batch_sizes:
        rows = [
            _repeat(evaluator, compiled, run, len(inputs.images), batch_size, inputs.images)
            for _ in range(max(1, repeats))
        ]
        records.append({**common, "batch_size": batch_size, **_summary(rows), **memory()})
    return records


def exact_record(
    localizer: Localizer,
    inputs: Inputs,
    *,
    engine: str = "sweep",
    dtype: str = "float64",
    repeat_first: bool = True,
    precision: float = TestOptions.precision,
) -> dict[str, Any]:
    """Time tests by an exact engine: the sweep one after the other, the scan side by side.

    Args:
        localizer: Localizer to be measured.
        inputs: Images, references and threshold.
        engine: Engine, "sweep" or "scan".
        dtype: Dtype of the search; "float64" with "scan".
        repeat_first: True to test the first image, whose test compiles, before the others.
        precision: Precision of the tests.

    Returns:
        A record with the fields of `adaptive_records`, and windows; its compile time is the excess
        of the first test's time over that of its repetition.

    Example:
        >>> from dal_jax.localizers import from_score
        >>> localizer = from_score(lambda params, draws, x: x.sum(-1), (2, 2, 1), threshold=1.0)
        >>> images, references = np.full((1, 2, 2, 1), 2.0), np.zeros((1, 2, 2, 1))
        >>> inputs = Inputs(images, references, threshold=1.0, flagged=1, looked=1)
        >>> record = exact_record(localizer, inputs, repeat_first=False)
        >>> record["engine"], record["status"], record["seconds_per_test"] > 0
        ('sweep', {'OK': 1}, True)
    """
    localizer = localizer.with_threshold(inputs.threshold)
    how = {"engine": engine, "dtype": dtype, "precision": precision, "randomization": 0.0}

    def one(number: int) -> TestResult:
        images = inputs.images[number], inputs.references[number]
        return dal_test(localizer, *images, NOISE, **how)

    first = one(0).seconds if repeat_first else None
    again = one(0).seconds if repeat_first and engine == "scan" else None
    cpu, started = time.process_time(), time.perf_counter()
    if engine == "scan":
        kept = dal_test_batch(localizer, inputs.images, inputs.references, NOISE, **how)
        total = time.perf_counter() - started
    else:
        kept = [one(number) for number in range(len(inputs.images))]
        again, total = kept[0].seconds, sum(row.seconds for row in kept)
    cpu = time.process_time() - cpu
    windows = [row.num_windows for row in kept]
    return {
        "engine": engine,
        "dtype": dtype,
        "tests": len(kept),
        "devices": jax.local_device_count() if engine == "scan" else 1,
        "status": dict(Counter(row.status.value for row in kept)),
        "seconds_per_test": total / len(kept),
        "cpu_seconds_per_test": cpu / len(kept),
        "tests_per_second": len(kept) / total,
        "evaluations_per_test": spread([row.num_evaluations for row in kept]),
        "windows_per_test": spread(windows),
        "windows": windows,
        "windows_per_second": sum(windows) / total,
        "overhead_over_forward": None,
        "compile_seconds": None if first is None or again is None else first - again,
        "precision": precision,
        **memory(),
    }


def spread(values: Sequence[int]) -> dict[str, float]:
    """Return median, mean and maximum."""
    return {
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "max": float(np.max(values)),
    }


def _repeat(
    evaluator: Evaluator,
    dtypes: Any,
    run: Any,
    tests: int,
    batch_size: int | None,
    images: np.ndarray,
) -> dict[str, Any]:
    """Return the floor of each dtype, then the run."""
    floor = {d: bare_seconds(evaluator, d, images) for d in dtypes}
    with counted_calls() as counts:
        started = time.perf_counter()
        results = run(tests, batch_size)
        seconds = time.perf_counter() - started
    room = {d: evaluator.capacity(d) for d in dtypes}
    least = math.fsum(counts[f"images {d}"] * floor[d] / room[d] for d in dtypes)
    full = sum(counts[f"calls {d}"] * room[d] for d in dtypes)
    return {
        "seconds": seconds,
        "floor": floor,
        "least": least,
        "overhead": seconds / least,
        "fill": sum(counts[f"images {d}"] for d in dtypes) / full,
        "wide": counts["images float64"] / sum(counts[f"images {d}"] for d in dtypes),
        "results": results,
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    results = rows[0]["results"]
    seconds = statistics.median(row["seconds"] for row in rows)
    return {
        "status": dict(Counter(result.status.value for result in results)),
        "seconds_per_test": seconds / len(results),
        "tests_per_second": len(results) / seconds,
        "evaluations_per_test": spread([result.num_evaluations for result in results]),
        "windows_per_second": None,
        "overhead_over_forward": statistics.median(row["overhead"] for row in rows),
        "forward_seconds_per_batch": {
            dtype: statistics.median(row["floor"][dtype] for row in rows)
            for dtype in rows[0]["floor"]
        },
        "forward_inputs": "on the devices",
        "batch_fill": rows[0]["fill"],
        "float64_share": rows[0]["wide"],
        "repeats": [row["seconds"] for row in rows],
    }
