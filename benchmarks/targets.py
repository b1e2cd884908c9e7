"""Device programs compiled for accelerators that are not there: memory, arithmetic, time at best.

make targets [SIZES=16,64,256], or in an environment with the packages of that target:
python -m benchmarks.targets [--targets v5e,v5e-4,h100] [--sizes 16] [--programs evaluator,judge]
    [--batch 64] [--json FILE]

Prints a table a target. Exit code 1 if a program does not compile, does not fit in the memory of
the chip, transfers anything to the host, or computes in float64 where it must not; 2 for bad input.
`--programs=-training` takes all programs but that one.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import NamedTuple

# Evaluations of a test, and of these the ones in float64 (13%: `dal-jax bench --sizes 16`). A
# test is judged once a round, which is a request for evaluations after the first
# (`queue_model.requests`).
EVALUATIONS, WIDE, ROUNDS = 48, 6, 8
# What one test uses of each program, in images or lines; programs that are not named here are not
# part of an adaptive search.
USES = {
    "evaluator": EVALUATIONS - WIDE,
    "evaluator-float64": WIDE,
    "reconstruction": 1,
    "open": 1,
    "images": EVALUATIONS,
    "store": EVALUATIONS,
    "judge": ROUNDS,
    "arrange": ROUNDS,
    "sets": ROUNDS,
    "bounds": ROUNDS,
    "choose": ROUNDS,
    "interval": 1,
}
PROGRAMS = (*USES, "exact", "training")

# What XLA's compiler for GPUs has to know of the chip (xla.GpuTargetConfigProto).
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  device_vendor: "NVIDIA Corporation"
  device_address_bits: 64
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
}
"""


class Chip(NamedTuple):
    """A device, by its maker's data sheet."""

    memory: int  # bytes
    bandwidth: float  # bytes a second
    # Operations a second: in "float32" with exact products, in "float64", and in "training", where
    # products may be of the chip's reduced precision.
    flops: dict[str, float]
    description: str = ""  # of a GPU, for its compiler


class Target(NamedTuple):
    """Devices that programs are compiled for."""

    name: str
    chip: Chip
    devices: int
    lines: int  # under way on each device, if memory has room


# A TPU multiplies in bfloat16; an exact product of float32 takes six of these.
V5E = Chip(16 * 2**30, 819e9, {"float32": 197e12 / 6, "training": 197e12})
# H100 SXM: float32 and float64 without tensor cores; training in TensorFloat-32.
H100 = Chip(84942979072, 3.35e12, {"float32": 67e12, "float64": 34e12, "training": 494e12}, _H100)
TARGETS = {
    one.name: one
    for one in (
        Target("v5e", V5E, 1, 1024),
        Target("v5e-4", V5E, 4, 1024),
        Target("h100", H100, 1, 1024),
    )
}


class Task(NamedTuple):
    """What a process compiles."""

    target: str
    sizes: list[int]
    programs: list[str]
    batch: int  # images of a training step


class Row(NamedTuple):
    """A compiled program; memory, operations and bytes are those of one call on one device.

    Example:
        >>> Row("judge", 16, "h100", temporary=3, arguments=4, output=5).memory
        12
    """

    name: str
    size: int  # pixels a side
    target: str
    units: int = 0  # images, or lines, that a device takes at a time
    arithmetic: str = "float32"  # key of `Chip.flops`
    tracing: float = 0.0  # seconds; of an evaluator with the trial of its memory
    compiling: float = 0.0  # seconds
    temporary: int = 0  # bytes, as the next two
    arguments: int = 0
    output: int = 0  # without what takes the place of an argument
    flops: float = 0.0
    bytes: int = 0  # moved
    host: Sequence[str] = ()  # transfers
    float64: str = "none"
    left_out: str = ""  # why the target does not have the program
    failure: str = ""  # why it cannot be used

    @property
    def memory(self) -> int:
        """Memory of a call, bytes."""
        return self.temporary + self.arguments + self.output

    @property
    def measured(self) -> bool:
        """Whether the program was compiled."""
        return self.compiling > 0


def call_seconds(row: Row, chip: Chip) -> float:
    """Estimate the time of a call: operations or bytes at the chip's peak, whichever is longer."""
    peak = chip.flops.get(row.arithmetic, chip.flops["float32"])
    return max(row.flops / peak, row.bytes / chip.bandwidth)


def test_seconds(rows: Iterable[Row], chip: Chip) -> dict[str, float]:
    """Estimate the time that each program takes of one test, on one device.

    Args:
        rows: Programs of one target and size.
        chip: Chip of the target.

    Returns:
        Seconds by name, of the programs that a test uses.
    """
    return {
        row.name: USES[row.name] / row.units * call_seconds(row, chip)
        for row in rows
        if row.name in USES and row.measured
    }


def table(rows: Sequence[Row], target: Target) -> Iterator[str]:
    """Yield the lines of the table of one target, and the estimates below it.

    Args:
        rows: Programs of the target, of any sizes.
        target: The target.
    """
    yield (
        "| size | program | at a time | compile, s | temporary, MiB | arguments, MiB | output, MiB "
        "| GFLOP | MB moved | FLOP a byte | share of a test | to the host | float64 |"
    )
    yield "|" + "---|" * 13
    for size in sorted({row.size for row in rows}):
        own = [row for row in rows if row.size == size]
        parts = test_seconds(own, target.chip)
        for row in own:
            yield _line(row, parts)
    yield ""
    for size in sorted({row.size for row in rows}):
        own = [row for row in rows if row.size == size]
        yield from _estimate(size, own, target)


def _line(row: Row, parts: dict[str, float]) -> str:
    start = f"| {row.size} | {row.name} | "
    if not row.measured:
        words = f"failed: {row.failure}" if row.failure else f"left out: {row.left_out}"
        return start + words + " |" * 11
    whole = sum(parts.values())
    share = f"{parts[row.name] / whole:.2%}" if whole and row.name in parts else "-"
    mebibytes = [f"{v / 2**20:.4g}" for v in (row.temporary, row.arguments, row.output)]
    numbers = [f"{row.flops / 1e9:.3g}", f"{row.bytes / 1e6:.3g}"]
    intensity = f"{row.flops / row.bytes:.3g}" if row.bytes else "-"
    cells = [str(row.units), f"{row.compiling:.1f}", *mebibytes, *numbers, intensity, share]
    cells += [", ".join(row.host) or "nothing", row.float64]
    return start + " | ".join(cells) + (f" | FAILED: {row.failure} |" if row.failure else " |")


def _estimate(size: int, rows: Sequence[Row], target: Target) -> Iterator[str]:
    """Yield the estimate of tests per second, where all programs of a test were compiled."""
    parts = test_seconds(rows, target.chip)
    expected = {name for name in USES if not any(r.name == name and r.left_out for r in rows)}
    if set(parts) == expected:
        rate = target.devices / sum(parts.values())
        yield f"Size {size}, an estimate by the roofline, not a measurement: {rate:.3g} tests/s."


def prepare_environment(target: Target, environment: MutableMapping[str, str]) -> None:
    """Set what JAX reads before it is imported, so that it compiles for devices that are not there.

    Args:
        target: The target.
        environment: Variables to be changed.
    """
    environment.update(JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="false")
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    skipped = ("TPU_SKIP_MDS_QUERY", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK")
    # Other processes on this machine may use the compiler, too.
    environment.update(dict.fromkeys([*skipped, "ALLOW_MULTIPLE_LIBTPU_LOAD"], "1"))
    found = importlib.util.find_spec("nvidia.cuda_nvcc") if target.chip.description else None
    if found is not None and found.submodule_search_locations:
        folder = next(iter(found.submodule_search_locations))
        environment["PATH"] = os.pathsep.join([f"{folder}/bin", environment.get("PATH", "")])
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_gpu_cuda_data_dir={folder}".strip()


def missing_packages(target: Target) -> list[str]:
    """Return the packages that compiling for a target needs and that are not installed."""
    names = ["jax_cuda12_plugin", "nvidia.cuda_nvcc"] if target.chip.description else ["libtpu"]
    missing = []
    for name in names:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # of the part before the dot
            found = None
        missing += [] if found else [name]
    return missing


def compile_target(task: Task) -> Iterator[Row]:
    """Yield the rows of a process that compiles for one target."""
    command = [sys.executable, "-m", "benchmarks.target_programs", json.dumps(task._asdict())]
    asked = [(name, size) for size in task.sizes for name in task.programs]
    # What compilers say of devices that are not there is shown if the process fails.
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                row = Row(**json.loads(line))
                asked.remove((row.name, row.size))
                yield row
        if process.returncode:
            log.seek(0)
            print(*log.readlines()[-20:], sep="", end="", file=sys.stderr)
    for name, size in asked:
        yield Row(name, size, task.target, failure=f"the process ended: {process.returncode}")


def _chosen(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name.removeprefix("-") not in known:
            raise ValueError(f"--{what}: got {name!r}, expected one of {', '.join(known)}")
    wanted = [name for name in names if not name.startswith("-")] or list(known)
    return [name for name in wanted if f"-{name}" not in names]


def _sizes(text: str) -> list[int]:
    sizes = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(sizes) < 1:
        raise ValueError(f"--sizes: got {text!r}, expected numbers of pixels such as 16,64")
    return sizes


def main(words: Sequence[str] | None = None) -> int:
    """Compile, print the tables, and return the exit code.

    Args:
        words: Command line; None is that of this process.
    """
    parser = argparse.ArgumentParser(
        prog="targets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--sizes", default="16")
    parser.add_argument("--programs", default="")
    parser.add_argument("--batch", type=int, default=64, help="images of a training step")
    parser.add_argument("--json", type=Path, help="file for the rows")
    given = parser.parse_args(words)
    try:
        targets = [TARGETS[name] for name in _chosen(given.targets, list(TARGETS), "targets")]
        programs = _chosen(given.programs, PROGRAMS, "programs")
        sizes = _sizes(given.sizes)
        for target in targets:
            if missing := missing_packages(target):
                raise ValueError(f"{target.name}: not installed: {', '.join(missing)}")
    except ValueError as error:
        print(f"targets: {error}", file=sys.stderr)
        return 2
    every: list[Row] = []
    for target in targets:
        rows = []
        for row in compile_target(Task(target.name, sizes, programs, given.batch)):
            rows.append(row)
            words_ = row.failure or row.left_out or f"{row.tracing + row.compiling:.0f} s"
            print(f"{target.name} {row.size} {row.name}: {words_}", file=sys.stderr)
        print(f"\n{target.name}: {target.devices} device(s)\n", *table(rows, target), sep="\n")
        every += rows
        if given.json is not None:
            given.json.write_text(json.dumps([row._asdict() for row in every], indent=1) + "\n")
    failed = [row for row in every if row.failure]
    for row in failed:
        print(f"targets: {row.target} {row.size} {row.name}: {row.failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
