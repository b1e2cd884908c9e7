"""A long folder of photographs: is memory bounded, and does a killed run lose or repeat anything?

python -m benchmarks.streaming --out DIR [--images 1000] [--side 256]

Writes photographs (grey, correlated noise) to DIR/data, trains a small model on views resized to
16 x 16, tests a tenth of them and all of them, and all of them once more in a run that is killed
twice (SIGKILL) and continued. Prints seconds, peak memory of the processes and what was compared.
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
    """Writes `train` normal photographs to train on and `count` to test; those there are kept.

    Args:
        folder: of the data set, MVTec layout.
        count: of test images.
        train: of training images.
        side: of an image, pixels.
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
    """A data set of links to the training images and to the first test images.

    Args:
        folder: of the whole data set.
        out: of the part.
        count: of test images.

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
    """The command line of dal-jax.

    Args:
        *words: verb and options.

    Returns:
        Words for `subprocess`.
    """
    code = "import sys; from dal_jax.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, words)]


def finished(words: list[str], kill: tuple[Path, int] | None = None) -> tuple[float, float]:
    """Runs a process.

    Args:
        words: of the command line.
        kill: (out, tests): SIGKILL as soon as so many tests are filed there.

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
    """The names of the tests that the shards of a run hold.

    Args:
        out: of `dal-jax test`.

    Returns:
        Names, with repetitions if there are any.
    """
    found = []
    for shard in sorted((out / "run").glob("shard-*.jsonl")):
        for line in shard.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else it is being written
                entry = json.loads(line)
                found += [entry["record"]["name"]] if "record" in entry else []
    return found


def held(path: Path) -> bytes | None:
    """The bytes of a file, None if there is none."""
    return path.read_bytes() if path.exists() else None


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--side", type=int, default=256)
    wanted = parser.parse_args()
    data, model = wanted.out / "data", wanted.out / "model"
    write_photographs(data, wanted.images, wanted.train, wanted.side)
    few = part_of(data, wanted.out / "few", wanted.images // 10)
    finished(command("train", "--data", data, "--out", model, *TRAIN, *NOISE))
    rows = [["run", "images", "seconds", "peak MiB"]]
    for name, folder in (("few", few), ("all", data)):
        out = wanted.out / f"out-{name}"
        took, peak = finished(command("test", folder, "--model", model, "--out", out))
        rows.append([name, str(len(names(out))), f"{took:.0f}", f"{peak:.0f}"])
    out = wanted.out / "out-killed"
    words = command("test", data, "--model", model, "--out", out)
    for share in (0.3, 0.6):
        took, peak = finished(words, (out, int(share * wanted.images)))
        rows.append(["killed", str(len(names(out))), f"{took:.0f}", f"{peak:.0f}"])
    took, peak = finished(words)
    rows.append(["continued", str(len(names(out))), f"{took:.0f}", f"{peak:.0f}"])
    print(align_rows(rows))
    found = names(out)
    tables = ("results.csv", "images.csv", "metrics.json")
    same = all(held(out / name) == held(wanted.out / "out-all" / name) for name in tables)
    print(
        f"tests repeated: {len(found) - len(set(found))}; lost: {wanted.images - len(set(found))}; "
        f"tables {'have' if same else 'do not have'} the bytes of those of the run not killed"
    )


if __name__ == "__main__":
    main()
