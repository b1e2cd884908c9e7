"""Power: the rate at which each method detects a raised square, against its height.

dal-jax experiment power --out DIR
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments._experiment import Context, Experiment, check_lengths
from experiments._methods import (
    OPTIONS,
    ComparisonSettings,
    comparisons,
    index_of,
    main_results,
    method_panels,
    method_rows,
)
from experiments._output import Row, Tables, finish, panels, pivot, rate_lines, row_table
from experiments._rates import (
    counts_cell,
    detection_rows,
    effect_rows,
    effect_summary,
    rate_cell,
)
from experiments._records import regions_row, work_row


@dataclass(frozen=True)
class Settings(ComparisonSettings):
    """Settings of the simulated images with a square, the same number for each height.

    Raises:
        InputError: Lengths differ, or a value does not fit.
    """

    signals: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)  # heights of the square, standard deviations

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lengths(self, "signals")


def measure(settings: Settings, context: Context) -> Tables:
    """Test images of every size, noise and signal; permutations with the first ones of each."""
    results = context.tests(comparisons(settings, settings.signals))
    own, levels = main_results(results), settings.levels
    return {
        "power": method_rows(results, levels),
        "regions": [{**labels, **regions_row(one)} for labels, one in own],
        "detections": [row for labels, one in own for row in detection_rows(labels, one, levels)],
        "effects": [row for labels, one in own for row in effect_rows(labels, one)],
        "work": [work_row(labels, one) for labels, one in own],
        "runs": [one.run for one in results],
    }


def summary(tables: Tables) -> str:
    """Return power at the first level, Markdown."""
    rows = tables["power"]
    alpha = rows[0]["alpha"]
    own = [row for row in rows if row["alpha"] == alpha]
    index = index_of(rows, "size", "noise", "signal")
    return "\n".join(
        [
            f"Rejected at {alpha:g}, among the images with a region (standard error):\n",
            pivot(own, index, "method", rate_cell),
            "Images, without a region, failed:\n",
            pivot(own, index, "method", counts_cell),
            "Flagged regions:\n",
            row_table(tables["regions"], index, {"touch the square; flag; cover": _region_cell}),
            f"Significant at {alpha:g} where it touches the square, of all images (standard "
            "error):\n",
            pivot(
                [row for row in tables["detections"] if row["alpha"] == alpha],
                index,
                "method",
                rate_cell,
            ),
            *effect_summary(tables, index),
        ]
    )


def _region_cell(row: Row) -> str:
    touching = f"{row['touching']} of {row['images'] - row['no_region']}"
    return f"{touching}; {row['flagged_share']:.0%}; {row['covered_share']:.0%}"


def draw(tables: Tables) -> dict[str, Any]:
    """Draw rates at the first level against the signal, a panel for each size and noise.

    Power has a panel for each gamma as well; detections show all gammas in one panel.
    """
    alpha = tables["power"][0]["alpha"]
    names = ("localizer", "size", "noise", *OPTIONS)
    figures = {"power": _figure(tables["power"], names, "method", f"power at {alpha:g}")}
    if tables["detections"]:
        rows = [{**row, "series": _series(row)} for row in tables["detections"]]
        names = tuple(name for name in names if name != "randomization")
        figures["detections"] = _figure(rows, names, "series", f"detected at {alpha:g}")
    return figures


def _series(row: Row) -> str:
    gamma = f", gamma {row['randomization']:g}" if "randomization" in row else ""
    return row["method"] + gamma


def _figure(rows: list[Row], names: Sequence[str], series: str, label: str) -> Any:
    first = rows[0]
    own = [row for row in rows if row["alpha"] == first["alpha"]]
    parts = method_panels(sorted(own, key=lambda row: row["noise"] != first["noise"]), names)
    figure, axes = panels(list(parts))
    for axis, own in zip(axes, parts.values(), strict=True):
        rate_lines(axis, own, "signal", series)
        axis.set_ylim(-0.03, 1.03)
    return finish(figure, axes, label)


STANDARD = Settings(images=(200, 200, 100, 40), permutation_images=(40, 10, 0, 0))
PAPER = Settings(
    images=(1000, 1000, 1000, 1000),
    permutation_images=(1000, 1000, 100, 20),
    train_sizes=(8, 16, 32, 64),
)
QUICK = Settings(images=(200, 100, 30, 8), permutation_images=(8, 2, 0, 0))
EXPERIMENT = Experiment(
    "Power", {"quick": QUICK, "standard": STANDARD, "paper": PAPER}, measure, summary, draw
)
