"""Rounds that alternate between dal_jax and the peer, on the same weights, draws and images.

Used by `dal-jax bench --peer-python PEER_ENV/bin/python`; the peer's own side is
`peer_si4onnx.py`, which runs in its environment on one thread. Where dal_jax uses all cores, the
peer tests one image per core at a time, and each test counts for its share of the machine.
"""

import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dal_jax import InputError, Localizer
from dal_jax.bench import (
    BenchSettings,
    Prepared,
    in_process,
    load_inputs,
    open_subject,
    thread_limits,
    work,
)
from dal_jax.localizers import DalScore
from dal_jax.models import NORM_EPSILON, state_dict_layout

SCRIPT = Path(__file__).with_name("peer_si4onnx.py")


def beside(
    python: str, *, tests: int = 2, seconds: float = 60.0, rounds: int = 2
) -> Callable[[Prepared], Iterator[dict[str, Any]]]:
    """Return the function that `dal_jax.bench.measure` calls at each size.

    Args:
        python: Interpreter of the peer's environment.
        tests: Number of images that the peer tests in a round.
        seconds: Limit of its search of one image; a search that is cut off is extrapolated.
        rounds: Number of rounds.

    Returns:
        A function that yields the record of a size.

    Raises:
        InputError: The peer cannot be imported there, or a number does not fit.
    """
    if tests < 1 or rounds < 1 or not seconds > 0:
        raise InputError(
            f"peer: got {tests} tests, {seconds:g} s, {rounds} rounds, expected more than 0 of each"
        )
    try:
        command = [python, "-c", "import si4onnx, torch"]
        works = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        works = False
    if not works:
        raise InputError(
            f"--peer-python: got {python!r}, which cannot import si4onnx; expected an environment "
            "with benchmarks/peer_requirements.txt"
        )
    return partial(_compare, python, tests, seconds, rounds)


def run_peer(
    python: str, inputs: Sequence[str | Path], *, case: int | None = None, max_seconds: float
) -> Any:
    """Run the peer on one image, on one thread.

    Args:
        python: Interpreter of its environment.
        inputs: Input files of `peer_si4onnx.py`.
        case: Number of the case in them, or None.
        max_seconds: Limit of the search.

    Returns:
        The peer's record, or {"failure": reason}.
    """
    command = [python, str(SCRIPT), *map(str, inputs), "--max-seconds", str(max_seconds)]
    command += [] if case is None else ["--case", str(case)]
    return in_process(command, thread_limits(1), None)


def peer_arrays(localizer: Localizer) -> dict[str, np.ndarray]:
    """Return weights and schedule of a localizer under the names that the peer's script reads.

    Args:
        localizer: Localizer of `dal_localizer`, with a ReLU network.

    Returns:
        Arrays by name; all but the image and its reference.

    Raises:
        InputError: The localizer is of another kind.
    """
    score = localizer.score_fn
    if not isinstance(score, DalScore) or score.config.unet.activation != "relu":
        raise InputError("localizer: got another kind, expected the diffusion localizer with ReLU")
    config = score.config
    levels = np.asarray(config.reverse.coefficients(config.schedule).levels)
    arrays = {
        "lam": np.asarray(localizer.threshold),
        "alpha_bar": config.schedule.alpha_bar,
        "t_seq": levels,
        "t_next": np.append(levels[1:], -1),
        "eta": np.asarray(config.reverse.eta),
        "bn_eps": np.asarray(NORM_EPSILON),
        "noise": np.asarray(localizer.draws),
    }
    for source, target, _, axes in state_dict_layout(config.unet):
        value: Any = localizer.params
        for part in target:
            value = value[part]
        arrays[source] = np.transpose(np.asarray(value), np.argsort(axes))
    return arrays


def _compare(
    python: str, tests: int, seconds: float, rounds: int, prepared: Prepared
) -> Iterator[dict[str, Any]]:
    """Yield one record: all rounds of a size, and the median of their ratios."""
    labels = {
        "kind": "peer",
        "size": prepared.subject.size,
        "engine": "adaptive",
        "dtype": "float32",
        "threads": _jobs(prepared.settings),
        "precision": prepared.settings.precision,
    }
    inputs = load_inputs(prepared.inputs)
    localizer = open_subject(prepared.subject)[0].with_threshold(inputs.threshold)
    total = len(inputs.images)
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        arrays = peer_arrays(localizer)
        for number in range(rounds):
            selected = [(number * tests + k) % total for k in range(min(tests, total))]
            files = [Path(folder, f"{k}.npz") for k in selected]
            for k, file in zip(selected, files, strict=True):
                own = {"x": inputs.images[k], "x_ref": inputs.references[k]}
                np.savez(file, **arrays, **own)  # type: ignore[arg-type]
            done.append(_round(python, prepared, selected, files, seconds))
    failure = next((row["failure"] for row in done if "failure" in row), None)
    if failure is not None:
        yield {**labels, "rounds": done, "failure": failure}
        return
    theirs = [peer["seconds_per_test"] for row in done for peer in row["peer"]]
    yield {
        **labels,
        "tests": total,
        "seconds_per_test": statistics.median(row["seconds_per_test"] for row in done),
        "peer_seconds_per_test": statistics.fmean(theirs),
        "peer_tests": len(theirs),
        "extrapolated": sum(peer["extrapolated"] for row in done for peer in row["peer"]),
        "ratio": statistics.median(row["ratio"] for row in done),
        "rounds": done,
    }


def _round(
    python: str, prepared: Prepared, selected: list[int], files: list[Path], seconds: float
) -> dict[str, Any]:
    """Test all images by dal_jax, then some of them by the peer."""
    settings = prepared.settings
    jobs = _jobs(settings)
    task = {"subject": asdict(prepared.subject), "inputs": str(prepared.inputs)}
    options = {"precision": settings.precision, "repeats": 1}
    limits: Any = {"threads": settings.threads, "seconds": settings.limit_seconds}
    ours = work({"do": "adaptive", **task, "options": options}, **limits)
    if not isinstance(ours, list):
        return ours
    with ThreadPoolExecutor(jobs) as pool:
        theirs = list(pool.map(lambda f: run_peer(python, [f], max_seconds=seconds), files))
    for record in theirs:
        if record.get("failure"):
            return {"failure": f"peer: {record['failure']}"}
    windows: dict[int, int] = {}
    cut = [k for k, record in zip(selected, theirs, strict=True) if record["stopped_by"] == "time"]
    if cut:
        options = {"precision": settings.precision, "dtype": "float32", "repeat_first": False}
        exact = work({"do": "exact", **task, "images": cut, "options": options}, **limits)
        if "failure" in exact:
            return {"failure": f"windows of the images that the peer did not finish: {exact}"}
        windows = dict(zip(cut, exact["windows"], strict=True))
    peer = [
        _peer_test(k, record, windows.get(k), jobs)
        for k, record in zip(selected, theirs, strict=True)
    ]
    own = ours[0]["seconds_per_test"]
    mean = statistics.fmean(row["seconds_per_test"] for row in peer)
    return {"seconds_per_test": own, "peer": peer, "ratio": mean / own}


def _jobs(settings: BenchSettings) -> int:
    """Return the number of tests that the peer has under way at a time."""
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return settings.threads or len(allowed)


def _peer_test(
    number: int, record: dict[str, Any], windows: int | None, jobs: int
) -> dict[str, Any]:
    """Return the seconds of one test of the peer; extrapolated, time per window times windows."""
    out = {
        "image": number,
        "extrapolated": windows is not None,
        "windows": record["num_windows"] if windows is None else windows,
        "searched_windows": record["num_windows"],
        "searched_seconds": record["seconds"],
        "seconds_per_window": record["seconds_per_window"],
        "p_value": record["p_value"],
    }
    seconds = record["seconds"] if windows is None else windows * record["seconds_per_window"]
    return {**out, "seconds_per_test": seconds / jobs}
