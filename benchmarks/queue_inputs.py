"""What the simulated queue is fed with: costs and lengths of tests, reduced from measurements."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.queue_model import Costs


@dataclass(frozen=True)
class Measured:
    """Costs of one image size and how many evaluations its tests needed."""

    size: int
    costs: Costs
    histogram: dict[int, int]  # evaluations of a test: how many tests

    def draw(self, images: int, seed: int) -> np.ndarray:
        """Evaluations of as many tests, as often each as measured.

        Args:
            images: how many.
            seed: of the draw.

        Returns:
            (images,) of 1 or more.
        """
        counts = np.array(list(self.histogram.values()), float)
        values = np.array(list(self.histogram))
        return np.random.default_rng(seed).choice(values, images, p=counts / counts.sum())


def summarize(rows: dict[int, Path], bench: Path) -> dict[str, Any]:
    """Reduces measurements to what the simulation needs.

    Args:
        rows: files results.jsonl of null images, from a run directory, by size.
        bench: file of `dal-jax bench --engines adaptive`.

    Returns:
        Machine, and by size costs and histogram; a size without rows takes those of the largest
        size that has them, stretched to the mean that the bench found.
    """
    histograms: dict[int, dict[int, int]] = {}
    for size, file in sorted(rows.items()):
        lines = file.read_text().splitlines()
        counts = Counter(json.loads(line)["num_evaluations"] for line in lines)
        histograms[size] = dict(sorted(counts.items()))
    records = json.loads(bench.read_text())["records"]
    machine = next(record["machine"] for record in records if "machine" in record)
    sizes = {}
    for record in records:
        if record["kind"] != "engine" or record["engine"] != "adaptive" or "failure" in record:
            continue
        size, capacity = record["size"], record["capacity"]["float32"]
        mean = record["evaluations_per_test"]["mean"]
        each = record["seconds_per_test"] / mean
        rows_of = size if size in histograms else max(histograms)
        sizes[str(size)] = {
            "costs": {
                "call": each * capacity * record["batch_fill"],
                "capacity": capacity,
                "in_flight": 2 * capacity,
                "start": record["start_seconds"],
                "compile": record["compile_seconds"],
            },
            "evaluations": _stretched(histograms[rows_of], None if rows_of == size else mean),
            "rows_of_size": rows_of,
        }
    return {"machine": machine, "sizes": sizes}


def read_inputs(path: Path) -> list[Measured]:
    """Reads what `summarize` returned."""
    return [
        Measured(
            int(size),
            Costs(**entry["costs"]),
            {int(key): count for key, count in entry["evaluations"].items()},
        )
        for size, entry in json.loads(path.read_text())["sizes"].items()
    ]


def _stretched(histogram: dict[int, int], mean: float | None) -> dict[str, int]:
    """A histogram whose tests of more than one evaluation have this mean, if one is given."""
    several = {key: count for key, count in histogram.items() if key > 1}
    own = sum(key * count for key, count in several.items()) / max(1, sum(several.values()))
    factor = 1.0 if mean is None else mean / own
    out: Counter[str] = Counter()
    for key, count in histogram.items():
        out[str(key if key == 1 else max(2, round(factor * key)))] += count
    return dict(out)
