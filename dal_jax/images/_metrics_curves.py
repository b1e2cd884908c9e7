"""Areas and optima of ranking curves, from pixels counted at each level of the score.

A level is one value of the score, or one bin of values. In a bin the order is unknown, and every
metric comes with the least and greatest value that any order would give.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage


class Levels(NamedTuple):
    """Numbers of pixels at each level of the score, highest level first."""

    negative: np.ndarray  # (b,) float64: number of normal pixels
    positive: np.ndarray  # (b,) float64: number of anomalous pixels
    overlap: np.ndarray  # (b,) float64: covered shares of regions, summed over the regions


class Bounded(NamedTuple):
    """A metric with ties kept as ties, and its range over all orders within the levels."""

    value: float
    low: float
    high: float


NOT_DEFINED = Bounded(float("nan"), float("nan"), float("nan"))


def overlap_shares(mask: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the share of its region that each pixel covers, and the number of regions.

    Args:
        mask: Mask (H, W) bool; its connected components, joined across corners too, are the
            regions.
        inside: Pixels that count, (H, W) bool; a component entirely outside them is no region.

    Returns:
        Map (H, W) of `1 / size` inside regions and 0 elsewhere, and the number of regions.
    """
    found: Any = ndimage.label(mask, structure=np.ones((3, 3), int))
    labels, count = found
    sizes = np.bincount(labels[inside], minlength=count + 1)
    sizes[0] = 0
    share = np.divide(1.0, sizes, out=np.zeros(count + 1), where=sizes > 0)
    return share[labels], int((sizes > 0).sum())


def exact_levels(negative: np.ndarray, positive: np.ndarray, overlap: np.ndarray) -> Levels:
    """Count scores at each value of an anomalous pixel, and normal ones between those values.

    The normal pixels between two such values form one level, because no curve bends among them.

    Args:
        negative: Scores of normal pixels, (n,) float64.
        positive: Scores of anomalous pixels, (m,) float64.
        overlap: Share of its region that each anomalous pixel covers, (m,); sums to the regions.

    Returns:
        2 v + 1 levels for v values; every second level holds the ties of a value.
    """
    negative = np.sort(negative)
    value, which = np.unique(positive, return_inverse=True)
    above = len(negative) - np.searchsorted(negative, value, side="right")
    reached = len(negative) - np.searchsorted(negative, value, side="left")
    ends = np.append(np.stack([above[::-1], reached[::-1]], axis=1), len(negative))
    hits, shares = np.zeros(len(ends)), np.zeros(len(ends))
    hits[1::2] = np.bincount(which, minlength=len(value))[::-1]
    shares[1::2] = np.bincount(which, overlap, minlength=len(value))[::-1]
    return Levels(np.diff(ends, prepend=0).astype(np.float64), hits, shares)


def has_both_classes(levels: Levels) -> bool:
    """Return whether normal and anomalous pixels occur; otherwise metrics are undefined."""
    return bool(levels.negative.sum() > 0 and levels.positive.sum() > 0)


def auroc(levels: Levels) -> Bounded:
    """Return the share of pairs of an anomalous and a normal pixel in order, ties counted half.

    `sum_b P_b (N_{below b} + N_b / 2) / (P N)`; the orders within levels move it by
    `sum_b P_b N_b / (2 P N)` either way.
    """
    if not has_both_classes(levels):
        return NOT_DEFINED
    negative, positive, _ = levels
    pairs = negative.sum() * positive.sum()
    above = np.cumsum(negative)
    won = float((positive * (above[-1] - above)).sum() / pairs)
    tied = float((positive * negative).sum() / pairs)
    return Bounded(won + tied / 2, won, won + tied)


def average_precision(levels: Levels) -> Bounded:
    """Return the mean precision of anomalous pixels, `sum_b (recall_b - recall_{b-1}) precision_b`.

    The upper bound takes the anomalous pixels of each level first, as ties. The lower bound gives
    every anomalous pixel of a level the precision of the first one after all normal ones.
    """
    if not has_both_classes(levels):
        return NOT_DEFINED
    some = levels.positive > 0  # elsewhere recall does not move
    negative, positive = np.cumsum(levels.negative), np.cumsum(levels.positive)
    weight = levels.positive[some] / positive[-1]
    worse, better = negative[some], (negative - levels.negative)[some]
    found = positive[some]
    first = (positive - levels.positive)[some] + 1
    return Bounded(
        float((weight * found / (found + worse)).sum()),
        float((weight * first / (first + worse)).sum()),
        float((weight * found / (found + better)).sum()),
    )


def f1_max(levels: Levels) -> Bounded:
    """Return the greatest F1 over all thresholds, `max_b 2 TP_b / (TP_b + FP_b + P)`.

    Ends of levels are thresholds too, so the value is attained; other orders can only raise it.
    """
    if not has_both_classes(levels):
        return NOT_DEFINED
    false, true = np.cumsum(levels.negative), np.cumsum(levels.positive)
    value = float((2 * true / (true + false + true[-1])).max())
    high = float((2 * true / (true + false - levels.negative + true[-1])).max())
    return Bounded(value, value, high)


def aupro(levels: Levels, limit: float) -> Bounded:
    """Return the area under per-region overlap against false-positive rate, over the limit.

    The area is made of trapezoids through (0, 0) and one point for each level, the last one cut by
    interpolation at the limit. Between two points both coordinates only grow, so the area lies
    between the sums with the left and with the right ends.

    Args:
        levels: Levels counted over all images, with those without a defect.
        limit: False-positive rate in (0, 1] where the area ends.

    Returns:
        The area in [0, 1] with its bounds.

    Source: Bergmann, Batzner, Fauser, Sattlegger, Steger, IJCV 129 (2021), section 5.
    """
    if not has_both_classes(levels):
        return NOT_DEFINED
    rate = _from_zero(levels.negative)
    overlap = _from_zero(levels.overlap)
    width = np.diff(np.minimum(rate, limit)) / limit
    low, high = float(width @ overlap[:-1]), float(width @ overlap[1:])
    kept = int(np.searchsorted(rate, limit, side="right"))
    end = float(np.interp(limit, rate[kept - 1 : kept + 1], overlap[kept - 1 : kept + 1]))
    x, y = np.append(rate[:kept], limit), np.append(overlap[:kept], end)
    return Bounded(float(np.trapezoid(y, x)) / limit, low, high)


def _from_zero(steps: np.ndarray) -> np.ndarray:
    """Return the running sum as a share of the whole: 0 first, exactly 1 last."""
    total = np.cumsum(steps)
    return np.concatenate([[0.0], np.minimum(total / total[-1], 1.0)])


class Histogram:
    """Pixels counted in bins that are the leading bits of the score as a 32-bit float.

    Those bits are ordered as the numbers themselves, so the bins are monotone; they are fixed in
    advance, so the counts do not depend on the order of the images. With B bits a bin is
    `2^-(B - 9)` of its score wide, whatever the scale of the scores.

    Source: IEEE 754 (the order of the bits).
    """

    def __init__(self, bits: int):
        self.bits = bits
        self._negative = np.zeros(2**bits, np.int64)
        self._positive = np.zeros(2**bits, np.int64)
        self._overlap = np.zeros(2**bits)

    def add(self, negative: np.ndarray, positive: np.ndarray, overlap: np.ndarray) -> None:
        """Count pixels, with the arguments of `exact_levels`."""
        np.add.at(self._negative, self._bin(negative), 1)
        found = self._bin(positive)
        np.add.at(self._positive, found, 1)
        np.add.at(self._overlap, found, overlap)

    def levels(self) -> Levels:
        """Return the bins that are not empty, highest first."""
        some = np.flatnonzero(self._negative + self._positive)[::-1]
        negative, positive = self._negative[some], self._positive[some]
        return Levels(negative.astype(np.float64), positive.astype(np.float64), self._overlap[some])

    def _bin(self, score: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            number = score.astype(np.float32) + np.float32(0)  # -0 becomes 0: they are equal
        code = number.view(np.uint32)
        ordered = np.where(code >> np.uint32(31), ~code, code | np.uint32(1 << 31))
        return ordered >> np.uint32(32 - self.bits)
