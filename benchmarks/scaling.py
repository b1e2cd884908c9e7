"""Cost of a million images on 1 to 512 devices: a simulated queue with measured inputs.

python -m benchmarks.scaling
python -m benchmarks.scaling --rows 8=RUN8/results.jsonl 16=RUN16/results.jsonl --bench bench.json

With --rows (from run directories of `dal-jax experiment type1_error`) and --bench (from `dal-jax
bench`) the inputs are written anew; without them they are read. `docs/scaling.md` has the tables.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.queue_model import (
    Costs,
    SizeInputs,
    process_seconds,
    read_inputs,
    simulate_process,
    simulate_run,
    summarize,
)
from dal_jax.bench import align_rows, number
from dal_jax.images import write_text

INPUTS = Path(__file__).with_name("data") / "queue.json"
DAY, GIB = 86400.0, 2**30
# Size of a record in a shard, and in the memory of a process that has read it; measured, bytes.
RECORD_BYTES, RECORD_MEMORY = 600, 4.2 * 1024
# Assumed rate of a shared file system for all processes together, bytes a second.
FILE_BYTES = 1e9
STEAL = 64  # tests at a time


def lengths(measured: list[SizeInputs]) -> str:
    """Return a table of the inputs: lengths of tests, and costs of their parts."""
    titles = ["size", "one evaluation only", "median of the others", "99%", "max"]
    titles += ["ms a call", "of evaluations", "start, s", "compile, s", "p50 test, s", "p99, s"]
    rows = [titles]
    for entry in measured:
        tests, costs = entry.draw(10**6, 0), entry.costs
        long = tests[tests > 1]
        latency = simulate_process(tests[: max(300, 20 * costs.in_flight)], costs).latency
        latency = latency[latency > np.median(latency) / 10]
        share = 100 * float(np.mean(tests == 1))
        rows.append(
            [
                str(entry.size),
                f"{share:.0f}%",
                *(number(float(v)) for v in np.percentile(long, [50, 99])),
                str(long.max()),
                number(1e3 * costs.call),
                str(costs.capacity),
                number(costs.start),
                number(costs.compile),
                *(number(float(v)) for v in np.percentile(latency, [50, 99])),
            ]
        )
    return align_rows(rows)


def runs(measured: list[SizeInputs], images: int, devices: list[int], seed: int) -> str:
    """Return a table of whole runs, with equal devices and no failures."""
    titles = ["size", "devices", "time", "images a s", "device-hours", "utilization"]
    rows = [[*titles, "start", "work", "slowest / mean", "collecting", "stealing, time"]]
    for entry in measured:
        tests = entry.draw(images, seed)
        for count in devices:
            run = simulate_run(tests, count, entry.costs)
            other = simulate_run(tests, count, entry.costs, steal=STEAL)
            rows.append(
                [
                    str(entry.size),
                    str(count),
                    duration(run.total),
                    number(images / run.total),
                    number(run.device_hours),
                    f"{100 * run.utilization:.0f}%",
                    duration(run.started),
                    duration(run.working),
                    f"{run.working * count / run.useful:.3f}",
                    duration(run.collected),
                    duration(other.total),
                ]
            )
    return align_rows(rows)


def uneven(measured: list[SizeInputs], images: int, devices: list[int], seed: int) -> str:
    """Return a table of both ways of sharing out, with devices of unequal speed."""
    titles = ["size", "devices", "shares: 10% spread", "one half as fast", "both"]
    titles += ["stealing: 10% spread", "one half as fast", "both"]
    rows = [titles]
    for entry in measured:
        tests = entry.draw(images, seed)
        for count in devices:
            spread = np.exp(0.1 * np.random.default_rng(seed).standard_normal(count))
            one = np.ones(count)
            one[0] = 2.0
            cells = []
            for steal in (0, STEAL):
                for speeds in (spread, one, spread * one):
                    run = simulate_run(tests, count, entry.costs, steal=steal, speeds=speeds)
                    cells.append(duration(run.started + run.working))
            rows.append([str(entry.size), str(count), *cells])
    return align_rows(rows)


def shares(measured: list[SizeInputs], seed: int) -> str:
    """Return a table of the number of tests that makes up for the start of a process."""
    sizes = (10, 100, 1000, 10_000, 100_000)
    rows = [["size", *(f"{n:,} tests" for n in sizes), "90% from", "99% from"]]
    for entry in measured:
        tests, costs = entry.draw(sizes[-1], seed), entry.costs
        begin = costs.start + costs.compile

        def efficiency(
            count: int, tests: Any = tests, costs: Any = costs, begin: Any = begin
        ) -> Any:
            useful = float(tests[:count].sum()) / costs.capacity * costs.call
            return useful / (begin + process_seconds(tests[:count], costs))

        percent = [f"{100 * efficiency(n):.1f}%" for n in sizes]
        each = float(tests.mean()) / costs.capacity * costs.call
        enough = [number(begin / each * goal / (1 - goal), 2) for goal in (0.9, 0.99)]
        rows.append([str(entry.size), *percent, *enough])
    return align_rows(rows)


def losses(
    measured: list[SizeInputs], images: int, devices: list[int], seed: int, repeats: int = 20
) -> str:
    """Return a table of failures, largest size: a lost process stops all, the command goes on."""
    entry, means = measured[-1], (100 * DAY, 10 * DAY, DAY)
    titles = [f"one in {m / DAY:.0f} d a device: time (failures, lost)" for m in means]
    rows = [["size", "devices", "no failure", *titles]]
    tests = entry.draw(images, seed)
    for count in devices:
        calm = simulate_run(tests, count, entry.costs).total
        cells = []
        for mtbf in means:
            many = [
                simulate_run(tests, count, entry.costs, mtbf=mtbf, seed=seed + k)
                for k in range(repeats)
            ]
            total, often, lost = (
                float(np.mean([getattr(run, name) for run in many]))
                for name in ("total", "failures", "lost")
            )
            paid = 100 * lost / (count * total)
            cells.append(f"{duration(total)} ({often:.1f}, {paid:.2g}%)")
        rows.append([str(entry.size), str(count), duration(calm), *cells])
    return align_rows(rows)


def limits(images: int, devices: list[int], costs: Costs) -> str:
    """Return a table of the work of every process for all images, and of its files."""
    titles = ["devices", "resuming: bytes read", "they take"]
    titles += ["a process reads for", "and keeps", "collecting", "device-hours waiting"]
    rows = [titles]
    for count in devices:
        read = RECORD_BYTES * images * count
        collect = costs.collect * images
        rows.append(
            [
                str(count),
                f"{read / GIB:.1f} GiB",
                duration(read / FILE_BYTES),
                duration(costs.read * images),
                f"{RECORD_MEMORY * images / GIB:.1f} GiB",
                duration(collect),
                number(count * collect / 3600),
            ]
        )
    return align_rows(rows)


def duration(seconds: float) -> str:
    """Return seconds in the unit that fits."""
    for unit, name in ((DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.3g} s"


def main(arguments: list[str] | None = None) -> None:
    """Write the inputs anew if asked to, and print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--inputs", type=Path, default=INPUTS, help="File of measured inputs, JSON."
    )
    parser.add_argument(
        "--rows",
        nargs="*",
        default=[],
        metavar="SIZE=FILE",
        help="Files results.jsonl of null images.",
    )
    parser.add_argument("--bench", type=Path, help="File of `dal-jax bench`.")
    parser.add_argument("--images", type=int, default=10**6, help="Number of images.")
    parser.add_argument(
        "--devices", type=int, nargs="+", default=[1, 8, 64, 512], help="Numbers of devices."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of tests and failures.")
    options = parser.parse_args(arguments)
    if bool(options.rows) != bool(options.bench):
        parser.error("--rows and --bench: got one of them, expected both or neither")
    if options.bench:
        split = (row.partition("=") for row in options.rows)
        made = summarize({int(size): Path(file) for size, _, file in split}, options.bench)
        write_text(options.inputs, json.dumps(made, indent=1) + "\n")
    measured = read_inputs(options.inputs)
    plan = (options.images, options.devices, options.seed)
    for title, table in (
        ("Inputs", lambda: lengths(measured)),
        ("Runs", lambda: runs(measured, *plan)),
        ("Unlike devices", lambda: uneven(measured, *plan)),
        ("Tests for a process", lambda: shares(measured, options.seed)),
        ("Failures", lambda: losses(measured, *plan)),
        ("Work of every process", lambda: limits(*plan[:2], measured[0].costs)),
    ):
        print(f"{title}\n\n{table()}\n", flush=True)


if __name__ == "__main__":
    main()
