"""Agreement of the engines: the adaptive search beside the exact sweep, float32 beside float64.

dal-jax experiment engine_agreement --out DIR
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dal_jax import ImageToTest, InputError, TestOptions
from dal_jax._config import nearest
from dal_jax.inference import as_intervals, intersect, merge
from dal_jax.localizers import THRESHOLD
from experiments._experiment import Condition, ConditionResult, Context, Experiment, check_lengths
from experiments._models import Model, Use
from experiments._output import Row, Tables, finish, panels, row_table
from experiments._records import TESTED, bounds_apart, counts, median
from experiments._simulation import Simulation

WAYS: dict[str, dict[str, Any]] = {
    "exact": {"engine": "sweep", "dtype": "float64"},
    "adaptive": {"engine": "adaptive", "dtype": "float32"},
    "adaptive_float64": {"engine": "adaptive", "dtype": "float64"},
}
_COLOURS = ("#c44e52", "#4c72b0", "#55a868", "#8172b3")


@dataclass(frozen=True)
class Settings:
    """Settings of the tests; entries of `images` and `train_sizes` belong to the sizes in order.

    Raises:
        InputError: Lengths differ, or a value does not fit.
    """

    sizes: tuple[int, ...] = (8,)  # sides, pixels
    images: tuple[int, ...] = (60,)  # of a size
    noises: tuple[str, ...] = ("iid:1", "ar1:0.5:1")  # dealt out to the images
    signals: tuple[float, ...] = (0.0, 0.0, 1.0, 2.0, 3.0, 4.0)  # likewise, within a noise
    ways: tuple[str, ...] = tuple(WAYS)  # the first one judges the others
    train_sizes: tuple[int, ...] = (8,)  # sides of the squares trained on
    train_steps: int = 2000
    threshold: float = THRESHOLD
    precision: float = TestOptions.precision
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths(self, "sizes", "images", "train_sizes")
        check_lengths(self, "noises")
        check_lengths(self, "signals")
        for way in self.ways:
            if way not in WAYS:
                raise InputError(f"ways holds {way!r}, {nearest(way, list(WAYS))}")
        if len(self.ways) < 2:
            raise InputError(f"ways has {len(self.ways)} entries, expected a judge and others")
        if min(self.images) < len(self.noises):
            raise InputError(
                f"images holds {min(self.images)}, expected {len(self.noises)} or more, one for "
                "each noise"
            )


@dataclass(frozen=True)
class Dealt(Simulation):
    """Images whose squares have one height after another."""

    signals: tuple[float, ...] = (0.0,)

    def case(self, number: int, draws_shape: tuple[int, ...], assumed: str = "") -> ImageToTest:
        """Draw as `Simulation.case`, with the height whose turn it is."""
        own = replace(self, signal=self.signals[number % len(self.signals)])
        return Simulation.case(own, number, draws_shape, assumed)


def measure(settings: Settings, context: Context) -> Tables:
    """Test the images of every size and noise in every way, and compare image by image."""
    results = context.tests(_conditions(settings))
    by_labels = {tuple(one.condition.labels.values()): one for one in results}
    rows = []
    for size in settings.sizes:
        of_size = []
        for place, noise in enumerate(settings.noises):
            ways = {way: by_labels[size, noise, way] for way in settings.ways}
            of_size += _image_rows(ways, place, settings)
        rows += sorted(of_size, key=lambda row: row["image"])  # stable: the ways stay in order
    agreement = [
        _agreement([row for row in rows if row["size"] == size], way, settings.ways[0])
        for size in settings.sizes
        for way in settings.ways[1:]
    ]
    return {"engine_agreement": agreement, "compared": rows, "runs": [one.run for one in results]}


def _conditions(settings: Settings) -> list[Condition]:
    conditions = []
    for size, images, train_size in zip(
        settings.sizes, settings.images, settings.train_sizes, strict=True
    ):
        for place, noise in enumerate(settings.noises):
            simulation = Dealt(size, noise, seed=settings.seed, signals=settings.signals)
            conditions += [
                Condition(
                    {"size": size, "noise": noise, "way": way},
                    Model(train_size, noise, steps=settings.train_steps, seed=settings.seed),
                    Use(size, settings.threshold),
                    simulation,
                    len(range(place, images, len(settings.noises))),
                    TestOptions(precision=settings.precision, randomization=0.0, **WAYS[way]),
                )
                for way in settings.ways
            ]
    return conditions


def _image_rows(ways: dict[str, ConditionResult], place: int, settings: Settings) -> list[Row]:
    """Compare each image of one size and noise, tested in each way, with the judge."""
    rows = []
    judge = ways[settings.ways[0]]
    simulation = judge.condition.simulation
    for number, expected in enumerate(judge.records):
        for way, one in ways.items():
            record = one.records[number]
            rows.append(
                {
                    "size": simulation.size,
                    "image": place + number * len(settings.noises),
                    "noise": simulation.noise,
                    "signal": settings.signals[number % len(settings.signals)],
                    "way": way,
                    "status": record["status"],
                    "p": record["p_value"],
                    "low": record["p_low"],
                    "high": record["p_high"],
                    "pixels": sum(length for _, length in record["region"]),
                    "intervals": len(record["truncation"]),
                    "windows": record["num_windows"],
                    "evaluations": record["num_evaluations"],
                    "disagreements": record["num_disagreements"],
                    **_differences(expected, record),
                }
            )
    return rows


def _differences(expected: dict[str, Any], record: dict[str, Any]) -> Row:
    """Return the differences of a record from the judge's; NaN where one of them was not tested."""
    both = expected["status"] == record["status"] == TESTED
    ends = _end_difference(expected, record) if both else math.nan
    p = abs(record["p_value"] - expected["p_value"]) if both else math.nan
    return {
        "compared": both,
        "other_status": record["status"] != expected["status"],
        "other_region": record["region"] != expected["region"],
        "other_intervals": both and ends is None,
        "end_difference": math.nan if ends is None else ends,  # standard deviations
        "p_difference": p,
        "bounds_apart": both and bounds_apart(expected, record),
    }


def _end_difference(one: dict[str, Any], two: dict[str, Any]) -> float | None:
    """Return the largest distance of ends in standard deviations; None for other intervals.

    Only what both have searched is compared: the adaptive search leaves cells undecided that cannot
    matter to the precision, and its bounds allow for them. The last 1e-6 around an end is no such
    cell.
    """
    slack = 1e-5 * one["sd"]
    both = intersect(*(merge(as_intervals(record["searched"]), slack) for record in (one, two)))
    ends = [intersect(as_intervals(record["truncation"]), both) for record in (one, two)]
    if len(ends[0]) != len(ends[1]):
        return None
    return float(np.abs(ends[0] - ends[1]).max(initial=0.0) / one["sd"])


def _agreement(rows: Sequence[Row], way: str, judge: str) -> Row:
    """Return the differences of a way from the judge over all images of one size."""
    own = [row for row in rows if row["way"] == way]
    both = [row for row in own if row["compared"]]
    ends = [row["end_difference"] for row in both if not row["other_intervals"]]
    p = [row["p_difference"] for row in both]
    return {
        "size": own[0]["size"],
        "way": way,
        "judge": judge,
        **counts([row for row in rows if row["way"] == judge]),
        "compared": len(both),
        **{
            key: sum(row[key] for row in own)
            for key in ("other_status", "other_region", "other_intervals", "bounds_apart")
        },
        "end_difference_max": max(ends, default=math.nan),
        "p_difference_max": max(p, default=math.nan),
        "p_difference_median": median(p),
        "disagreements": sum(row["disagreements"] for row in both),
        "evaluations_median": median([row["evaluations"] for row in both]),
    }


def summary(tables: Tables) -> str:
    """Return the differences between the engines, Markdown."""
    rows = tables["engine_agreement"]
    columns: dict[str, Callable[[Row], str]] = {
        "images with a region": lambda r: f"{r['images'] - r['no_region']} of {r['images']}",
        "compared": lambda r: str(r["compared"]),
        "ends, largest (sd)": lambda r: f"{r['end_difference_max']:.1g}",
        "p, largest": lambda r: f"{r['p_difference_max']:.2g}",
        "p, median": lambda r: f"{r['p_difference_median']:.1g}",
        "bounds apart": lambda r: str(r["bounds_apart"]),
        "other status, region, intervals": lambda r: (
            f"{r['other_status']}, {r['other_region']}, {r['other_intervals']}"
        ),
        "random checks failed": lambda r: str(r["disagreements"]),
        "evaluations, median": lambda r: f"{r['evaluations_median']:g}",
    }
    table = row_table(rows, ("size", "way"), columns)
    return (
        f"Beside {rows[0]['judge']}; ends are compared where both engines have searched:\n\n{table}"
    )


def draw(tables: Tables) -> dict[str, Any]:
    """Draw p-values beside the judge's, and the differences of ends."""
    rows = tables["compared"]
    judge = rows[0]["way"]
    ways = [way for way in dict.fromkeys(row["way"] for row in rows) if way != judge]
    expected = {(row["size"], row["image"]): row["p"] for row in rows if row["way"] == judge}
    figure, axes = panels([*(f"p-value, {way}" for way in ways), "ends of the intervals"])
    for axis, way, colour in zip(axes, ways, _COLOURS, strict=False):
        own = [row for row in rows if row["way"] == way and row["compared"]]
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
        axis.plot(
            [expected[row["size"], row["image"]] for row in own],
            [row["p"] for row in own],
            ".",
            color=colour,
            markersize=4,
        )
        axis.set_xlabel(f"p-value, {judge}", fontsize=9)
    _histogram(axes[-1], rows, ways)
    return {"engine_agreement": finish(figure, axes, "p-value")}


def _histogram(axis: Any, rows: Sequence[Row], ways: Sequence[str]) -> None:
    """Draw the differences of ends, ways side by side; equal ends count as 3e-17."""
    columns = []
    for way in ways:
        ends = np.array([row["end_difference"] for row in rows if row["way"] == way])
        columns.append(np.clip(ends[~np.isnan(ends)], 3e-17, 3e0))
    colours = _COLOURS[: len(ways)]
    axis.hist(columns, 10.0 ** np.arange(-17, 2), label=list(ways), color=colours)
    axis.set_xscale("log")
    axis.set_xticks(10.0 ** np.arange(-15, 1, 5))
    axis.set_xlabel("largest difference, standard deviations", fontsize=9)
    axis.set_ylabel("images", fontsize=9)


PAPER = Settings(sizes=(8, 16, 32), images=(256, 100, 24), train_sizes=(8, 16, 32))
EXPERIMENT = Experiment(
    "Agreement of the engines", {"quick": Settings(), "paper": PAPER}, measure, summary, draw
)
