"""Verdict of a calibration in sentences, and the choice of the deciding p-value."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dal_jax.inspection._calibration import Calibration, Rate, tested_parts
from dal_jax.noise import FitReport

ALPHA = 0.05
# Excess kurtosis above which tails are called heavy.
_HEAVY = 1.0
# If an interval extends above this rate, there are too few images for a conclusion.
CERTAIN = 2 * ALPHA


def verdict(
    rates: Sequence[Rate],
    control: Sequence[Rate],
    fit: FitReport,
    kind: str,
    calibration: Calibration,
    num_views: int,
) -> list[str]:
    """Return the conclusions from the false calls on held-out normal images.

    Args:
        rates: Rates of false calls on held-out normal views, by method and level.
        control: Rates of false calls on images drawn from the noise model.
        fit: Fit of the noise model to the held-out views.
        kind: Kind of noise model.
        calibration: Fitted calibration.
        num_views: Largest number of views of an image.

    Returns:
        Sentences; the first one is the verdict on the raw p-values.
    """
    raw = _at(rates, "selective")
    told = [_first(raw)] if raw else ["No view had a region: nothing can be said."]
    if calibration.decide_by == "conformal":
        told.append("Decisions go by the conformal p-value, unless --decide-by names another.")
    elif calibration.unchecked:
        told.append("Decisions go by the raw p-value, unchecked, unless --decide-by names another.")
    drawn = _at(control, "selective")
    if drawn is not None:
        told.append(
            f"Images drawn from the noise model itself: {_percent(drawn)}; {_search(drawn)}"
        )
    if raw and not raw.low <= ALPHA <= raw.high:
        told += _advice(fit, kind)
    for method, name in (("inflated", "inflation"), ("heavy_tails", "Student law")):
        rate = _at(rates, method)
        if rate:
            law = calibration.inflated if method == "inflated" else calibration.heavy_tails
            degrees = "" if method == "inflated" else f", {law.degrees:g} degrees of freedom"
            told.append(f"After {name} (factor {law.factor:.3g}{degrees}): {_percent(rate)}.")
    rate = _at(rates, "conformal")
    if rate:
        told.append(f"After conformal recalibration: {_percent(rate)}.")
        lost = out_of_reach(calibration, ALPHA, num_views)
        if lost:
            told.append(
                f"{lost} Only {len(calibration.selective.p)} normal views of "
                f"{calibration.num_groups} objects have a region."
            )
    if calibration.num_groups < 20:
        told.append(
            f"Only {calibration.num_groups} objects were held out: the intervals are wide; more "
            "normal objects would say more."
        )
    return told


def decider(rates: Sequence[Rate], calibration: Calibration, num_views: int) -> str:
    """Return the method whose p-value decides by default.

    Args:
        rates: Rates of false calls on held-out normal views, by method and level.
        calibration: Fitted calibration.
        num_views: Largest number of views of an image.

    Returns:
        "selective", the raw p-value, if no held-out view has a region, if the rate of false calls
        on them agrees with the level, or if they are merely too few to tell and no conformal
        p-value can be small enough for an image of that many views; "conformal" otherwise.
    """
    raw = _at(rates, "selective")
    if raw is None or (raw.low <= ALPHA and raw.high <= CERTAIN):
        return "selective"
    few = unchecked(rates) and bool(out_of_reach(calibration, ALPHA, num_views))
    return "selective" if few else "conformal"


def unchecked(rates: Sequence[Rate]) -> bool:
    """Return whether held-out normal views are too few to check that raw p-values hold the level.

    Args:
        rates: Rates of false calls on held-out normal views, by method and level.

    Returns:
        True if the interval of the raw p-value's rate at 0.05 begins at or below 0.05 and extends
        above 0.10.
    """
    raw = _at(rates, "selective")
    return raw is not None and raw.low <= ALPHA and raw.high > CERTAIN


def out_of_reach(calibration: Calibration, alpha: float, num_views: int) -> str:
    """Return a statement that no conformal p-value can be small enough, if that is the case.

    Each of V views is decided at alpha / V. Components of a view need no smaller p-value, since
    theirs are ranks among the smallest p-value of each normal view.

    Args:
        calibration: Calibration of the model.
        alpha: Level for all views of an image together.
        num_views: Largest number of views of an image.

    Returns:
        One sentence; "" if a conformal p-value can be small enough.
    """
    least = calibration.selective.least
    if num_views * least <= alpha:
        return ""
    told = f"No conformal p-value can be below {least:.3g}, which is above"
    if num_views == 1:
        return f"{told} the level {alpha:g}: by it nothing can be significant."
    return (
        f"{told} {alpha:g} / {num_views} = {alpha / num_views:.2g}, the level of each view of an "
        f"image of {num_views} views: by it nothing in such an image can be significant."
    )


def by_distance(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count raw selective rejections by |z|, where tails heavier than the model's show.

    Args:
        records: Records of normal views.

    Returns:
        Numbers of views (or components) and of rejections at 0.05, for |z| below 1, from 1 to 2,
        from 2 to 3, and above 3.
    """
    parts = [part for record in records for part in tested_parts(record)]
    tested = [part for part in parts if part["status"] == "OK"]
    z = np.array([abs(record["statistic"] / record["sd"]) for record in tested])
    p = np.array([record["p_value"] for record in tested])
    return [
        {
            "from": low,
            "to": high,
            "views": int(((z >= low) & (z < high)).sum()),
            "rejected": int(((z >= low) & (z < high) & (p <= ALPHA)).sum()),
        }
        for low, high in pairwise((0.0, 1.0, 2.0, 3.0, np.inf))
    ]


def _first(raw: Rate) -> str:
    told = f"Raw selective p-values on held-out normal views: {_percent(raw)}"
    if raw.low > ALPHA:
        return f"{told}: too many. Do NOT trust the raw p-values; use a recalibrated one."
    if raw.high < ALPHA:
        return f"{told}: fewer than the level. The raw p-values give power away on these images."
    if raw.high > CERTAIN:
        return (
            f"{told}: so few views CANNOT tell whether the raw p-values hold the level; hold out "
            "more normal images, or use a recalibrated one."
        )
    return (
        f"{told}: no excess at this level shows. These images exclude rates above {raw.high:.1%}, "
        "no smaller excess, and say nothing of other images or lower levels."
    )


def _search(drawn: Rate) -> str:
    if drawn.low > ALPHA:
        return "the search calls too much: please report this."
    if drawn.high > CERTAIN:
        return "too few to tell whether the search calls too much: try a larger --control."
    return f"no excess of the search shows; rates above {drawn.high:.1%} are excluded."


def _advice(fit: FitReport, kind: str) -> list[str]:
    told = []
    if fit.residual_kurtosis > _HEAVY:
        told.append(
            f"Whitened residuals have heavy tails (excess kurtosis {fit.residual_kurtosis:.1f}): "
            "try --scale view or --intensity log."
        )
    if kind in ("iid", "diagonal"):
        told.append("The noise model has no correlations: try --noise auto.")
    worst = max(fit.regions, key=lambda region: region.rejection.value, default=None)
    if worst is not None and worst.rejection.value > 2 * ALPHA:
        height, width = worst.shape
        told.append(
            f"Fixed regions of {height} x {width} pixels are rejected at "
            f"{worst.rejection.value:.0%}: the covariance does not fit that scale."
        )
    told.append("Look at the normal images with the smallest p-values: defects among them count.")
    return told


def _percent(rate: Rate) -> str:
    return (
        f"{rate.rate:.1%} at {rate.alpha:g} ({rate.rejected} of {rate.tested}; 95% interval "
        f"{rate.low:.1%} to {rate.high:.1%})"
    )


def _at(rates: Sequence[Rate], method: str) -> Rate | None:
    return next((rate for rate in rates if (rate.method, rate.alpha) == (method, ALPHA)), None)
