"""Are the p-values uniform when nothing is there? Trains a model on noise and tests null images.

python -m experiments.null_uniformity --out FILE.json
python -m experiments.null_uniformity --engine sweep --images 4000 --out FILE.json
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from dal_jax import Localizer, Status, dal_test_batch

from ._study import study

LEVELS = (0.01, 0.05, 0.10)


class Settings(NamedTuple):
    """What is simulated: images and references are N(0, sigma^2 I), the paper's null."""

    size: int = 8  # side, pixels
    images: int = 5000
    train_images: int = 20_000
    train_steps: int = 2_000
    threshold: float = 0.8
    engine: str = "adaptive"
    dtype: str = "float32"
    precision: float = 1e-3
    seed: int = 0


def run(localizer: Localizer, settings: Settings, done: list[dict[str, Any]]) -> None:
    """Tests null images; image k depends on (seed, k) only, so a run can go on.

    Args:
        localizer: to be tested.
        settings: how many images.
        done: rows of earlier images; new rows are appended.
    """
    x, x_ref, draws = [], [], []
    for number in range(len(done), settings.images):
        rng = np.random.default_rng((settings.seed, 1, number))
        image, reference = rng.standard_normal((2, *localizer.image_shape))
        x.append(image)
        x_ref.append(reference)
        draws.append(rng.standard_normal(np.shape(localizer.draws)))
    results = dal_test_batch(
        localizer,
        np.array(x),
        np.array(x_ref),
        "iid:1.0",
        draws=np.array(draws),
        engine=settings.engine,
        dtype=settings.dtype,
        precision=settings.precision,
    )
    for result in results:
        done.append(
            {
                "status": str(result.status),
                "pixels": int(result.region.sum()),
                "selective": result.p_value,
                "low": result.p_low,
                "high": result.p_high,
                "naive": result.naive_p,
                "over_conditioned": result.over_conditioned_p,
                "bonferroni": 10.0**result.bonferroni_log10_p,
                "windows": result.num_windows,
                "evaluations": result.num_evaluations,
                "disagreements": result.num_disagreements,
                "intervals": len(result.truncation),
                "seconds": result.seconds,
            }
        )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rejection rates with standard errors, and distances from uniformity.

    Args:
        rows: of `run`.

    Returns:
        Counts, and for each method that gave numbers the rates at `LEVELS` and the
        Kolmogorov-Smirnov p.
    """
    tested = [row for row in rows if row["status"] == Status.OK]
    out: dict[str, Any] = {
        "images": len(rows),
        "no_region": sum(row["status"] == Status.NO_REGION for row in rows),
        "other": sum(row["status"] not in (Status.OK, Status.NO_REGION) for row in rows),
        "windows_median": float(np.median([row["windows"] for row in tested])),
        "evaluations_median": float(np.median([row["evaluations"] for row in tested])),
        "disagreements": sum(row["disagreements"] for row in tested),
        "several_intervals": sum(row["intervals"] > 1 for row in tested),
        "methods": {},
    }
    for method in ("selective", "over_conditioned", "naive", "bonferroni"):
        p = np.array([row[method] for row in tested])
        if np.isnan(p).any():  # the adaptive engine knows no windows
            continue
        out["methods"][method] = {
            "rejection": {str(level): float(np.mean(p <= level)) for level in LEVELS},
            "standard_error": {
                str(level): float(np.sqrt(level * (1 - level) / len(p))) for level in LEVELS
            },
            "ks_p": float(stats.kstest(p, "uniform").pvalue),
        }
    return out


def main() -> None:
    """Runs the study from the command line; writes rows and summary as JSON."""
    study(Settings, run, summary, "Null p-values of a model trained on noise.")


if __name__ == "__main__":
    main()
