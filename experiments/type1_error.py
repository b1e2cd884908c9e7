"""Type I error: the rate at which each method calls a region of a null image significant.

dal-jax experiment type1_error --out DIR
"""

from dataclasses import dataclass
from typing import Any

from experiments._experiment import Context, Experiment
from experiments._methods import (
    OPTIONS,
    ComparisonSettings,
    comparisons,
    index_of,
    main_results,
    method_panels,
    method_rows,
)
from experiments._output import Tables, finish, level_line, panels, rate_lines
from experiments._rates import effect_rows, effect_summary, middle_level, null_rates
from experiments._records import work_row


@dataclass(frozen=True)
class Settings(ComparisonSettings):
    """Settings of the simulated null images.

    Raises:
        InputError: Lengths differ, or a value does not fit.
    """

    images: tuple[int, ...] = (1000, 300, 80, 20)  # of a size and a noise
    permutation_images: tuple[int, ...] = (40, 8, 0, 0)
    levels: tuple[float, ...] = (0.01, 0.05, 0.10)


def measure(settings: Settings, context: Context) -> Tables:
    """Test null images of every size and noise; permutations with the first ones of each."""
    results = context.tests(comparisons(settings))
    own = main_results(results)
    return {
        "type1_error": method_rows(results, settings.levels),
        "effects": [row for labels, one in own for row in effect_rows(labels, one)],
        "work": [work_row(labels, one) for labels, one in own],
        "runs": [one.run for one in results],
    }


def summary(tables: Tables) -> str:
    """Return rates at each level, intervals and evaluations, Markdown."""
    rows = tables["type1_error"]
    index = index_of(rows, "size", "noise")
    return "\n".join([*null_rates(rows, index), *effect_summary(tables, index)])


def draw(tables: Tables) -> dict[str, Any]:
    """Draw rates at 0.05, or the level in the middle, against the size: a panel for each noise."""
    alpha = middle_level(tables["type1_error"])
    rows = [row for row in tables["type1_error"] if row["alpha"] == alpha]
    parts = method_panels(rows, ("localizer", "noise", *OPTIONS))
    figure, axes = panels(list(parts))
    for axis, own in zip(axes, parts.values(), strict=True):
        rate_lines(axis, own, "size")
        level_line(axis, alpha)
        axis.set_ylim(bottom=0)
    return {"type1_error": finish(figure, axes, f"rejected at {alpha:g}")}


STANDARD = Settings(images=(1000, 1000, 500, 200), permutation_images=(200, 40, 10, 0))
PAPER = Settings(
    images=(5000, 2000, 1000, 1000),
    permutation_images=(1000, 1000, 100, 20),
    levels=(0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.10),
    train_sizes=(8, 16, 32, 64),
)
EXPERIMENT = Experiment(
    "Type I error",
    {"quick": Settings(), "standard": STANDARD, "paper": PAPER},
    measure,
    summary,
    draw,
)
