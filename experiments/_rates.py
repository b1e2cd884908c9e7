"""Rejection rates, detections of the square and intervals, with their standard errors."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from dal_jax.images import cluster_standard_error
from experiments._experiment import ConditionResult
from experiments._output import Row, Tables, pivot, row_table
from experiments._records import (
    METHODS,
    PART_METHODS,
    TESTED,
    Part,
    counts,
    median,
    p_values,
    parts_of,
)


def rejections(
    labels: Row, records: Sequence[dict[str, Any]], levels: Sequence[float]
) -> list[Row]:
    """Return rejection rates among the images with a region, for each method and level.

    Args:
        labels: First columns of every row.
        records: Records of images.
        levels: Significance levels, in (0, 1).

    Returns:
        Rows with `labels`, method, alpha, `counts`, tested, rejected, rate, se (binomial standard
        error at the observed rate), low and high (95% Clopper-Pearson interval) and ks_p
        (Kolmogorov-Smirnov test of uniformity, without meaning where there is a signal).
        Methods that were not asked for have no row; where no image at all was tested, every method
        has, with NaN for the numbers.
    """
    rows = []
    nothing = all(record["status"] != TESTED for record in records)
    for method in METHODS:
        p = p_values(records, method)
        if len(p) or nothing:
            rows += [
                {**labels, "method": method, "alpha": alpha, **counts(records), **_rate(p, alpha)}
                for alpha in levels
            ]
    return rows


def _rate(p: np.ndarray, alpha: float) -> Row:
    """Return the rejection rate of p-values, and the test of their uniformity."""
    rejected, low, high, ks_p = int(np.sum(p <= alpha)), math.nan, math.nan, math.nan
    if len(p):
        low, high = map(float, stats.binomtest(rejected, len(p)).proportion_ci(0.95))
        ks_p = float(stats.kstest(p, "uniform").pvalue)
    numbers = {**_binomial(rejected, len(p)), "low": low, "high": high, "ks_p": ks_p}
    return {"tested": len(p), "rejected": rejected, **numbers}


def _binomial(hits: int, count: int) -> Row:
    """Return a rate and its binomial standard error at that rate; NaN of no images."""
    rate = hits / count if count else math.nan
    return {"rate": rate, "se": math.sqrt(rate * (1 - rate) / count) if count else math.nan}


def rate_cell(row: Row) -> str:
    """Return a rate with its standard error, "0.051 (0.007)", for a Markdown table.

    Args:
        row: Row with rate and se.

    Returns:
        The text.
    """
    return f"{row['rate']:.3f} ({row['se']:.3f})"


def counts_cell(row: Row) -> str:
    """Return the numbers of images, those without a region and failed ones, "200, 13, 0".

    Args:
        row: Row with `counts`.

    Returns:
        The text.
    """
    return f"{row['images']}, {row['no_region']}, {row['failed']}"


def null_rates(rows: Sequence[Row], index: Sequence[str]) -> list[str]:
    """Return rates of null images at each level, and tests of uniformity, Markdown.

    Args:
        rows: Rows of `rejections`.
        index: Keys of the left columns.

    Returns:
        Titles and tables, a column for each method.
    """
    parts = []
    for alpha in dict.fromkeys(row["alpha"] for row in rows):
        own = [row for row in rows if row["alpha"] == alpha]
        parts.append(
            f"Rejected at {alpha:g}, among the null images with a region (standard error):\n"
        )
        parts.append(pivot(own, index, "method", rate_cell))
    own = [row for row in rows if row["alpha"] == rows[0]["alpha"]]
    parts.append("Images, without a region, failed; Kolmogorov-Smirnov p of uniformity:\n")
    parts.append(pivot(own, index, "method", lambda r: f"{counts_cell(r)}; {r['ks_p']:.2g}"))
    return parts


def middle_level(rows: Sequence[Row]) -> float:
    """Return the level in the middle, for figures that show one only.

    Args:
        rows: Rows of `rejections`.

    Returns:
        The level; of an even number of levels the upper of the two in the middle.
    """
    levels = sorted({row["alpha"] for row in rows})
    return levels[len(levels) // 2]


def detection_rows(labels: Row, result: ConditionResult, levels: Sequence[float]) -> list[Row]:
    """Return the share of all images in which a part that touches the square is significant.

    Images without a region, or with one beside the square, count as missed: flagging less, or
    elsewhere, costs detections.

    Args:
        labels: First columns of every row.
        result: Result of a condition with a signal.
        levels: Significance levels, in (0, 1).

    Returns:
        Rows with `labels`, method ("thinned" where selection is randomized), alpha, images,
        detected, rate and se (binomial standard error).
    """
    rows = []
    for method in _methods(result):
        p = np.full(len(result.records), math.nan)
        for number, parts in enumerate(_parts(result, method)):
            square = result.square(number)
            p[number] = min((r.p for r in parts if (r.region & square).any()), default=math.nan)
        for alpha in levels:
            detected = int(np.sum(p <= alpha))
            facts = {"images": len(p), "detected": detected, **_binomial(detected, len(p))}
            rows.append({**labels, "method": method, "alpha": alpha, **facts})
    return rows


class _Interval(NamedTuple):
    image: int
    sd: float
    low: float
    high: float
    covers: bool
    above: bool  # whether the estimate is above the true value


def effect_rows(labels: Row, result: ConditionResult) -> list[Row]:
    """Return lengths and coverage of the intervals of all tested parts, significant or not.

    The true mean difference inside a part is the signal times the share of its pixels in the
    square.

    Args:
        labels: First columns of every row.
        result: Result of a condition.

    Returns:
        Rows with `labels`, method, parts (tested, with an interval), confidence, length_sd and
        length (medians, in standard deviations of the difference in the image itself and in units
        of the image), infinite (share of intervals), covered and covered_se, above and above_se
        (share of estimates above the true value; 0.5 if median-unbiased). Standard errors take
        parts of one image as dependent; they are NaN with fewer than two images.
    """
    rows = []
    for method in _methods(result):
        own = _intervals(result, method)
        lengths = np.array([one.high - one.low for one in own])
        images = [str(one.image) for one in own]
        covered, covered_se = _share([one.covers for one in own], images)
        above, above_se = _share([one.above for one in own], images)
        rows.append(
            {
                **labels,
                "method": method,
                "parts": len(own),
                "confidence": result.condition.options.confidence,
                "length_sd": median(lengths / np.array([one.sd for one in own])),
                "length": median(lengths),
                "infinite": float(np.isinf(lengths).mean()) if own else math.nan,
                "covered": covered,
                "covered_se": covered_se,
                "above": above,
                "above_se": above_se,
            }
        )
    return rows


def effect_summary(tables: Tables, index: Sequence[str]) -> list[str]:
    """Return intervals and evaluations of every setting, Markdown.

    Args:
        tables: Tables "effects", of `effect_rows`, and "work", of `work_row`.
        index: Keys of the left columns.

    Returns:
        Titles and tables.
    """
    effects, words = tables["effects"], "median; mean (standard error)"
    if not effects:  # the permutation baseline alone
        return []
    return [
        f"Intervals at {effects[0]['confidence']:g}: median length in sd of the difference (in "
        "units of the image); coverage (standard error); estimates above the true value; infinite "
        "intervals:\n",
        pivot(effects, index, "method", _effect_cell),
        "Evaluations of a test:\n",
        row_table(tables["work"], index, {words: _work_cell}),
    ]


def _effect_cell(row: Row) -> str:
    length = f"{row['length_sd']:.2f} sd ({row['length']:.2f})"
    covered = f"{row['covered']:.3f} ({row['covered_se']:.3f})"
    return f"{length}; {covered}; {row['above']:.2f}; {row['infinite']:.0%}"


def _work_cell(row: Row) -> str:
    mean = f"{row['evaluations_mean']:.1f} ({row['evaluations_se']:.1f})"
    return f"{row['evaluations_median']:g}; {mean}"


def _methods(result: ConditionResult) -> tuple[str, ...]:
    return PART_METHODS if result.condition.options.randomization else PART_METHODS[:1]


def _parts(result: ConditionResult, method: str) -> list[list[Part]]:
    """Return the tested parts of each image; none of an image whose test failed."""
    confidence = result.condition.options.confidence
    return [
        parts_of(record, method, confidence) if record["status"] == TESTED else []
        for record in result.records
    ]


def _intervals(result: ConditionResult, method: str) -> list[_Interval]:
    signal, intervals = result.condition.simulation.signal, []
    for number, parts in enumerate(_parts(result, method)):
        square = result.square(number) if parts and signal else None
        for part in parts:
            if math.isnan(part.estimate):
                continue
            true = 0.0 if square is None else signal * float(square[part.region].mean())
            covers, above = part.low <= true <= part.high, part.estimate > true
            intervals.append(_Interval(number, part.sd, part.low, part.high, covers, above))
    return intervals


def _share(hits: Sequence[bool], images: Sequence[str]) -> tuple[float, float]:
    """Return a share and its standard error; hits of one image count as dependent."""
    if not hits:
        return math.nan, math.nan
    values = np.array(hits, np.float64)
    return float(values.mean()), cluster_standard_error(values, images)
