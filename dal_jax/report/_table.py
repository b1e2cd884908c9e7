"""Table of results as plain text."""

import math
from collections.abc import Sequence

import numpy as np

from dal_jax._errors import InputError
from dal_jax.report._outcome import Result, format_difference, format_p, outcome, parts


def table(
    results: Sequence[Result],
    titles: Sequence[str],
    *,
    truths: Sequence[str] | None = None,
    alpha: float = 0.05,
) -> str:
    """Return a table with one line per result: region size, p-values, bounds and decision.

    The p-values are the naive and the selective one. If any result has an estimate of the mean
    difference, the table has a column for it, with its interval. An image whose components were
    tested has one line per component, with Holm's adjusted p-value.

    Args:
        results: Results of `dal_test`, one per image.
        titles: Name of each image.
        truths: True kind of each image, shown in a column of its own; None for no such column.
        alpha: Significance level in (0, 1).

    Returns:
        The table, with aligned columns; lines are joined by newlines.

    Raises:
        InputError: The lengths of the arguments differ.

    Example:
        >>> from dal_jax.report import Maps
        >>> tested = Maps(np.eye(4) > 0, None, None, 0.03, 0.02, 0.04, 0.001, "OK")
        >>> print(table([tested], ["tile 1"]))
        image   region  naive p  selective p  bounds          decision
        ------  ------  -------  -----------  --------------  -----------
        tile 1  4 px    0.001    0.030        [0.020, 0.040]  significant
    """
    if len(titles) != len(results) or (truths is not None and len(truths) != len(results)):
        given = f"{len(titles)} and {'no' if truths is None else len(truths)}"
        raise InputError(
            f"titles, truths: got {given}, expected {len(results)}, one for each result"
        )
    columns = ["image", "truth", "region", "naive p", "selective p", "bounds"]
    columns += ["Holm p", "difference [interval]", "decision"]
    rows = [columns]
    for k, (result, title) in enumerate(zip(results, titles, strict=True)):
        for number, part in enumerate(parts(result), 1):
            name = f"{title} #{number}" if result.components else title
            rows.append([name, "" if truths is None else truths[k], *_cells(part, alpha)])
    tested = [part for result in results for part in parts(result)]
    left_out = {
        "truth": truths is None,
        "Holm p": all(math.isnan(part.p_holm) for part in tested),
        "difference [interval]": all(math.isnan(part.estimate) for part in tested),
    }
    kept = [k for k, column in enumerate(columns) if not left_out.get(column)]
    rows = [[row[k] for k in kept] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(_line(row, widths) for row in rows)


def _cells(result: Result, alpha: float) -> list[str]:
    bounds = f"[{format_p(result.p_low)}, {format_p(result.p_high)}]"
    return [
        f"{int(np.sum(result.region))} px",
        format_p(result.naive_p),
        format_p(result.p_value),
        "-" if np.isnan(result.p_low) else bounds,
        format_p(result.p_holm),
        format_difference(result.estimate, result.ci_low, result.ci_high),
        outcome(result, alpha),
    ]


def _line(row: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
