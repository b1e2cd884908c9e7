"""Affine pieces and truncation intervals of a line, against image size and network width.

dal-jax experiment intervals --out DIR
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dal_jax import InputError, TestOptions
from dal_jax.localizers import THRESHOLD
from experiments._experiment import Condition, ConditionResult, Context, Experiment, check_lengths
from experiments._growth import fit_line, growth_cell, growth_row, log_log
from experiments._models import Model, Use, scale_channels
from experiments._output import Row, Tables, panels, pivot
from experiments._rates import counts_cell
from experiments._records import TESTED, counts, mean_columns, median, timed_records
from experiments._simulation import Simulation

EXACT, ADAPTIVE = "exact", "adaptive"
# Counts, with the engine that makes them.
COUNTS = {"windows": EXACT, "intervals": EXACT, "evaluations": ADAPTIVE}
COLOURS = ("#4c72b0", "#c44e52", "#55a868", "#8172b3")
MARKERS = "osD^v"
LABELS = ("size", "width", "precision", "engine")


@dataclass(frozen=True)
class Settings:
    """Settings of the counts; entries of `images` and `train_sizes` belong to the sizes in order.

    Raises:
        InputError: Lengths differ, or a value does not fit.
    """

    sizes: tuple[int, ...] = (8, 16, 32)  # sides, pixels
    images: tuple[int, ...] = (20, 4, 1)  # null images of a size, for every width and precision
    precisions: tuple[float, ...] = (1e-3, 0.0)  # width of the bounds on p; 0 is the whole line
    widths: tuple[float, ...] = (0.25, 0.5, 1.0)  # factors of `channels`
    width_sizes: tuple[int, ...] = (8, 16)  # sizes at which other widths than 1 are measured
    channels: tuple[int, ...] = (32, 64, 128, 256)
    train_sizes: tuple[int, ...] = (8, 16, 16)  # sides of the squares trained on
    train_steps: int = 2000
    threshold: float = THRESHOLD
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths(self, "sizes", "images", "train_sizes")
        if not self.precisions:
            raise InputError("precisions is empty, expected at least one number")
        other = sorted(set(self.width_sizes) - set(self.sizes))
        if other:
            raise InputError(f"width_sizes holds {other[0]}, expected only entries of sizes")
        for width in self.widths:
            scale_channels(self.channels, width)


def measure(settings: Settings, context: Context) -> Tables:
    """Test the same null images by both engines: at every size, at some with every width."""
    results = context.tests(list(_conditions(settings)))
    images = [row for one in results for row in _image_rows(one)]
    exact = [one for one in results if one.condition.labels["engine"] == EXACT]
    return {
        "intervals": [_count_row(one) for one in results],
        "intervals_exponents": exponents(images),
        "intervals_images": images,
        "intervals_times": [_time_row(one) for one in exact],
        "runs": [one.run for one in results],
    }


def _conditions(settings: Settings) -> Iterator[Condition]:
    """Yield conditions: for each size its widths, 1 among them, and for each the precisions."""
    for k, size in enumerate(settings.sizes):
        widths = {*(settings.widths if size in settings.width_sizes else ()), 1.0}
        for width in sorted(widths):
            model = Model(
                settings.train_sizes[k],
                channels=scale_channels(settings.channels, width),
                steps=settings.train_steps,
                seed=settings.seed,
            )
            for precision in settings.precisions:
                for engine in (EXACT, ADAPTIVE):
                    name = "sweep" if engine == EXACT else engine
                    yield Condition(
                        dict(zip(LABELS, (size, width, precision, engine), strict=True)),
                        model,
                        Use(size, settings.threshold),
                        Simulation(size, seed=settings.seed),
                        settings.images[k],
                        TestOptions(engine=name, precision=precision, randomization=0.0),
                    )


def _image_rows(result: ConditionResult) -> list[Row]:
    """Return the counts of each image."""
    return [
        {
            **result.condition.labels,
            "image": number,
            "status": record["status"],
            "windows": record["num_windows"],
            "intervals": len(record["truncation"]),
            "evaluations": record["num_evaluations"],
        }
        for number, record in enumerate(result.records)
    ]


def _count_row(result: ConditionResult) -> Row:
    row = {**result.condition.labels, **counts(result.records)}
    images = [image for image in _image_rows(result) if image["status"] == TESTED]
    for name in COUNTS:
        known = name != "windows" or result.condition.labels["engine"] == EXACT
        row |= _spread(name, [image[name] for image in images] if known else [])
    return row


def _spread(name: str, values: Sequence[float]) -> Row:
    """Return median, mean with its standard error, least and most; NaN without values."""
    return {
        f"{name}_median": median(values),
        **mean_columns(f"{name}_mean", f"{name}_se", values),
        f"{name}_min": float(min(values, default=math.nan)),
        f"{name}_max": float(max(values, default=math.nan)),
    }


def _time_row(result: ConditionResult) -> Row:
    own = timed_records(result)
    return {
        **result.condition.labels,
        "timed": len(own),
        "seconds_median": median([record["seconds"] for record in own]),
        "ms_per_window_median": median([1e3 * r["seconds"] / r["num_windows"] for r in own]),
    }


def exponents(images: Sequence[Row]) -> list[Row]:
    """Fit the growth of the counts over all images that were tested.

    Args:
        images: Rows of the table "intervals_images".

    Returns:
        Rows with count, precision, against ("n", pixels, at width 1, or "width"), size (of the
        images where it is the same for all, else 0), exponent, se, factor, points.
    """
    rows = []
    tested = [row for row in images if row["status"] == TESTED]
    for count, engine in COUNTS.items():
        for precision in dict.fromkeys(row["precision"] for row in tested):
            own = [row for row in tested if row["engine"] == engine]
            for size in (0, *dict.fromkeys(row["size"] for row in own)):
                against = "width" if size else "n"
                fit = {"count": count, "precision": precision, "against": against, "size": size}
                x, y = _points(own, fit)
                if len(set(x)) > 1:
                    rows.append(growth_row(fit, x, y))
    return rows


def _points(images: Sequence[Row], fit: Row) -> tuple[list[float], list[float]]:
    """Return the points of a fit, of the images of its engine."""
    own = [row for row in images if row["precision"] == fit["precision"]]
    if fit["against"] == "width":
        own = [row for row in own if row["size"] == fit["size"]]
        x = [row["width"] for row in own]
    else:
        own = [row for row in own if row["width"] == 1]
        x = [row["size"] ** 2 for row in own]
    return x, [row[fit["count"]] for row in own]


def search_name(precision: float) -> str:
    """Return the extent of a search in words."""
    return f"precision {precision:g}" if precision else "whole line"


def summary(tables: Tables) -> str:
    """Return counts, times and exponents, Markdown."""

    def name_search(rows: Sequence[Row]) -> list[Row]:
        return [{**row, "search": search_name(row["precision"])} for row in rows]

    rows = name_search(tables["intervals"])
    index = ("size", "width", "engine")
    parts = ["Of the images: all, without a region, failed:\n"]
    parts.append(pivot(rows, index, "search", counts_cell))
    for name, engine in COUNTS.items():
        own = [row for row in rows if row["engine"] == engine]
        parts.append(f"Number of {name}, {engine} engine, median (least to most):\n")
        parts.append(
            pivot(
                own,
                ("size", "width"),
                "search",
                lambda r, n=name: f"{r[f'{n}_median']:g} ({r[f'{n}_min']:g} to {r[f'{n}_max']:g})",
            )
        )
    parts.append("Exponents of growth (standard error), against pixels n or against width:\n")
    fits = [
        {**row, "of": f"width, size {row['size']}" if row["size"] else "n"}
        for row in name_search(tables["intervals_exponents"])
    ]
    parts.append(pivot(fits, ("count", "search"), "of", growth_cell))
    parts.append("Exact engine, seconds a test; milliseconds a window (medians):\n")
    parts.append(
        pivot(
            name_search(tables["intervals_times"]),
            ("size", "width"),
            "search",
            lambda r: f"{r['seconds_median']:.2f}; {r['ms_per_window_median']:.2f}",
        )
    )
    return "\n".join(parts)


def draw(tables: Tables) -> dict[str, Any]:
    """Draw every count against n, above, and against the width: images as points, and fits."""
    fits = tables["intervals_exponents"]
    places = [(against, count) for against in ("n", "width") for count in COUNTS]
    places = [(a, c) for a, c in places if any(row["against"] == a for row in fits)]
    if not places:
        return {}
    figure, axes = panels([f"{c}, {COUNTS[c]} engine" for _, c in places], len(COUNTS))
    images = [row for row in tables["intervals_images"] if row["status"] == TESTED]
    for axis, (against, count) in zip(axes, places, strict=True):
        own = [row for row in images if row["engine"] == COUNTS[count]]
        chosen = [row for row in fits if (row["against"], row["count"]) == (against, count)]
        _draw_panel(axis, own, chosen)
        axis.set_ylabel(f"number of {count}", fontsize=9)
    return {"intervals": figure}


def _draw_panel(axis: Any, images: Sequence[Row], fits: Sequence[Row]) -> None:
    precisions = list(dict.fromkeys(fit["precision"] for fit in fits))
    sizes = list(dict.fromkeys(fit["size"] for fit in fits))
    ticks: dict[float, str] = {}
    for fit in fits:
        size = fit["size"]
        colour = COLOURS[precisions.index(fit["precision"]) % len(COLOURS)]
        x, y = _points(images, fit)
        ticks |= {value: f"{value:g}" for value in sorted(x)}
        k = sizes.index(size)
        axis.plot(
            np.array(x) * 1.06**k,  # sizes beside one another
            y,
            MARKERS[k % len(MARKERS)],
            color=colour,
            markersize=3,
            alpha=0.4,
            markeredgewidth=0,
        )
        name = search_name(fit["precision"]) + (f", {size} x {size}" if size else "")
        fit_line(axis, fit, x, name, colour, dashed=k > 0)
    against = "pixels n" if fits[0]["against"] == "n" else "width of the network"
    log_log(axis, ticks, against)


PAPER = Settings(
    sizes=(8, 16, 32, 64),
    images=(200, 100, 20, 3),
    widths=(0.25, 0.5, 1.0, 2.0),
    width_sizes=(8, 16, 32),
    train_sizes=(8, 16, 32, 64),
)
EXPERIMENT = Experiment(
    "Affine pieces and truncation intervals",
    {"quick": Settings(), "paper": PAPER},
    measure,
    summary,
    draw,
)
