"""How fast something grows: exponents fitted on log-log scales, and their lines."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments._output import Row


class Growth(NamedTuple):
    """y is about factor * x**exponent."""

    exponent: float
    se: float  # of the exponent; NaN with fewer than three points
    factor: float
    points: int
    last: float  # exponent between the two largest x, of the geometric means of their y


def growth(x: Sequence[float], y: Sequence[float]) -> Growth:
    """Fits a power law: least squares of log(y) on log(x).

    Args:
        x: positive.
        y: positive, as many.

    Returns:
        The fit; NaN where all x are equal, or there are none.
    """
    if len(set(x)) < 2:
        return Growth(math.nan, math.nan, math.nan, len(x), math.nan)
    a, b = np.log(np.array(x, float)), np.log(np.array(y, float))
    fit: Any = stats.linregress(a, b)
    se = float(fit.stderr) if len(x) > 2 else math.nan
    before, end = np.unique(a)[-2:]
    last = (b[a == end].mean() - b[a == before].mean()) / (end - before)
    return Growth(float(fit.slope), se, math.exp(float(fit.intercept)), len(x), float(last))


def growth_row(labels: Row, x: Sequence[float], y: Sequence[float]) -> Row:
    """A fit as a row of a table.

    Args:
        labels: its first columns.
        x: as in `growth`.
        y: as in `growth`.

    Returns:
        `labels` and the fields of `Growth`.
    """
    return {**labels, **growth(x, y)._asdict()}


def growth_cell(row: Row) -> str:
    """An exponent with its standard error, for a Markdown table.

    Args:
        row: of `growth_row`.

    Returns:
        "0.45 (0.02)"; "0.45" where the error is not known.
    """
    known = not math.isnan(row["se"])
    return f"{row['exponent']:.2f}" + (f" ({row['se']:.2f})" if known else "")


def fit_line(
    axis: Any, row: Row, x: Sequence[float], name: str, colour: str, dashed: bool = False
) -> None:
    """Draws a fitted power law as a thin line, with its exponent in the legend.

    Args:
        axis: of matplotlib.
        row: of `growth_row`.
        x: where the points of the fit are.
        name: in the legend, before the exponent.
        colour: of the line.
        dashed: whether it is dashed.
    """
    if math.isnan(row["exponent"]):
        return
    ends = np.array([min(x), max(x)], float)
    axis.plot(
        ends,
        row["factor"] * ends ** row["exponent"],
        "--" if dashed else "-",
        color=colour,
        linewidth=1.0,
        label=f"{name}: {growth_cell(row)}",
    )


def log_log(axis: Any, ticks: dict[float, str], label: str) -> None:
    """Makes both axes logarithmic, and says in a legend what the lines are.

    Args:
        axis: of matplotlib, with everything drawn.
        ticks: places on the horizontal axis, and their names.
        label: of the horizontal axis.
    """
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_xticks([], minor=True)
    axis.set_xlabel(label, fontsize=9)
    low, high = axis.get_ylim()
    if high < 100 * low:  # or there are hardly any
        subs = (1.0, 2.0, 5.0) if high > 6 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
        axis.yaxis.get_major_locator().set_params(subs=subs)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    legend = 0.03 + 0.085 * len(axis.get_legend_handles_labels()[0])  # share of the height
    axis.set_ylim(low, high * (high / low) ** (legend / (1 - legend)))
    axis.legend(fontsize=6.5, frameon=False, loc="upper left")
