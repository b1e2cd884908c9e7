"""Picture of a plan: power by difference, and the smallest difference in each setting."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dal_jax.images import atomic_path
from dal_jax.report._figure import blank_page

_PAGE = (9.2, 4.2)  # inches
# Names of the fields that a setting consists of, in words.
_FIELDS = {
    "size": "side of the region, pixels",
    "noise_factor": "factor of the noise",
    "references": "references",
    "randomization": "randomization",
}
_SHORT = {"size": "size", "noise_factor": "noise", "references": "K", "randomization": "gamma"}


def plan_picture(path: Path, rows: Sequence[Any], points: Sequence[Any], power: float) -> None:
    """Draw the simulated power of each setting, and the smallest differences that are found.

    Bars are standard errors of the power on the left, and 95% intervals of the smallest difference
    on the right, over the factor with the most values. A triangle stands at the largest simulated
    difference where the power was not reached.

    Args:
        path: Path of the picture, .png or another format that matplotlib writes.
        rows: One object for each setting, with the attributes of a `dal_jax.inspection.PlanRow`.
        points: One object for each simulated difference, with those of a `PowerPoint`.
        power: Power to be reached, drawn as a line.

    Raises:
        InputError: The package matplotlib is missing, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "plan.png")
        ...     plan_picture(path, rows=[], points=[], power=0.8)
        ...     print(path.is_file())
        True
    """
    page = blank_page("plan", figsize=_PAGE, layout="constrained")
    left, right = page.subplots(1, 2)
    counts = {name: len({getattr(row, name) for row in rows}) for name in _FIELDS}
    varied = [name for name in _FIELDS if counts[name] > 1]
    units = rows[0].units if rows else "units of a view"
    for row in rows:
        own = [one for one in points if _setting(one) == _setting(row)]
        left.errorbar(
            [one.difference for one in own],
            [one.power for one in own],
            [one.standard_error for one in own],
            marker="o",
            markersize=3,
            capsize=2,
            linewidth=1,
            label=_label(row, varied),
        )
    left.axhline(power, color="#888888", linewidth=1, linestyle=":")
    left.set(xscale="log", ylim=(-0.02, 1.02), xlabel=f"difference, {units}", ylabel="power")
    left.set_title("share of images in which it is found", fontsize=10)
    if varied:
        left.legend(fontsize=7, frameon=False)
    _draw_smallest(right, rows, max(counts, key=lambda name: counts[name]), varied)
    right.set(ylabel=f"difference, {units}")
    right.set_title(f"smallest difference of power {power:g}", fontsize=10)
    with atomic_path(path) as temporary:
        page.savefig(temporary, dpi=110, facecolor="white")


def _draw_smallest(axes: Any, rows: Sequence[Any], over: str, varied: Sequence[str]) -> None:
    """Draw the smallest differences over one factor, a line for each setting of the others."""
    others = [name for name in varied if name != over]
    places = {value: k for k, value in enumerate(sorted({getattr(row, over) for row in rows}))}
    for label in dict.fromkeys(_label(row, others) for row in rows):
        own = [row for row in rows if _label(row, others) == label]
        own.sort(key=lambda row: getattr(row, over))
        found = [row for row in own if math.isfinite(row.difference)]
        ends = [
            [row.difference - row.low for row in found],
            [
                (row.high if math.isfinite(row.high) else row.largest) - row.difference
                for row in found
            ],
        ]
        at = [places[getattr(row, over)] for row in found]
        values = [row.difference for row in found]
        drawn = axes.errorbar(at, values, ends, marker="o", capsize=3, linewidth=1, label=label)
        missed = [row for row in own if row not in found]
        at = [places[getattr(row, over)] for row in missed]
        axes.plot(at, [row.largest for row in missed], "^", color=drawn.lines[0].get_color())
    axes.set_xticks([*places.values()], [f"{value:g}" for value in places])
    axes.set_xlabel(_FIELDS[over])
    axes.set_ylim(bottom=0)
    if others:
        axes.legend(fontsize=7, frameon=False)


def _setting(one: Any) -> tuple[Any, ...]:
    return tuple(getattr(one, name) for name in _FIELDS)


def _label(one: Any, names: Sequence[str]) -> str:
    return ", ".join(f"{_SHORT[name]} {getattr(one, name):g}" for name in names)
