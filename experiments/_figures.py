"""Figures in the style of the paper: a panel per setting, a line per method, error bars."""

from collections.abc import Sequence
from typing import Any

from dal_jax.report import blank_page
from experiments._output import Row

COLOURS = {
    "selective": "#c44e52",
    "over-conditioned": "#4c72b0",
    "naive": "#dd8452",
    "bonferroni": "#55a868",
    "permutation": "#8172b3",
    "thinned": "#937860",
}
MARKERS = {
    "selective": "o",
    "over-conditioned": "s",
    "naive": "^",
    "bonferroni": "v",
    "permutation": "D",
    "thinned": "P",
}
WIDTH, HEIGHT = 3.2, 2.6  # of a panel, inches


def panels(titles: Sequence[str], columns: int = 4) -> tuple[Any, list[Any]]:
    """A figure with panels side by side, without a window.

    Args:
        titles: of the panels.
        columns: panels in a line, at most.

    Returns:
        (figure, axes), one of each title.

    Raises:
        InputError: matplotlib is missing.
    """
    count = len(titles)
    across = min(count, columns)
    down = -(-count // across)
    size = (WIDTH * across, HEIGHT * down)
    figure = blank_page("experiment", figsize=size, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axis, title in zip(grid, titles, strict=False):
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid[count:]:
        axis.set_visible(False)
    return figure, list(grid[:count])


def rate_lines(axis: Any, rows: Sequence[Row], x: str, series: str = "method") -> None:
    """Draws rates with error bars of one standard error, a line for each series.

    Args:
        axis: of matplotlib.
        rows: with `x`, `series`, "rate" and "se"; x is placed evenly, in the order of coming.
        x: key of the horizontal axis.
        series: key that tells the lines apart.
    """
    places = {value: k for k, value in enumerate(dict.fromkeys(row[x] for row in rows))}
    names = list(dict.fromkeys(row[series] for row in rows))
    for k, name in enumerate(names):
        own = [row for row in rows if row[series] == name]
        shift = 0.06 * (k - (len(names) - 1) / 2)  # or the error bars hide each other
        axis.errorbar(
            [places[row[x]] + shift for row in own],
            [row["rate"] for row in own],
            [row["se"] for row in own],
            label=str(name),
            color=COLOURS.get(name),
            marker=MARKERS.get(name, "o"),
            markersize=4,
            linewidth=1.2,
            capsize=2,
        )
    axis.set_xticks(list(places.values()), [str(value) for value in places])
    axis.set_xlabel(x, fontsize=9)


def finish(figure: Any, axes: Sequence[Any], label: str) -> Any:
    """Names the vertical axis and puts one legend above the panels.

    Args:
        figure: of `panels`.
        axes: likewise.
        label: of the vertical axis of the panel on the left.

    Returns:
        The figure.
    """
    axes[0].set_ylabel(label, fontsize=9)
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper center",
            ncols=min(5, len(handles)),
            fontsize=8,
            frameon=False,
        )
    return figure
