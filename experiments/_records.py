"""Records of tests: tested parts, p-values of every method, regions, agreement, work and time."""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from dal_jax import dal_test_batch, parts_of_record, region_of
from dal_jax.inference import SelectiveP, holm, naive_p
from experiments._experiment import ConditionResult, Context
from experiments._models import localizer_of
from experiments._output import Row

TESTED = "OK"
EMPTY = "NO_REGION"
PART_METHODS = ("selective", "thinned")


class Part(NamedTuple):
    """Result of a method for one tested part: a region, or one of its components."""

    region: np.ndarray  # bool (H, W)
    p: float  # two-sided; for components adjusted by Holm's method
    sd: float  # of the difference of means in the image itself, whatever the method
    estimate: float  # of the mean difference, units of the image
    low: float  # end of its confidence interval, units of the image
    high: float


def parts_of(
    record: dict[str, Any], method: str = "selective", confidence: float = 0.95
) -> list[Part]:
    """Return the tested parts of an image: its region or, where each is tested, the components.

    With "thinned" each part is tested in the half of the image that its localizer did not see:
    `T' = nu . (x - omega / gamma^2 - mean_k x_ref_k)`. The record has all that this needs,
    because `nu . omega = c added` with `c = K / (K + 1) = (gamma sd / added_sd)^2`.

    Args:
        record: Record of a tested image.
        method: One of `PART_METHODS`.
        confidence: Confidence of thinning's intervals, in (0, 1); those of "selective" are the
            record's.

    Returns:
        The parts; with "thinned" none where nothing was added to the image.

    Source: thinning: Neufeld, Dharamshi, Gao and Witten, arXiv 2301.07276.
    """
    own = parts_of_record(record)
    p_name = "p_holm" if record.get("components") else "p_value"
    shape, gamma = record["region_shape"], record["randomization"]
    if method == "thinned":
        if not gamma:
            return []
        parts = [_thinned_part(one, shape, gamma, confidence) for one in own]
        adjusted = holm([SelectiveP(part.p, part.p, part.p) for part in parts])
        return [part._replace(p=p.p) for part, p in zip(parts, adjusted, strict=True)]
    numbers = ("sd", "estimate", "ci_low", "ci_high")
    return [
        Part(region_of(one["region"], shape), one[p_name], *(one[name] for name in numbers))
        for one in own
    ]


def _thinned_part(
    one: dict[str, Any], shape: Sequence[int], gamma: float, confidence: float
) -> Part:
    """Test a part by what its localizer did not see."""
    share = (gamma * one["sd"] / one["added_sd"]) ** 2  # c
    statistic = one["statistic"] - share * one["added"] / gamma**2
    sd = one["sd"] * math.sqrt(1 + share / gamma**2)
    half = float(-ndtri((1 - confidence) / 2)) * sd
    p = naive_p(statistic / sd)
    region = region_of(one["region"], shape)
    return Part(region, p, one["sd"], statistic, statistic - half, statistic + half)


METHODS = {
    "selective": lambda record: record["p_value"],
    "over-conditioned": lambda record: record["over_conditioned_p"],
    "naive": lambda record: record["naive_p"],
    "bonferroni": lambda record: 10.0 ** record["bonferroni_log10_p"],
    "permutation": lambda record: record["permutation_p"],
    # For components the smallest adjusted p, as the record has it for the selective test.
    "thinned": lambda record: min((p.p for p in parts_of(record, "thinned")), default=math.nan),
}


def p_values(records: Sequence[dict[str, Any]], method: str) -> np.ndarray:
    """Return the p-values of the images that were tested.

    Args:
        records: Records of images.
        method: One of `METHODS`.

    Returns:
        p-values (m,); none if the settings did not ask for the method.
    """
    p = [METHODS[method](record) for record in records if record["status"] == TESTED]
    values = np.array(p, np.float64)
    return values[~np.isnan(values)]


def counts(records: Sequence[dict[str, Any]]) -> Row:
    """Count images by the outcome of their tests.

    Args:
        records: Records of images.

    Returns:
        images, no_region (nothing flagged, nothing tested), failed (any other status but OK).
    """
    states = [record["status"] for record in records]
    empty, fine = states.count(EMPTY), states.count(TESTED)
    return {"images": len(states), "no_region": empty, "failed": len(states) - empty - fine}


def mean_and_se(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the mean of independent values and its standard error; NaN for too few values."""
    v = np.asarray(values, np.float64)
    mean = float(v.mean()) if v.size else math.nan
    return mean, float(v.std(ddof=1) / math.sqrt(v.size)) if v.size > 1 else math.nan


def mean_columns(mean: str, se: str, values: Sequence[float]) -> Row:
    """Return `mean_and_se` of values as two columns with the given names."""
    return dict(zip((mean, se), mean_and_se(values), strict=True))


def median(values: Sequence[float] | np.ndarray) -> float:
    """Return the median; NaN if there are no values."""
    return float(np.median(values)) if len(values) else math.nan


def bounds_apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether the bounds on p of two records exclude one another."""
    slack = 1e-9  # rounding of the bounds
    return one["p_low"] > other["p_high"] + slack or other["p_low"] > one["p_high"] + slack


def agreement(smooth: Sequence[dict[str, Any]], replaced: Sequence[dict[str, Any]]) -> Row:
    """Compare the regions that two networks flag in the same images.

    Args:
        smooth: Records of one network.
        replaced: Records of the other; only images that both have are compared.

    Returns:
        compared (images), flagged (images in which one or the other flags a region), same and
        same_se (share of all with the very same region), jaccard and jaccard_se (mean intersection
        over union, of the flagged ones), and same_decision (share of the images tested with both
        in which both reject at 0.05 or neither does) with decided, their number.
    """
    pairs = list(zip(smooth, replaced, strict=False))  # the smooth network has more images
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
    return {
        "compared": len(pairs),
        "flagged": len(shares),
        **mean_columns("same", "same_se", same),
        **mean_columns("jaccard", "jaccard_se", shares),
        "decided": len(decisions),
        "same_decision": mean_and_se(decisions)[0],
    }


def engine_difference(exact: Sequence[dict[str, Any]], adaptive: Sequence[dict[str, Any]]) -> Row:
    """Compare two engines on the same images and network.

    Args:
        exact: Records of one engine.
        adaptive: Records of the other; only images that both have are compared.

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


def regions_row(result: ConditionResult) -> Row:
    """Return the flagged shares of all pixels and of the square, tested or not.

    Args:
        result: Result of a condition.

    Returns:
        images, no_region, touching (regions with a pixel of the square), flagged_share and its se
        (of all pixels), covered_share and its se (of the square's; NaN without a signal).
    """
    flagged, covered = [], []
    for number, record in enumerate(result.records):
        region = _region(record)
        flagged.append(region.mean())
        if result.condition.simulation.signal:
            square = result.square(number)
            covered.append((region & square).sum() / square.sum())
    return {
        "images": len(flagged),
        "no_region": flagged.count(0.0),
        "touching": sum(share > 0 for share in covered),
        **mean_columns("flagged_share", "flagged_se", flagged),
        **mean_columns("covered_share", "covered_se", covered),
    }


def work_row(labels: Row, result: ConditionResult) -> Row:
    """Return the amount of computation of the tests; the same on every machine of one kind.

    Args:
        labels: First columns.
        result: Result of a condition.

    Returns:
        `labels`, `counts`, and of the tested images the medians of windows (exact engines only)
        and evaluations, and the mean of evaluations with its standard error.
    """
    own = [record for record in result.records if record["status"] == TESTED]
    exact = result.condition.options.engine != "adaptive"
    evaluations = [record["num_evaluations"] for record in own]
    return {
        **labels,
        **counts(result.records),
        "windows_median": median([record["num_windows"] for record in own]) if exact else math.nan,
        "evaluations_median": median(evaluations),
        **mean_columns("evaluations_mean", "evaluations_se", evaluations),
    }


def time_row(result: ConditionResult, context: Context, images: int) -> Row:
    """Return the seconds of a test, without those of images without a region.

    Exact engines test one image at a time: the median of `timed_records`.
    The adaptive engine tests many side by side: images are tested once more, and the time of all
    is divided by the number that were tested.

    Args:
        result: Result of a condition.
        context: Models, processes and devices.
        images: Number of images to test once more, the first ones.

    Returns:
        The condition's labels, timed (number of images with a region) and seconds.
    """
    if result.condition.options.engine != "adaptive":
        own = timed_records(result)
        seconds, timed = median([record["seconds"] for record in own]), len(own)
    else:
        seconds, timed = _side_by_side(result, context, min(images, len(result.records)))
    return {**result.condition.labels, "timed": timed, "seconds": seconds}


def timed_records(result: ConditionResult) -> list[dict[str, Any]]:
    """Return the records whose seconds are the time of an exact engine.

    The first record is left out where there are others: the first search of a network compiles.

    Args:
        result: Result of a condition.

    Returns:
        Records of tested images.
    """
    own = [record for record in result.records if record["status"] == TESTED]
    return own[1:] or own


def _side_by_side(result: ConditionResult, context: Context, images: int) -> tuple[float, int]:
    condition = result.condition
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
        return sum(one.status.value == TESTED for one in results)

    run(min(images, 4))  # compiles, if nothing else has in this process
    started = time.perf_counter()
    timed = run(images)
    seconds = time.perf_counter() - started
    return (seconds / timed if timed else math.nan), timed


def _region(record: dict[str, Any]) -> np.ndarray:
    return region_of(record["region"], record["region_shape"])
