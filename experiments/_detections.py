"""Detections of the square, and intervals for the difference of means inside what was tested."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments._experiment import Measured
from experiments._output import Row, Tables, pivot, row_table
from experiments._parts import PART_METHODS, Part, parts_of
from experiments._rates import TESTED
from experiments._records import median


def detection_rows(labels: Row, measured: Measured, levels: Sequence[float]) -> list[Row]:
    """How often a part that touches the square is significant, of all images.

    Images without a region, or with one beside the square, count as missed: flagging less, or
    elsewhere, costs detections.

    Args:
        labels: first columns of every row.
        measured: a condition with a signal.
        levels: of significance.

    Returns:
        Rows with `labels`, method ("thinned" where selection is randomized), alpha, images,
        detected, rate and se (binomial standard error).
    """
    rows = []
    for method in _methods(measured):
        p = np.full(len(measured.records), math.nan)
        for number, parts in enumerate(_parts(measured, method)):
            square = measured.square(number)
            p[number] = min((r.p for r in parts if (r.region & square).any()), default=math.nan)
        for alpha in levels:
            rate, se = _share(p <= alpha)
            facts = {"images": len(p), "detected": int(np.sum(p <= alpha)), "rate": rate, "se": se}
            rows.append({**labels, "method": method, "alpha": alpha, **facts})
    return rows


class _Interval(NamedTuple):
    image: int
    sd: float
    low: float
    high: float
    covers: bool
    above: bool  # the estimate, the true value


def effect_rows(labels: Row, measured: Measured) -> list[Row]:
    """Lengths and coverage of the intervals of all tested parts, significant or not.

    The true mean difference inside a part is the signal times the share of its pixels in the
    square.

    Args:
        labels: first columns of every row.
        measured: the condition.

    Returns:
        Rows with `labels`, method, parts (tested, with an interval), confidence, length_sd and
        length (medians, in standard deviations of the difference in the image itself and in units
        of the image), infinite (share of intervals), covered and covered_se, above and above_se
        (share of estimates above the true value; 0.5 if median-unbiased). Standard errors take
        parts of one image as dependent.
    """
    rows = []
    for method in _methods(measured):
        own = _intervals(measured, method)
        lengths = np.array([one.high - one.low for one in own])
        images = [one.image for one in own]
        covered, covered_se = _share([one.covers for one in own], images)
        above, above_se = _share([one.above for one in own], images)
        rows.append(
            {
                **labels,
                "method": method,
                "parts": len(own),
                "confidence": measured.condition.options.confidence,
                "length_sd": median(lengths / np.array([one.sd for one in own])),
                "length": median(lengths),
                "infinite": _share(np.isinf(lengths))[0],
                "covered": covered,
                "covered_se": covered_se,
                "above": above,
                "above_se": above_se,
            }
        )
    return rows


def effect_summary(tables: Tables, index: Sequence[str]) -> list[str]:
    """Intervals and evaluations of every setting, Markdown.

    Args:
        tables: with "effects", of `effect_rows`, and "work", of `work_row`.
        index: keys on the left.

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


def _methods(measured: Measured) -> tuple[str, ...]:
    return PART_METHODS if measured.condition.options.randomization else PART_METHODS[:1]


def _parts(measured: Measured, method: str) -> list[list[Part]]:
    """The tested parts of each image; none of an image whose test failed."""
    confidence = measured.condition.options.confidence
    return [
        parts_of(record, method, confidence) if record["status"] == TESTED else []
        for record in measured.records
    ]


def _intervals(measured: Measured, method: str) -> list[_Interval]:
    signal, found = measured.condition.simulation.signal, []
    for number, parts in enumerate(_parts(measured, method)):
        square = measured.square(number) if parts and signal else None
        for part in parts:
            if math.isnan(part.estimate):
                continue
            true = 0.0 if square is None else signal * float(square[part.region].mean())
            covers, above = part.low <= true <= part.high, part.estimate > true
            found.append(_Interval(number, part.sd, part.low, part.high, covers, above))
    return found


def _share(hits: Sequence[bool] | np.ndarray, images: Sequence[int] = ()) -> tuple[float, float]:
    """A share and its standard error; hits of one image count as dependent."""
    values = np.asarray(hits, np.float64)
    if not values.size:
        return math.nan, math.nan
    share = float(values.mean())
    of = np.asarray(images, int) if len(images) else np.arange(values.size)
    return share, float(np.sqrt(np.square(np.bincount(of, values - share)).sum()) / values.size)
