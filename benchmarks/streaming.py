"""A long folder of photographs: memory, and tests lost or repeated by a killed run.

python -m benchmarks.streaming --out DIR [--images 1000] [--side 256]

Writes photographs (grey, correlated noise) to DIR/data, trains a small model on views resized to
16 x 16, tests a tenth of them and all of them, and all of them once more in a run that is killed
twice (SIGKILL) and continued. Prints seconds, peak memory of the processes, and whether any test is
lost or repeated and the tables are the same.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dal_jax.bench import align_rows
from dal_jax.noise import stationary

TRAIN = ("--view", "resize", "--size", "16", "--channels", "8,16", "--steps", "50")
NOISE = ("--noise", "stationary", "--flag-share", "0.02")


def write_photographs(folder: Path, count: int, train: int, side: int) -> None:
    """Write normal photographs to train on and to test; keep existing ones.

    Args:
        folder: Folder of the data set, in the layout of MVTec AD.
        count: Number of test images.
        train: Number of training images.
        side: Side of an image, pixels.
    """
    lags = np.minimum(np.arange(2 * side - 1), 2 * side - 1 - np.arange(2 * side - 1))
    table = 100.0 * np.exp(-np.hypot(*np.meshgrid(lags, lags, indexing="ij")) / 3)
    noise = stationary(table)
    for part, number in (("train/good", train), ("test/good", count)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for k in range(number):
            path = folder / part / f"{k:05d}.png"
            if path.is_file():
                continue
            rng = np.random.default_rng((0, part == "train/good", k))
            grey = 128 + noise.sample(rng, (side, side, 1))[..., 0]
            Image.fromarray(np.clip(grey, 1, 255).astype(np.uint8)).save(path)


def part_of(folder: Path, out: Path, count: int) -> Path:
    """Make a data set of links to the training images and to the first test images.

    Args:
        folder: Folder of the whole data set.
        out: Folder of the part.
        count: Number of test images.

    Returns:
        `out`.
    """
    for part, number in (("train/good", None), ("test/good", count)):
        (out / part).mkdir(parents=True, exist_ok=True)
        for path in sorted((folder / part).iterdir())[:number]:
            if not (out / part / path.name).exists():
                os.link(path, out / part / path.name)
    return out


def command(*words: object) -> list[str]:
    """Return the command line of dal-jax.

    Args:
        *words: Verb and options.

    Returns:
        Words for `subprocess`.
    """
    code = "import sys; from dal_jax.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, words)]


def run_process(words: list[str], kill: tuple[Path, int] | None = None) -> tuple[float, float]:
    """Run a process to its end, or kill it.

    Args:
        words: Words of the command line.
        kill: Folder and number of tests: SIGKILL as soon as the folder holds the number.

    Returns:
        Seconds, and peak memory in MiB.
    """
    started = time.perf_counter()
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while kill is not None and process.poll() is None:
        if len(names(kill[0])) >= kill[1]:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.2)
    _, status, usage = os.wait4(process.pid, 0)
    if kill is None and status:
        raise SystemExit(f"{' '.join(words)}: exit status {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def names(out: Path) -> list[str]:
    """Return the names of the tests in the shards of a run.

    Args:
        out: Folder of `dal-jax test`.

    Returns:
        Names, with repetitions if there are any.
    """
    held = []
    for shard in sorted((out / "run").glob("shard-*.jsonl")):
        for line in shard.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # a line without is being written
                entry = json.loads(line)
                held += [entry["record"]["name"]] if "record" in entry else []
    return held


def content(path: Path) -> bytes | None:
    """Return the bytes of a file, None if it is missing."""
    return path.read_bytes() if path.exists() else None


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Folder of everything.")
    parser.add_argument("--images", type=int, default=1000, help="Number of test images.")
    parser.add_argument("--train", type=int, default=60, help="Number of training images.")
    parser.add_argument("--side", type=int, default=256, help="Side of an image, pixels.")
    options = parser.parse_args()
    data, model = options.out / "data", options.out / "model"
    write_photographs(data, options.images, options.train, options.side)
    few = part_of(data, options.out / "few", options.images // 10)
    run_process(command("train", "--data", data, "--out", model, *TRAIN, *NOISE))
    rows = [["run", "images", "seconds", "peak MiB"]]
    for name, folder in (("few", few), ("all", data)):
        out = options.out / f"out-{name}"
        took, peak = run_process(command("test", folder, "--model", model, "--out", out))
        rows.append([name, str(len(names(out))), f"{took:.0f}", f"{peak:.0f}"])
    out = options.out / "out-killed"
    words = command("test", data, "--model", model, "--out", out)
    for share in (0.3, 0.6):
        took, peak = run_process(words, (out, int(share * options.images)))
        rows.append(["killed", str(len(names(out))), f"{took:.0f}", f"{peak:.0f}"])
    took, peak = run_process(words)
    rows.append(["continued", str(len(names(out))), f"{took:.0f}", f"{peak:.0f}"])
    print(align_rows(rows))
    tested = names(out)
    tables = ("results.csv", "images.csv", "metrics.json")
    same = all(content(out / name) == content(options.out / "out-all" / name) for name in tables)
    once = len(set(tested))
    print(
        f"tests repeated: {len(tested) - once}; lost: {options.images - once}; "
        f"tables {'have' if same else 'do not have'} the bytes of those of the run not killed"
    )


if __name__ == "__main__":
    main()
