"""What records of tests tell besides rejections: regions, agreement, work and time."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dal_jax import dal_test_batch, region_of
from experiments._experiment import Context, Measured
from experiments._models import localizer_of
from experiments._output import Row
from experiments._rates import TESTED, counts


def mean_and_se(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean of independent values and its standard error; NaN where there are too few."""
    v = np.asarray(values, np.float64)
    mean = float(v.mean()) if v.size else math.nan
    return mean, float(v.std(ddof=1) / math.sqrt(v.size)) if v.size > 1 else math.nan


def median(values: Sequence[float] | np.ndarray) -> float:
    """The median; NaN of nothing."""
    return float(np.median(values)) if len(values) else math.nan


def bounds_apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Says whether the bounds on p of two records exclude one another."""
    slack = 1e-9  # rounding of the bounds
    return one["p_low"] > other["p_high"] + slack or other["p_low"] > one["p_high"] + slack


def agreement(smooth: Sequence[dict[str, Any]], replaced: Sequence[dict[str, Any]]) -> Row:
    """How far two networks flag the same regions in the same images.

    Args:
        smooth: records of one.
        replaced: records of the other; only images that both have are compared.

    Returns:
        compared (images), flagged (in which one or the other flags a region), same and same_se
        (share of all with the very same region), jaccard and jaccard_se (mean intersection over
        union, of the flagged ones), and same_decision (share of the images tested with both in
        which both reject at 0.05 or neither does) with decided, their number.
    """
    pairs = list(zip(smooth, replaced, strict=False))  # the smooth one has more
    regions = [(_region(one), _region(other)) for one, other in pairs]
    same = [float((one == other).all()) for one, other in regions]
    shares = [
        (one & other).sum() / (one | other).sum() for one, other in regions if (one | other).any()
    ]
    decisions = [
        float((one["p_value"] <= 0.05) == (other["p_value"] <= 0.05))
        for one, other in pairs
        if one["status"] == other["status"] == TESTED
    ]
    facts: Row = {"compared": len(pairs), "flagged": len(shares)}
    facts |= dict(zip(("same", "same_se"), mean_and_se(same), strict=True))
    facts |= dict(zip(("jaccard", "jaccard_se"), mean_and_se(shares), strict=True))
    return facts | {"decided": len(decisions), "same_decision": mean_and_se(decisions)[0]}


def engine_difference(exact: Sequence[dict[str, Any]], adaptive: Sequence[dict[str, Any]]) -> Row:
    """How far two engines agree on the same images and network.

    Args:
        exact: records of one.
        adaptive: records of the other; only images that both have are compared.

    Returns:
        compared (images), tested (by both), other_status, other_region (images in which they
        differ), p_max and p_median (difference of p-values), bounds_apart (images in which the
        bounds on p exclude one another).
    """
    pairs = list(zip(exact, adaptive, strict=False))
    both = [(a, b) for a, b in pairs if a["status"] == b["status"] == TESTED]
    apart = [abs(a["p_value"] - b["p_value"]) for a, b in both]
    return {
        "compared": len(pairs),
        "tested": len(both),
        "other_status": sum(a["status"] != b["status"] for a, b in pairs),
        "other_region": sum(a["region"] != b["region"] for a, b in pairs),
        "p_max": max(apart, default=math.nan),
        "p_median": median(apart),
        "bounds_apart": sum(bounds_apart(a, b) for a, b in both),
    }


def regions_row(measured: Measured) -> Row:
    """What is flagged of all pixels and of the square, over all images, whatever the tests say.

    Args:
        measured: the condition.

    Returns:
        images, no_region, touching (regions with a pixel of the square), flagged_share and its se
        (of all pixels), covered_share and its se (of the square's; NaN without a signal).
    """
    flagged, covered = [], []
    for number, record in enumerate(measured.records):
        region = _region(record)
        flagged.append(region.mean())
        if measured.condition.simulation.signal:
            square = measured.square(number)
            covered.append((region & square).sum() / square.sum())
    row: Row = {"images": len(flagged), "no_region": flagged.count(0.0)}
    row["touching"] = sum(share > 0 for share in covered)
    row |= dict(zip(("flagged_share", "flagged_se"), mean_and_se(flagged), strict=True))
    return row | dict(zip(("covered_share", "covered_se"), mean_and_se(covered), strict=True))


def work_row(labels: Row, measured: Measured) -> Row:
    """How much the tests of a condition had to compute; the same on every machine of one kind.

    Args:
        labels: first columns.
        measured: the condition.

    Returns:
        `labels`, `counts`, and of the tested images the medians of windows (exact engines only)
        and evaluations, and the mean of evaluations with its standard error.
    """
    own = [record for record in measured.records if record["status"] == TESTED]
    exact = measured.condition.options.engine != "adaptive"
    mean, se = mean_and_se([record["num_evaluations"] for record in own])
    return {
        **labels,
        **counts(measured.records),
        "windows_median": median([r["num_windows"] for r in own]) if exact else math.nan,
        "evaluations_median": median([r["num_evaluations"] for r in own]),
        "evaluations_mean": mean,
        "evaluations_se": se,
    }


def time_row(measured: Measured, context: Context, images: int) -> Row:
    """Seconds that a test takes, those of images without a region left out.

    Exact engines test one image at a time: the median of `timed_records`.
    The adaptive engine tests many side by side: images are tested once more, and the time of all
    is divided by the number that were tested.

    Args:
        measured: the condition.
        context: where it ran.
        images: the first ones, to be tested once more.

    Returns:
        Its labels, timed (number of images with a region) and seconds.
    """
    if measured.condition.options.engine != "adaptive":
        own = timed_records(measured)
        seconds, timed = median([record["seconds"] for record in own]), len(own)
    else:
        seconds, timed = _together(measured, context, min(images, len(measured.records)))
    return {**measured.condition.labels, "timed": timed, "seconds": seconds}


def timed_records(measured: Measured) -> list[dict[str, Any]]:
    """The records that tell the time of an exact engine, which tests one image at a time.

    The first one is left out where there are others: in the first search of a network it compiles.

    Args:
        measured: the condition.

    Returns:
        Records of tested images.
    """
    own = [record for record in measured.records if record["status"] == TESTED]
    return own[1:] or own


def _together(measured: Measured, context: Context, images: int) -> tuple[float, int]:
    condition = measured.condition
    localizer = localizer_of(condition.model, condition.use, context.models)
    shape = np.shape(localizer.draws)
    cases = [condition.simulation.case(k, shape, condition.assumed) for k in range(images)]
    x, x_ref, draws = (np.array([case[part] for case in cases]) for part in range(3))

    def run(count: int) -> int:
        results = dal_test_batch(
            localizer,
            x[:count],
            x_ref[:count],
            condition.simulation.noise,
            draws=draws[:count],
            noises=[case.noise for case in cases[:count]],
            batch_size=context.batch_size,
            devices=context.devices,
            **vars(condition.options),
        )
        return sum(result.status.value == TESTED for result in results)

    run(min(images, 4))  # compiles, if nothing else has in this process
    started = time.perf_counter()
    timed = run(images)
    seconds = time.perf_counter() - started
    return (seconds / timed if timed else math.nan), timed


def _region(record: dict[str, Any]) -> np.ndarray:
    return region_of(record["region"], record["region_shape"])
