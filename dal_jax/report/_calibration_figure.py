"""Figures of a calibration: p-values of normal views, fixed regions, false calls."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from dal_jax._typing import Float
from dal_jax.images import atomic_path
from dal_jax.report._figure import blank_page

_ALPHA = 0.05  # level of the panels on rejections
_INCHES = (4.4, 4.0)
_PAGE = (7.6, 7.2)  # inches; about 800 pixels wide, so that the text is legible without scaling
_LEAST = 1e-6  # smallest p-value on the logarithmic axes; smaller ones are drawn at this value
_POINTS = 400  # largest number of points of a curve; the smallest p-values are always included


def calibration_figure(
    selective: Sequence[float],
    naive: Sequence[float],
    num_groups: int,
    *,
    logarithmic: bool = False,
) -> str:
    """Draw the quantiles of p-values of normal views against those of a uniform law.

    The k-th of m p-values is drawn over `(k - 1/2)/m`. At each place the band covers 95% of the
    values of independent uniform p-values, one for each physical object. The band is conservative,
    because all views of an object count as one value.

    Args:
        selective: Raw selective p-values of normal views.
        naive: Naive p-values of the same views.
        num_groups: Number of physical objects that the views show, positive.
        logarithmic: Whether both axes are logarithmic, which makes small p-values visible.

    Returns:
        An SVG document, identical for identical values.

    Raises:
        InputError: The package matplotlib is missing.

    Example:
        >>> calibration_figure([0.2, 0.7], [0.01, 0.1], 2).startswith("<?xml")
        True
    """
    page = blank_page("report", figsize=_INCHES, layout="constrained")
    from matplotlib import rc_context  # optional dependency, checked by `blank_page`

    with rc_context({"svg.hashsalt": "dal_jax", "svg.fonttype": "path"}):
        _draw(page.add_subplot(), selective, naive, num_groups, logarithmic)
        file = io.StringIO()
        page.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def calibration_picture(
    path: Path,
    selective: Sequence[float],
    naive: Sequence[float],
    num_groups: int,
    fit: Any,
    rates: Sequence[Any],
) -> None:
    """Draw the results of a calibration as one picture of four panels, two above two.

    The upper panels are those of `calibration_figure`. Of the lower panels, one shows how often
    regions fixed in advance are rejected at 0.05, by their size; the other shows the rate of false
    calls of each p-value at 0.05. Bars are 95% intervals, clustered by physical object.

    Args:
        path: Path of the picture, .png or another format that matplotlib writes.
        selective: Raw selective p-values of normal views.
        naive: Naive p-values of the same views.
        num_groups: Number of physical objects that the views show.
        fit: Fit of the noise model to the same views, a `dal_jax.noise.FitReport`.
        rates: One object for each method and level, with the attributes `method`, `alpha`, `rate`,
            `low` and `high`.

    Raises:
        InputError: The package matplotlib is missing, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from dal_jax.noise import fit_report, iid
        >>> fit = fit_report(iid(1.0), np.random.default_rng(0).normal(size=(20, 4, 4, 1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "calibration.png")
        ...     calibration_picture(path, [0.2, 0.7], [0.01, 0.1], 2, fit, rates=[])
        ...     print(path.is_file())
        True
    """
    page = blank_page("calibrate", figsize=_PAGE, layout="constrained")
    axes = page.subplots(2, 2).ravel()
    _draw(axes[0], selective, naive, num_groups, False)
    _draw(axes[1], selective, naive, num_groups, True)
    _draw_regions(axes[2], fit)
    _draw_rates(axes[3], [rate for rate in rates if rate.alpha == _ALPHA])
    with atomic_path(path) as temporary:
        page.savefig(temporary, dpi=110, facecolor="white")


def _draw_regions(axes: Any, fit: Any) -> None:
    values = np.array([region.rejection.value for region in fit.regions])
    errors = [1.96 * region.rejection.standard_error for region in fit.regions]
    names = [f"{height}x{width}" for height, width in (r.shape for r in fit.regions)]
    _draw_shares(axes, names, values, errors)
    axes.set_title(f"fixed regions rejected at {_ALPHA:g}, by size", fontsize=10)
    axes.set_xlabel(
        f"whitened residuals: excess kurtosis {fit.residual_kurtosis:.1f},\n"
        f"spread of scale {fit.scale_spread:.2f}",
        fontsize=9,
    )


def _draw_rates(axes: Any, rates: Sequence[Any]) -> None:
    values = np.array([rate.rate for rate in rates])
    ends = np.array([(rate.low, rate.high) for rate in rates]).reshape(-1, 2)
    _draw_shares(axes, [rate.method for rate in rates], values, np.abs(ends.T - values))
    axes.set_title(f"normal views called at {_ALPHA:g}", fontsize=10)
    if "heavy_tails" in {rate.method for rate in rates}:
        axes.set_xlabel("heavy_tails: few defects are called either", fontsize=9)


def _draw_shares(axes: Any, names: Sequence[str], values: np.ndarray, errors: Any) -> None:
    """Draw a point with its error bar for each name, and a line at the level."""
    places = np.arange(len(names))
    axes.errorbar(places, values, np.nan_to_num(errors), fmt="o", color="#1f77b4", capsize=2)
    axes.axhline(_ALPHA, color="#888888", linewidth=1, linestyle=":")
    axes.set_xticks(places, names, rotation=60, fontsize=8)
    axes.set_ylim(bottom=0)


def uniform_band(
    expected: Float[np.ndarray, " m"], count: int
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return the pointwise band that holds 95% of the quantiles of uniform values.

    The quantile at u of n values is taken to be Beta(u (n + 1), (1 - u) (n + 1)), the law of order
    statistics at fractional ranks.

    Args:
        expected: (m,) values of u, in (0, 1).
        count: Number n of independent values.

    Returns:
        Lower and upper ends of the band, each (m,).
    """
    a, b = expected * (count + 1), (1 - expected) * (count + 1)
    return special.betaincinv(a, b, 0.025), special.betaincinv(a, b, 0.975)


def _draw(
    axes: Any,
    selective: Sequence[float],
    naive: Sequence[float],
    num_groups: int,
    logarithmic: bool,
) -> None:
    start = 0.4 / max(len(selective), len(naive), 10) if logarithmic else 0.001
    places = (np.geomspace if logarithmic else np.linspace)(start, 0.999, 200)
    low, high = uniform_band(places, max(num_groups, 1))
    least = _LEAST if logarithmic else 0.0
    axes.fill_between(
        places,
        np.maximum(low, least),
        np.maximum(high, least),
        color="#d9d9d9",
        label=f"95% band, {num_groups} objects",
        linewidth=0,
    )
    axes.plot([start, 1], [start, 1], color="#888888", linewidth=1, linestyle=":", label="uniform")
    for values, style, colour, name in (
        (selective, "-", "#1f77b4", "raw selective p"),
        (naive, "--", "#d62728", "naive p (not valid)"),
    ):
        if len(values):
            axes.plot(*_curve(values, least), style, color=colour, linewidth=1.8, label=name)
    if logarithmic:
        axes.set(xscale="log", yscale="log", ylim=(_LEAST / 2, 1.5))
    axes.set_xlabel("expected p of a normal view")
    axes.set_ylabel("observed p")
    axes.set_title("small p-values, powers of ten" if logarithmic else "all p-values", fontsize=10)
    if not logarithmic:  # on logarithmic axes curves may cover the legend, which is the same
        axes.legend(fontsize=8, frameon=False, loc="upper left")


def _curve(values: Sequence[float], least: float) -> tuple[np.ndarray, np.ndarray]:
    observed = np.sort(np.asarray(values, np.float64))
    count = len(observed)
    expected = (np.arange(count) + 0.5) / count
    half = min(count, _POINTS // 2)
    shown = np.union1d(np.arange(half), np.linspace(0, count - 1, half).round().astype(int))
    return expected[shown], np.maximum(observed[shown], least)
