"""Power: how often each method finds a raised square, against its height.

dal-jax experiment power --out DIR
"""

from dataclasses import dataclass
from typing import Any

from ._experiment import Context, Experiment, runs
from ._figures import finish, panels, rate_lines
from ._main import run_module
from ._methods import (
    GAMMA,
    ComparisonSettings,
    check_lengths,
    comparisons,
    gamma_words,
    index_of,
    is_permutation,
    labels_of,
    method_rows,
)
from ._output import Row, Tables, pivot, row_table
from ._rates import counts_cell, rate_cell
from ._records import regions_row


@dataclass(frozen=True)
class Settings(ComparisonSettings):
    """What is simulated: images with a square, as many of each height.

    Raises:
        InputError: lengths differ, or a value does not fit.
    """

    signals: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)  # heights of the square, standard deviations

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lengths(self, "signals")


def measure(settings: Settings, context: Context) -> Tables:
    """Tests images of every size, noise and signal; permutations with the first ones of each."""
    measured = context.tests(comparisons(settings, settings.signals))
    return {
        "power": method_rows(measured, settings.levels),
        "regions": [
            {**labels_of(one), **regions_row(one)} for one in measured if not is_permutation(one)
        ],
        "runs": runs(measured),
    }


def summary(tables: Tables) -> str:
    """Power at the first level, Markdown."""
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
        ]
    )


def _region_cell(row: Row) -> str:
    touching = f"{row['touching']} of {row['images'] - row['no_region']}"
    return f"{touching}; {row['flagged_share']:.0%}; {row['covered_share']:.0%}"


def draw(tables: Tables) -> dict[str, Any]:
    """A panel for each size and noise: power at the first level against the signal."""
    rows = tables["power"]
    alpha = rows[0]["alpha"]
    names = ("noise", "size", "localizer", GAMMA)
    parts = list(dict.fromkeys(tuple(row.get(name, "") for name in names) for row in rows))
    parts.sort(key=lambda part: part[0] != rows[0]["noise"])
    titles = [
        f"{kind} {size} x {size}, noise {noise}{gamma_words(gamma)}".strip()
        for noise, size, kind, gamma in parts
    ]
    figure, axes = panels(titles)
    for axis, part in zip(axes, parts, strict=True):
        own = [row for row in rows if row["alpha"] == alpha]
        own = [row for row in own if tuple(row.get(name, "") for name in names) == part]
        rate_lines(axis, own, "signal")
        axis.set_ylim(-0.03, 1.03)
    return {"power": finish(figure, axes, f"power at {alpha:g}")}


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

if __name__ == "__main__":
    run_module("power")
