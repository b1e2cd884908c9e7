"""Measurements in fresh processes, so that memory and compilation are those of one thing alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dal_jax.bench._machine import machine
from dal_jax.bench._measure import adaptive_records, exact_record
from dal_jax.bench._subject import (
    Inputs,
    Subject,
    choose_inputs,
    load_inputs,
    open_subject,
    save_inputs,
)

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
    """Does a task of `work` in this process.

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
