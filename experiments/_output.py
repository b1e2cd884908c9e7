"""Output of an experiment: tables as CSV, npz and Markdown; figures as PDF and PNG.

Figures are in the style of the paper: a panel for each setting, a line for each method, error bars.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dal_jax
from dal_jax import InputError
from dal_jax._files import atomic_path, csv_text, write_text

Row = dict[str, Any]
Tables = dict[str, list[Row]]

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
BARS = {"markersize": 4, "linewidth": 1.2, "capsize": 2}  # style of points with error bars


def code_version() -> str:
    """Hash the sources that decide the numbers, the package's and the experiments'.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for root in (Path(dal_jax.__file__).parent, Path(__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write_tables(directory: Path, tables: Tables) -> None:
    """Write each table as NAME.csv and NAME.npz (a column an array), whole or not at all.

    Args:
        directory: Directory of the experiment.
        tables: Tables by name; the rows of one have the same keys.
    """
    for name, rows in tables.items():
        columns = list(rows[0]) if rows else []
        write_text(directory / f"{name}.csv", csv_text(rows))
        with atomic_path(directory / f"{name}.npz") as temporary:
            arrays = {column: np.array([row[column] for row in rows]) for column in columns}
            np.savez(temporary, **arrays)  # pyright: ignore[reportArgumentType]


def write_figures(directory: Path, figures: dict[str, Any]) -> None:
    """Write each figure as NAME.pdf and NAME.png, whole or not at all.

    Args:
        directory: Directory of the experiment.
        figures: Figures of matplotlib by name.
    """
    for name, figure in figures.items():
        with atomic_path(directory / f"{name}.pdf") as temporary:
            figure.savefig(temporary, bbox_inches="tight", metadata={"CreationDate": None})
        with atomic_path(directory / f"{name}.png") as temporary:
            figure.savefig(temporary, bbox_inches="tight", dpi=150, facecolor="white")


def pivot(
    rows: Sequence[Row],
    index: Sequence[str],
    column: str,
    cell: Callable[[Row], str],
) -> str:
    """Return a Markdown table: a line for each value of `index`, a column for each of `column`.

    Args:
        rows: Rows of a table.
        index: Keys of the left columns.
        column: Key whose values stand side by side, in the order of their first row.
        cell: Text of a row.

    Returns:
        The table; a cell without a row is empty.
    """
    heads = list(dict.fromkeys(row[column] for row in rows))
    lines: dict[tuple[Any, ...], dict[Any, str]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in index), {})[row[column]] = cell(row)
    body = [
        [*(str(value) for value in key), *(cells.get(head, "") for head in heads)]
        for key, cells in lines.items()
    ]
    return markdown([*index, *(str(head) for head in heads)], body)


def row_table(
    rows: Sequence[Row], index: Sequence[str], columns: dict[str, Callable[[Row], str]]
) -> str:
    """Return a Markdown table with a line for each row.

    Args:
        rows: Rows of a table.
        index: Keys of the left columns.
        columns: Text of a row, by the heading of its column.

    Returns:
        The table.
    """
    body = [
        [*(str(row[key]) for key in index), *(cell(row) for cell in columns.values())]
        for row in rows
    ]
    return markdown([*index, *columns], body)


def markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are also aligned for the eye.

    Args:
        heads: Headings of the columns.
        body: Entries of each line.

    Returns:
        The table with a newline at the end.
    """
    lines = [list(heads), *[list(line) for line in body]]
    widths = [max(3, *(len(line[k]) for line in lines)) for k in range(len(heads))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([e.ljust(width) for e, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def panels(titles: Sequence[str], columns: int = 4) -> tuple[Any, list[Any]]:
    """Make a figure with panels side by side, without a window.

    Args:
        titles: Titles of the panels.
        columns: Largest number of panels in a line.

    Returns:
        (figure, axes), one axis for each title.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = 'pip install "dal-jax[figures]"'
        raise InputError(f"experiment: drawing needs matplotlib: {hint}") from error
    count = len(titles)
    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(WIDTH * across, HEIGHT * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axis, title in zip(grid, titles, strict=False):
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid[count:]:
        axis.set_visible(False)
    return figure, list(grid[:count])


def rate_lines(axis: Any, rows: Sequence[Row], x: str, series: str = "method") -> None:
    """Draw rates with error bars of one standard error, a line for each series.

    Args:
        axis: Axis of matplotlib.
        rows: Rows with `x`, `series`, "rate" and "se"; the values of x are spaced evenly, in the
            order of their first row.
        x: Key of the horizontal axis.
        series: Key that tells the lines apart.
    """
    places = {value: k for k, value in enumerate(dict.fromkeys(row[x] for row in rows))}
    names = list(dict.fromkeys(row[series] for row in rows))
    for k, name in enumerate(names):
        own = [row for row in rows if row[series] == name]
        shift = 0.06 * (k - (len(names) - 1) / 2)  # keeps the error bars apart
        axis.errorbar(
            [places[row[x]] + shift for row in own],
            [row["rate"] for row in own],
            [row["se"] for row in own],
            label=str(name),
            color=COLOURS.get(name),
            marker=MARKERS.get(name, "o"),
            **BARS,
        )
    axis.set_xticks(list(places.values()), [str(value) for value in places])
    axis.set_xlabel(x, fontsize=9)


def level_line(axis: Any, alpha: float) -> None:
    """Draw the significance level as a dotted horizontal line."""
    axis.axhline(alpha, color="black", linewidth=0.8, linestyle=":")


def finish(figure: Any, axes: Sequence[Any], label: str) -> Any:
    """Name the vertical axis and put one legend above the panels.

    Args:
        figure: Figure of `panels`.
        axes: Axes of `panels`.
        label: Label of the vertical axis of the panel on the left.

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
