"""Robustness: type I error where the noise differs from what the test assumes.

dal-jax experiment robustness --out DIR

One part has pixels of laws that are not Gaussian, at a given distance from N(0, 1). The other has a
variance that is estimated instead of given, with a raised square too, for the loss of power.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dal_jax import InputError, TestOptions
from dal_jax.localizers import THRESHOLD
from experiments._experiment import Condition, ConditionResult, Context, Experiment, check_lengths
from experiments._models import Model, Use
from experiments._output import Row, Tables, finish, level_line, panels, pivot, rate_lines
from experiments._rates import counts_cell, rate_cell, rejections
from experiments._simulation import FAMILIES, OTHERS, SAME, Simulation, family_at

METHODS = ("selective", "naive")
KNOWN = "known"
GAUSSIAN = "normal"
_NAMES = {
    "skewnorm": "skew normal",
    "exponnorm": "exponentially modified normal",
    "gennorm_steep": "generalized normal, steep",
    "gennorm_flat": "generalized normal, flat",
    "t": "Student t",
}


@dataclass(frozen=True)
class Settings:
    """Settings of both parts; the lists on variance belong to `variance_sizes` in order.

    Raises:
        InputError: Lengths differ, or a value does not fit.
    """

    size: int = 16  # of the part on families: side, pixels
    families: tuple[str, ...] = tuple(FAMILIES)
    distances: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04)  # 1-Wasserstein, from N(0, 1)
    images: int = 80  # null images of a family and a distance, and Gaussian ones
    variances: tuple[str, ...] = (KNOWN, SAME, f"{OTHERS}10")  # see `Simulation.case`
    variance_sizes: tuple[int, ...] = (8, 16)  # sides, pixels
    variance_images: tuple[int, ...] = (200, 60)  # of a size, a variance and a signal
    signals: tuple[float, ...] = (0.0, 2.0)  # heights of the square in the part on variance
    levels: tuple[float, ...] = (0.05, 0.01)
    train_steps: int = 2000
    threshold: float = THRESHOLD
    engine: str = "adaptive"
    precision: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths(self, "variance_sizes", "variance_images")
        for name in ("families", "distances", "variances", "signals", "levels"):
            check_lengths(self, name)
        for family, distance in _families(self):
            Simulation(self.size, family=family, distance=distance)
        for variance in self.variances:
            _check_variance(variance)


def _check_variance(variance: str) -> None:
    count = variance.removeprefix(OTHERS)
    counted = count != variance and count.isdecimal() and int(count) > 0
    if variance not in (KNOWN, SAME) and not counted:
        raise InputError(
            f"variances holds {variance!r}, expected {KNOWN!r}, {SAME!r} or '{OTHERS}M' with a "
            "number M of images"
        )


def _families(settings: Settings) -> list[tuple[str, float]]:
    """Return family and distance of each condition; the Gaussian, at distance 0, comes first."""
    pairs = [(family, d) for family in settings.families for d in settings.distances]
    return [(GAUSSIAN, 0.0), *pairs]


def measure(settings: Settings, context: Context) -> Tables:
    """Test images of every family and distance, then of every source of the variance."""
    for family, distance in _families(settings)[1:]:
        family_at(family, distance)  # refuses what is out of reach before anything is tested
    families = [
        _condition(
            settings,
            {"family": family, "distance": distance},
            Simulation(settings.size, family=family, distance=distance, seed=settings.seed),
            settings.images,
        )
        for family, distance in _families(settings)
    ]
    variances = [
        _condition(
            settings,
            {"size": size, "signal": signal, "variance": variance},
            Simulation(size, signal=signal, seed=settings.seed),
            images,
        )._replace(assumed="" if variance == KNOWN else variance)
        for size, images in zip(settings.variance_sizes, settings.variance_images, strict=True)
        for signal in settings.signals
        for variance in settings.variances
    ]
    results = context.tests(families + variances)
    return {
        "robustness": _rows(results[: len(families)], settings),
        "estimated_variance": _rows(results[len(families) :], settings),
        "runs": [one.run for one in results],
    }


def _condition(settings: Settings, labels: Row, simulation: Simulation, images: int) -> Condition:
    """Return a condition whose test and model take the noise as N(0, 1), whatever its law."""
    return Condition(
        labels,
        Model(simulation.size, steps=settings.train_steps, seed=settings.seed),
        Use(simulation.size, settings.threshold),
        simulation,
        images,
        TestOptions(engine=settings.engine, precision=settings.precision, randomization=0.0),
    )


def _rows(results: list[ConditionResult], settings: Settings) -> list[Row]:
    return [
        row
        for condition, records, *_ in results
        for row in rejections(condition.labels, records, settings.levels)
        if row["method"] in METHODS
    ]


def summary(tables: Tables) -> str:
    """Return rates at every level, Markdown."""
    parts = []
    for name, index in (
        ("robustness", ("family", "distance")),
        ("estimated_variance", ("size", "signal", "variance")),
    ):
        rows = [{**row, "": f"{row['method']}, {row['alpha']:g}"} for row in tables[name]]
        parts.append(_TITLES[name])
        parts.append(pivot(rows, index, "", rate_cell))
        once = [{**row, "": "images, without a region, failed"} for row in rows]
        parts.append("Images:\n")
        parts.append(pivot(once, index, "", counts_cell))
    return "\n".join(parts)


_TITLES = {
    "robustness": "Null images, rejected among those with a region (standard error), by the "
    "law of a pixel and its 1-Wasserstein distance from N(0, 1):\n",
    "estimated_variance": "Rejected among the images with a region (standard error), by the source "
    "of the test's variance; signal 0 is the null:\n",
}


def draw(tables: Tables) -> dict[str, Any]:
    """Draw for each level a panel of every family, and of every signal for the variances."""
    figures = {}
    for alpha in dict.fromkeys(row["alpha"] for row in tables["robustness"]):
        for name, drawn in (
            ("robustness", _families_figure),
            ("estimated_variance", _variances_figure),
        ):
            rows = [row for row in tables[name] if row["alpha"] == alpha]
            figures[f"{name}_{alpha:g}"] = drawn(rows, alpha)
    return figures


def _families_figure(rows: list[Row], alpha: float) -> Any:
    families = [str(name) for name in dict.fromkeys(r["family"] for r in rows) if name != GAUSSIAN]
    figure, axes = panels([_NAMES[name] for name in families], columns=3)
    # Rates without tested images are NaN.
    top = np.nanmax([2 * alpha, *(row["rate"] + row["se"] for row in rows)])
    for axis, family in zip(axes, families, strict=True):
        rate_lines(axis, [row for row in rows if row["family"] in (GAUSSIAN, family)], "distance")
        axis.set_xlabel("Wasserstein distance from N(0, 1)", fontsize=9)
        level_line(axis, alpha)
        axis.set_ylim(0, 1.05 * top)
    return finish(figure, axes, f"rejected at {alpha:g}")


def _variances_figure(rows: list[Row], alpha: float) -> Any:
    rows = [row for row in rows if row["method"] == "selective"]
    signals = list(dict.fromkeys(row["signal"] for row in rows))
    figure, axes = panels([f"signal {signal:g}" if signal else "null" for signal in signals])
    for axis, signal in zip(axes, signals, strict=True):
        own = [
            {**row, "variance": _variance_name(row["variance"])}
            for row in rows
            if row["signal"] == signal
        ]
        rate_lines(axis, own, "size", series="variance")
        if signal == 0:
            level_line(axis, alpha)
            axis.set_ylim(0, np.nanmax([2 * alpha, *(1.05 * (r["rate"] + r["se"]) for r in own)]))
        else:
            axis.set_ylim(-0.03, 1.03)
    return finish(figure, axes, f"selective, rejected at {alpha:g}")


def _variance_name(variance: str) -> str:
    names = {KNOWN: "variance known", SAME: "of the same image"}
    return names.get(variance, f"of {variance.removeprefix(OTHERS)} other images")


STANDARD = Settings(images=160, variance_images=(400, 100))
PAPER = Settings(
    images=1000,
    variance_sizes=(8, 16, 32, 64),
    variance_images=(1000, 1000, 1000, 1000),
    signals=(0.0, 1.0, 2.0, 3.0, 4.0),
)
EXPERIMENT = Experiment(
    "Robustness to other noise",
    {"quick": Settings(), "standard": STANDARD, "paper": PAPER},
    measure,
    summary,
    draw,
)
