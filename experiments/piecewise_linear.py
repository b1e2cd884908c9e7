"""Smooth networks, tested as they are and with piecewise-linear activations in their place.

dal-jax experiment piecewise_linear --out DIR
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from dal_jax import InputError, TestOptions
from dal_jax.localizers import THRESHOLD
from dal_jax.models import hinge_table
from experiments._experiment import Condition, ConditionResult, Context, Experiment, check_lengths
from experiments._models import Model, Use, localizer_of
from experiments._output import BARS, COLOURS, Row, Tables, finish, panels, pivot, row_table
from experiments._rates import null_rates, rejections
from experiments._records import (
    TESTED,
    agreement,
    engine_difference,
    mean_columns,
    time_row,
    work_row,
)
from experiments._simulation import Simulation

SMOOTH, EXACT, ADAPTIVE = "smooth", "sweep", "adaptive"
FAMILIES = {"silu": special.expit, "gelu": special.ndtr}  # f(x) = x times this
SPAN, BEYOND = 8.0, 40.0  # the knots lie within +-SPAN
SHADES = ("#4c72b0", "#c44e52")  # of the families


@dataclass(frozen=True)
class Settings:
    """Settings of the null images; entries of `exact_images` belong to the knots in order.

    The engines are compared, and so are the networks, on the same images: the first ones.

    Raises:
        InputError: Lengths differ, a value does not fit, or there is nothing to compare with.
    """

    size: int = 8  # side, pixels
    families: tuple[str, ...] = ("silu", "gelu")
    knots: tuple[int, ...] = (4, 8, 16, 32)  # of the function that replaces each activation
    smooth_images: int = 1000  # tested with the smooth network
    replaced_images: int = 150  # the first of them, with each replaced network: adaptive engine
    exact_images: tuple[int, ...] = (20, 12, 6, 4)  # the first of these: exact engine
    score_images: int = 50  # the first of all, whose score maps are compared
    timed_images: int = 64  # the first of all, whose tests by the adaptive engine are timed
    levels: tuple[float, ...] = (0.01, 0.05, 0.10)
    channels: tuple[int, ...] = (32, 64, 128, 256)
    train_size: int = 8  # side of the squares trained on
    train_steps: int = 2000
    threshold: float = THRESHOLD
    precision: float = 1e-3
    over_conditioned: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths(self, "families")
        check_lengths(self, "knots", "exact_images")
        for family in self.families:
            if family not in FAMILIES:
                names = ", ".join(FAMILIES)
                raise InputError(f"families holds {family!r}, expected only {names}")
        for knots in self.knots:
            hinge_table(f"pl-silu:{knots}")
        if min(self.exact_images) < 1 or max(self.exact_images) > self.replaced_images:
            raise InputError(
                f"exact_images: got {self.exact_images}, expected 1 to replaced_images = "
                f"{self.replaced_images}: the engines are compared on the same images"
            )
        for name in ("replaced_images", "score_images", "timed_images"):
            if not 1 <= getattr(self, name) <= self.smooth_images:
                raise InputError(
                    f"{name}: got {getattr(self, name)}, expected 1 to smooth_images = "
                    f"{self.smooth_images}: the networks are compared on the same images"
                )


def measure(settings: Settings, context: Context) -> Tables:
    """Test null images with the smooth networks and, by both engines, with the replaced ones."""
    results = context.tests(list(_conditions(settings)))
    by_labels = {tuple(one.condition.labels.values()): one for one in results}
    approximation, engines = [], []
    for family in settings.families:
        smooth = by_labels[family, SMOOTH, ADAPTIVE]
        for knots in settings.knots:
            network = f"pl:{knots}"
            exact, adaptive = (by_labels[family, network, e] for e in (EXACT, ADAPTIVE))
            approximation.append(
                {
                    "family": family,
                    "knots": knots,
                    **activation_error(family, knots),
                    **_score_error(smooth, adaptive, settings, context),
                    **agreement(smooth.records, adaptive.records),
                }
            )
            difference = engine_difference(exact.records, adaptive.records)
            engines.append({"family": family, "network": network, **difference})
    return {
        "piecewise_linear": [
            row
            for one in results
            for row in rejections(one.condition.labels, one.records, settings.levels)
        ],
        "approximation": approximation,
        "engines": engines,
        "work": [work_row(one.condition.labels, one) for one in results],
        "smooth_p_values": [
            row
            for family in settings.families
            for row in _p_rows(by_labels[family, SMOOTH, ADAPTIVE])
        ],
        "piecewise_linear_times": [
            time_row(one, context, settings.timed_images) for one in results
        ],
        "runs": [one.run for one in results],
    }


def _conditions(settings: Settings) -> Iterator[Condition]:
    """Yield for each family the smooth network, then every replaced one by both engines."""
    for family in settings.families:
        condition = Condition(
            {"family": family, "network": SMOOTH, "engine": ADAPTIVE},
            Model(
                settings.train_size,
                channels=settings.channels,
                activation=family,
                steps=settings.train_steps,
                seed=settings.seed,
            ),
            Use(settings.size, settings.threshold),
            Simulation(settings.size, seed=settings.seed),
            settings.smooth_images,
            TestOptions(precision=settings.precision, randomization=0.0),
        )
        yield condition
        for knots, exact_images in zip(settings.knots, settings.exact_images, strict=True):
            use = Use(settings.size, settings.threshold, activation=f"pl-{family}:{knots}")
            for engine, images in ((EXACT, exact_images), (ADAPTIVE, settings.replaced_images)):
                yield condition._replace(
                    labels={"family": family, "network": f"pl:{knots}", "engine": engine},
                    use=use,
                    images=images,
                    options=TestOptions(
                        engine=engine,
                        precision=settings.precision,
                        first_window=settings.over_conditioned and engine == ADAPTIVE,
                        randomization=0.0,
                    ),
                )


def activation_error(family: str, knots: int) -> Row:
    """Return the error of a piecewise-linear function beside the smooth one.

    Args:
        family: Name of the smooth function, one of `FAMILIES`.
        knots: Number of knots, 3 or more.

    Returns:
        activation_max and activation_mean (absolute error on [-8, 8]) and activation_max_beyond (on
        the rest of [-40, 40], where the function is 0 or x).
    """
    x = np.linspace(-BEYOND, BEYOND, 400_001)
    places, changes = hinge_table(f"pl-{family}:{knots}")
    replaced = sum(c * np.maximum(x - k, 0.0) for k, c in zip(places, changes, strict=True))
    error = np.abs(replaced - x * FAMILIES[family](x))
    inside = np.abs(x) <= SPAN
    return {
        "activation_max": float(error[inside].max()),
        "activation_mean": float(error[inside].mean()),
        "activation_max_beyond": float(error[~inside].max()),
    }


def _score_error(
    smooth: ConditionResult, replaced: ConditionResult, settings: Settings, context: Context
) -> Row:
    """Return the difference between the score maps of the networks, in units of the image."""
    first, second = (
        localizer_of(one.condition.model, one.condition.use, context.models)
        for one in (smooth, replaced)
    )
    absolute, square = [], []
    for number in range(settings.score_images):
        case = smooth.condition.simulation.case(number, np.shape(first.draws))
        one, other = (at.with_draws(case.draws).score(case.image) for at in (first, second))
        absolute.append(np.abs(one - other).mean())
        square.append(np.square(one - other).mean())
    return {
        "score_images": settings.score_images,
        **mean_columns("score_mean", "score_mean_se", absolute),
        "score_rms": math.sqrt(float(np.mean(square))),
    }


def _p_rows(result: ConditionResult) -> list[Row]:
    return [
        {
            "family": result.condition.labels["family"],
            "image": number,
            **{key: record[key] for key in ("status", "p_value", "naive_p", "num_evaluations")},
        }
        for number, record in enumerate(result.records)
    ]


def summary(tables: Tables) -> str:
    """Return rates, agreement of networks and engines, and cost; Markdown."""
    parts = null_rates(tables["piecewise_linear"], ("family", "network", "engine"))
    parts.append(
        "Piecewise-linear beside smooth: activation on [-8, 8]; score map and regions of the same "
        "images (standard error):\n"
    )
    parts.append(row_table(tables["approximation"], ("family", "knots"), _APPROXIMATION))
    parts.append("Adaptive beside exact engine, the same networks and images:\n")
    parts.append(row_table(tables["engines"], ("family", "network"), _ENGINES))
    parts.append("Median windows and evaluations of the images with a region:\n")
    parts.append(pivot(tables["work"], ("family", "network"), "engine", _work_cell))
    parts.append("Seconds per image with a region:\n")
    parts.append(
        pivot(
            tables["piecewise_linear_times"],
            ("family", "network"),
            "engine",
            lambda row: f"{row['seconds']:.3g}",
        )
    )
    return "\n".join(parts)


def _work_cell(row: Row) -> str:
    if row["engine"] == EXACT:
        return f"{row['windows_median']:.0f} windows"
    return f"{row['evaluations_median']:.0f} evaluations"


# Columns of the summary: heading and text of a row.
_APPROXIMATION: dict[str, Callable[[Row], str]] = {
    "largest error": lambda r: f"{r['activation_max']:.2g}",
    "mean error": lambda r: f"{r['activation_mean']:.2g}",
    "score, mean difference": lambda r: f"{r['score_mean']:.2g} ({r['score_mean_se']:.1g})",
    "score, rms": lambda r: f"{r['score_rms']:.2g}",
    "same region": lambda r: f"{r['same']:.3f} ({r['same_se']:.3f}) of {r['compared']}",
    "intersection over union": lambda r: (
        f"{r['jaccard']:.3f} ({r['jaccard_se']:.3f}) of {r['flagged']}"
    ),
    "same decision at 0.05": lambda r: f"{r['same_decision']:.3f} of {r['decided']}",
}
_ENGINES: dict[str, Callable[[Row], str]] = {
    "images": lambda r: f"{r['compared']}",
    "tested": lambda r: f"{r['tested']}",
    "other status": lambda r: f"{r['other_status']}",
    "other region": lambda r: f"{r['other_region']}",
    "p, largest difference": lambda r: f"{r['p_max']:.1g}",
    "p, median difference": lambda r: f"{r['p_median']:.1g}",
    "bounds apart": lambda r: f"{r['bounds_apart']}",
}


def draw(tables: Tables) -> dict[str, Any]:
    """Draw the distance from the smooth network against the knots, and its p-values."""
    return {
        "approximation": _draw_approximation(tables["approximation"]),
        "smooth_p_values": _draw_p_values(tables["smooth_p_values"]),
    }


def _draw_approximation(rows: Sequence[Row]) -> Any:
    titles = ("activation, absolute error", "score map, absolute difference", "flagged regions")
    figure, axes = panels(titles)
    curves = (
        (axes[0], "activation_max", "", "-"),
        (axes[0], "activation_mean", "", ":"),
        (axes[1], "score_mean", "score_mean_se", ":"),
        (axes[2], "same", "same_se", "-."),
        (axes[2], "jaccard", "jaccard_se", "--"),
    )
    for colour, family in zip(SHADES, dict.fromkeys(row["family"] for row in rows), strict=False):
        own = sorted((row for row in rows if row["family"] == family), key=lambda r: r["knots"])
        axes[0].plot([], color=colour, marker="o", markersize=4, label=family)
        for axis, key, se, style in curves:
            axis.errorbar(
                [row["knots"] for row in own],
                [row[key] for row in own],
                [row[se] for row in own] if se else None,
                color=colour,
                linestyle=style,
                marker="o",
                **BARS,
            )
    names = {"largest": "-", "mean": ":", "same region": "-.", "intersection over union": "--"}
    for name, style in names.items():
        axes[0].plot([], color="black", linestyle=style, linewidth=1.2, label=name)
    ticks = sorted({row["knots"] for row in rows})
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel("knots", fontsize=9)
    for axis in axes[:2]:
        axis.set_yscale("log")
    axes[2].set_ylim(-0.03, 1.03)
    axes[2].set_ylabel("share", fontsize=9)
    return finish(figure, axes, "absolute difference")


def _draw_p_values(rows: Sequence[Row]) -> Any:
    families = list(dict.fromkeys(row["family"] for row in rows))
    figure, axes = panels([f"{family}, smooth" for family in families])
    for axis, family in zip(axes, families, strict=True):
        own = [row for row in rows if row["family"] == family and row["status"] == TESTED]
        count = len(own)
        expected = (np.arange(count) + 0.5) / count
        ranks = np.arange(1, count + 1)
        band = (stats.beta.ppf(share, ranks, ranks[::-1]) for share in (0.025, 0.975))
        axis.fill_between(expected, *band, color="0.85", linewidth=0, label="95% under uniformity")
        for method, key in (("selective", "p_value"), ("naive", "naive_p")):
            p = np.sort([row[key] for row in own])
            axis.plot(expected, p, color=COLOURS[method], linewidth=1.2, label=method)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.set_xlabel("uniform quantile", fontsize=9)
    return finish(figure, axes, "p-value")


STANDARD = Settings(replaced_images=300, exact_images=(20, 16, 8, 4))
PAPER = Settings(
    size=16,
    train_size=16,
    smooth_images=5000,
    replaced_images=1000,
    exact_images=(200, 200, 100, 50),
    score_images=200,
)
EXPERIMENT = Experiment(
    "Smooth networks and their piecewise-linear replacements",
    {"quick": Settings(), "standard": STANDARD, "paper": PAPER},
    measure,
    summary,
    draw,
)
