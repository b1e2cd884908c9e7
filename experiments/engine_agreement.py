"""Do the engines agree? The adaptive search beside the exact sweep, float32 beside float64.

python -m experiments.engine_agreement --size 8 --images 300 --out FILE.json
"""

import time
from typing import Any, NamedTuple

import numpy as np

from dal_jax import Localizer, Status, TestResult, dal_test_batch
from dal_jax.inference import intersect, merge
from dal_jax.noise import parse_noise

from ._study import study

SIGNALS = (0.0, 0.0, 1.0, 2.0, 3.0, 4.0)
NOISES = ("iid:1.0", "ar1:0.5:1.0")
WAYS: dict[str, dict[str, Any]] = {
    "exact": {"engine": "sweep", "dtype": "float64"},
    "adaptive": {"engine": "adaptive", "dtype": "float32"},
    "adaptive_float64": {"engine": "adaptive", "dtype": "float64"},
}


class Settings(NamedTuple):
    """What is compared: images without and with a signal, independent and correlated noise."""

    size: int = 8  # side, pixels
    images: int = 300
    train_images: int = 20_000
    train_steps: int = 2_000
    threshold: float = 0.8
    precision: float = 1e-3
    exact: int = 1  # 0 leaves the exact engine out
    model: str = ""  # a checkpoint instead of training
    seed: int = 0


def run(localizer: Localizer, settings: Settings, done: list[dict[str, Any]]) -> None:
    """Tests images with every engine; image k depends on (seed, k) only.

    Args:
        localizer: to be tested.
        settings: how many images.
        done: rows of earlier images; new rows are appended.
    """
    numbers = range(len(done), settings.images)
    rows: dict[int, dict[str, Any]] = {}
    for parity, noise in enumerate(NOISES):
        chosen = [k for k in numbers if k % len(NOISES) == parity]
        if not chosen:
            continue
        images = [_images(localizer, noise, settings.seed, k) for k in chosen]
        x, x_ref, draws = (np.array(column) for column in zip(*images, strict=True))
        found = {}
        for way, options in WAYS.items():
            if way == "exact" and not settings.exact:
                continue
            started = time.perf_counter()
            found[way] = dal_test_batch(
                localizer, x, x_ref, noise, draws=draws, precision=settings.precision, **options
            )
            print(f"  {way}, {noise}: {time.perf_counter() - started:.0f} s", flush=True)
        for index, k in enumerate(chosen):
            results = {way: results[index] for way, results in found.items()}
            rows[k] = {"image": k, "noise": noise, "signal": _signal(k), **_compared(results)}
    done.extend(rows[k] for k in sorted(rows))


def _signal(number: int) -> float:
    return SIGNALS[number // len(NOISES) % len(SIGNALS)]


def _images(localizer: Localizer, noise: str, seed: int, number: int) -> tuple[np.ndarray, ...]:
    """An image, with a raised square in some, a reference, and draws."""
    rng = np.random.default_rng((seed, 2, number))
    covariance = parse_noise(noise, localizer.image_shape)
    x, x_ref = (covariance.sample(rng, localizer.image_shape) for _ in range(2))
    side = localizer.image_shape[0] // 3
    top, left = rng.integers(0, localizer.image_shape[0] - side, 2)
    x[top : top + side, left : left + side] += _signal(number)
    return x, x_ref, rng.standard_normal(np.shape(localizer.draws))


def _compared(results: dict[str, TestResult]) -> dict[str, Any]:
    judge = next(iter(results))  # the exact engine; without it the adaptive one in float32
    row: dict[str, Any] = {}
    for way, result in results.items():
        row[way] = {
            "status": str(result.status),
            "p": result.p_value,
            "low": result.p_low,
            "high": result.p_high,
            "pixels": int(result.region.sum()),
            "intervals": len(result.truncation),
            "windows": result.num_windows,
            "evaluations": result.num_evaluations,
            "disagreements": result.num_disagreements,
            "seconds": result.seconds,
        }
        if way != judge and result.status == results[judge].status == Status.OK:
            row[way]["p_difference"] = abs(result.p_value - results[judge].p_value)
            row[way]["end_difference"] = _end_difference(results[judge], result)
    return row


def _end_difference(one: TestResult, two: TestResult) -> float | None:
    """Largest distance of ends in standard deviations, where both know; None: other intervals.

    The adaptive search leaves cells undecided that cannot matter to the precision: it does not
    know there, and its bounds say so. The last 1e-6 around an end is no such cell.
    """
    slack = 1e-5 * one.sd
    both = intersect(merge(one.searched, slack), merge(two.searched, slack))
    ends = intersect(one.truncation, both), intersect(two.truncation, both)
    if len(ends[0]) != len(ends[1]):
        return None
    return float(np.abs(ends[0] - ends[1]).max() / one.sd)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How far apart the engines are.

    Args:
        rows: of `run`.

    Returns:
        For each engine but the first, the judge: counts and largest differences.
    """
    judge, *others = [way for way in WAYS if way in rows[0]]
    tested = [row for row in rows if row[judge]["status"] != Status.NO_REGION]
    out: dict[str, Any] = {"judge": judge, "images": len(rows), "tested": len(tested)}
    for way in others:
        both = [row[way] for row in tested if "p_difference" in row[way]]
        ends = [row["end_difference"] for row in both]
        out[way] = {
            "compared": len(both),
            "other_status": sum(row[way]["status"] != row[judge]["status"] for row in rows),
            "other_region": sum(row[way]["pixels"] != row[judge]["pixels"] for row in rows),
            "other_intervals": sum(end is None for end in ends),
            "end_difference_max": max((end for end in ends if end is not None), default=0.0),
            "p_difference_max": max((row["p_difference"] for row in both), default=0.0),
            "p_difference_median": float(np.median([row["p_difference"] for row in both])),
            "bounds_apart": sum(
                row[way]["low"] > row[judge]["high"] + 1e-9
                or row[way]["high"] < row[judge]["low"] - 1e-9
                for row in tested
                if "p_difference" in row[way]
            ),
            "disagreements": sum(row["disagreements"] for row in both),
            "evaluations_median": float(np.median([row["evaluations"] for row in both])),
        }
    return out


def main() -> None:
    """Runs the study from the command line; writes rows and summary as JSON."""
    study(Settings, run, summary, "The engines beside one another.")


if __name__ == "__main__":
    main()
