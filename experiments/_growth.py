"""Growth: exponents fitted on log-log scales, and their lines."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments._output import Row


def growth_row(labels: Row, x: Sequence[float], y: Sequence[float]) -> Row:
    """Fit a power law, y about factor * x**exponent: least squares of log(y) on log(x).

    Args:
        labels: First columns of the row.
        x: Positive numbers (n,).
        y: Positive numbers (n,).

    Returns:
        `labels`, exponent, its standard error se (NaN with fewer than three points), factor, points
        (their number) and last (exponent between the two largest x, of the geometric means of their
        y); NaN where all x are equal, or there are none.
    """
    nan = math.nan
    fit = {"exponent": nan, "se": nan, "factor": nan, "points": len(x), "last": nan}
    if len(set(x)) < 2:
        return {**labels, **fit}
    a, b = np.log(np.array(x, float)), np.log(np.array(y, float))
    line: Any = stats.linregress(a, b)
    before, end = np.unique(a)[-2:]
    last = (b[a == end].mean() - b[a == before].mean()) / (end - before)
    fit |= {"exponent": float(line.slope), "factor": math.exp(float(line.intercept))}
    fit |= {"se": float(line.stderr) if len(x) > 2 else nan, "last": float(last)}
    return {**labels, **fit}


def growth_cell(row: Row) -> str:
    """Return an exponent with its standard error, for a Markdown table.

    Args:
        row: Row of `growth_row`.

    Returns:
        "0.45 (0.02)"; "0.45" where the error is NaN.
    """
    error = "" if math.isnan(row["se"]) else f" ({row['se']:.2f})"
    return f"{row['exponent']:.2f}{error}"


def fit_line(
    axis: Any, row: Row, x: Sequence[float], name: str, colour: str, dashed: bool = False
) -> None:
    """Draw a fitted power law as a thin line, with its exponent in the legend.

    Args:
        axis: Axis of matplotlib.
        row: Row of `growth_row`.
        x: Places of the fitted points.
        name: Text of the legend before the exponent.
        colour: Colour of the line.
        dashed: Whether the line is dashed.
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
    """Make both axes logarithmic, and add a legend of the lines.

    Args:
        axis: Axis of matplotlib, with everything drawn.
        ticks: Names of places on the horizontal axis, by place.
        label: Label of the horizontal axis.
    """
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_xticks([], minor=True)
    axis.set_xlabel(label, fontsize=9)
    low, high = axis.get_ylim()
    if high < 100 * low:  # with powers of ten alone there would be hardly any ticks
        subs = (1.0, 2.0, 5.0) if high > 6 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
        axis.yaxis.get_major_locator().set_params(subs=subs)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    legend = 0.03 + 0.085 * len(axis.get_legend_handles_labels()[0])  # share of the height
    axis.set_ylim(low, high * (high / low) ** (legend / (1 - legend)))
    axis.legend(fontsize=6.5, frameon=False, loc="upper left")
