"""Unions of intervals of the real line, and their normal probability in log space.

A union is a sorted, disjoint float64 array of shape (k, 2) with ends that may be infinite. Ends are
copied, never computed, so that no operation adds rounding. Sets that differ in finitely many points
are the same set, and pieces without length are dropped. Log probabilities have full relative
accuracy in any tail.
"""

from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_ndtr

from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float

# Beyond this no probability is left and squares would overflow.
_FARTHEST = 1e150

Intervals: TypeAlias = Float[np.ndarray, "_ 2"]


def as_intervals(intervals: ArrayLike) -> Intervals:
    """Return the union of any intervals in canonical form: sorted, disjoint, each of length > 0.

    Args:
        intervals: (k, 2), one pair (2,), or empty; in any order, overlapping or not; lo <= hi.

    Returns:
        The same set as a float64 array (m, 2), m <= k.

    Raises:
        InputError: Another shape, a NaN, or an interval with lo > hi.

    Example:
        >>> as_intervals([[2, 3], [0, 1], [0.5, 2]]).tolist()
        [[0.0, 3.0]]
    """
    pairs = np.asarray(intervals, dtype=np.float64)
    if pairs.shape in ((0,), (2,)):
        pairs = pairs.reshape(-1, 2)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise InputError(f"intervals has shape {pairs.shape}, expected (k, 2)")
    if not np.all(pairs[:, 0] <= pairs[:, 1]):
        bad = pairs[~(pairs[:, 0] <= pairs[:, 1])][0].tolist()
        raise InputError(f"intervals holds {bad}, expected pairs with lo <= hi and no NaN")
    return merge(pairs)


def merge(intervals: Intervals, tolerance: float = 0.0) -> Intervals:
    """Sort intervals and join those that overlap, touch, or lie within `tolerance`.

    Args:
        intervals: (k, 2) in any order, no NaN; pieces with lo >= hi are dropped.
        tolerance: Gaps up to this length, >= 0, are closed.

    Returns:
        The union in canonical form (m, 2).

    Example:
        >>> merge(np.array([[2.0, 3.0], [0.0, 1.0]]), tolerance=1.0).tolist()
        [[0.0, 3.0]]
    """
    pairs = intervals[intervals[:, 0] < intervals[:, 1]]
    if len(pairs) < 2:  # the usual case in a search
        return pairs
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    reach = np.maximum.accumulate(pairs[:, 1])
    # A group ends just before the first interval of the next one.
    border = np.ones(len(pairs) + 1, dtype=bool)
    border[1:-1] = pairs[1:, 0] > reach[:-1] + tolerance
    return np.stack([pairs[border[:-1], 0], reach[border[1:]]], axis=1)


def union(a: Intervals, b: Intervals) -> Intervals:
    """Return the set of points in `a` or `b`.

    Args:
        a: (j, 2) intervals.
        b: (k, 2) intervals.

    Returns:
        The union in canonical form (m, 2).

    Example:
        >>> union(as_intervals([0, 2]), as_intervals([[1, 3], [5, 6]])).tolist()
        [[0.0, 3.0], [5.0, 6.0]]
    """
    return merge(np.concatenate([a, b]))


def complement(a: Intervals, within: tuple[float, float] = (-np.inf, np.inf)) -> Intervals:
    """Return the set of points of `within` that are not in `a`.

    Args:
        a: (k, 2) intervals.
        within: The interval (lo, hi) to stay in.

    Returns:
        The gaps in canonical form (m, 2), m <= k + 1.

    Example:
        >>> complement(as_intervals([[0, 1], [2, 3]])).tolist()
        [[-inf, 0.0], [1.0, 2.0], [3.0, inf]]
    """
    taken = merge(a)
    starts = np.concatenate([within[:1], taken[:, 1]])
    stops = np.concatenate([taken[:, 0], within[1:]])
    gaps = np.clip(np.stack([starts, stops], axis=1), *within)
    return gaps[gaps[:, 0] < gaps[:, 1]]


def intersect(a: Intervals, b: Intervals) -> Intervals:
    """Return the set of points in both `a` and `b`.

    Args:
        a: (j, 2) intervals.
        b: (k, 2) intervals.

    Returns:
        The intersection in canonical form (m, 2).

    Example:
        >>> intersect(as_intervals([0, 2]), as_intervals([1, 3])).tolist()
        [[1.0, 2.0]]
    """
    a, b = merge(np.asarray(a, np.float64)), merge(np.asarray(b, np.float64))
    low, high = np.maximum.outer(a[:, 0], b[:, 0]), np.minimum.outer(a[:, 1], b[:, 1])
    overlap = low < high  # of sorted, disjoint sets, sorted and disjoint in this order
    return np.stack([low[overlap], high[overlap]], axis=1)


def subtract(a: Intervals, b: Intervals) -> Intervals:
    """Return the set of points in `a` that are not in `b`.

    Args:
        a: (j, 2) intervals.
        b: (k, 2) intervals.

    Returns:
        The difference in canonical form (m, 2).

    Example:
        >>> subtract(as_intervals([0, 3]), as_intervals([1, 2])).tolist()
        [[0.0, 1.0], [2.0, 3.0]]
    """
    return intersect(a, complement(b))


def measure(a: Intervals) -> float:
    """Return the total length of a union of intervals, possibly infinite.

    Args:
        a: (k, 2) intervals in canonical form.

    Returns:
        The sum of hi - lo.

    Example:
        >>> measure(as_intervals([[0, 1], [2, 5]]))
        4.0
    """
    return float(np.sum(a[:, 1] - a[:, 0]))


def contains(a: Intervals, z: ArrayLike | float) -> Bool[np.ndarray, "..."]:
    """Return which points lie in a union of intervals, ends included.

    Args:
        a: (k, 2) intervals in canonical form.
        z: Points, of any shape; NaN lies nowhere.

    Returns:
        bool array of the shape of `z`.

    Example:
        >>> contains(as_intervals([[0, 1], [2, 3]]), [1.0, 1.5, 2.5]).tolist()
        [True, False, True]
    """
    points = np.asarray(z, dtype=np.float64)
    if len(a) == 0:
        return np.zeros(points.shape, dtype=bool)
    nearest = np.searchsorted(a[:, 0], points, side="right") - 1
    return np.asarray((nearest >= 0) & (points <= a[nearest, 1]))


def log_mass(intervals: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, " k"]:
    """Return the log probability of each interval under N(0, 1).

    `log P(lo < Z < hi) = log(Q(lo) - Q(hi))`, Q the upper tail, with the interval mirrored to the
    right half so that Q is small, not near 1. Where the interval is so narrow that the difference
    would cancel, the density is integrated instead.

    Args:
        intervals: (k, 2) standardized ends, lo <= hi, possibly infinite.

    Returns:
        (k,) logs; -inf for an interval without length.

    Example:
        >>> log_mass(np.array([[0.0, np.inf], [30.0, 30.1]])).round(4).tolist()
        [-0.6931, -454.3719]
    """
    lo, hi = np.clip(intervals, -_FARTHEST, _FARTHEST).T
    lo, hi = np.where(lo + hi < 0, (-hi, -lo), (lo, hi))
    with np.errstate(all="ignore"):  # both formulas are evaluated everywhere
        return np.where((hi - lo) * hi < 1, _log_mass_narrow(lo, hi), _log_mass_wide(lo, hi))


def log_total_mass(intervals: Intervals) -> float:
    """Return the log probability of a union of intervals under N(0, 1).

    Args:
        intervals: (k, 2) standardized, in canonical form (disjoint).

    Returns:
        `log sum_i P(lo_i < Z < hi_i)`; -inf for the empty set.

    Example:
        >>> round(log_total_mass(np.array([[-np.inf, -30.0], [30.0, np.inf]])), 3)  # 2 Q(30)
        -453.628
    """
    return float(np.logaddexp.reduce(log_mass(intervals), initial=-np.inf))


def _log_mass_wide(
    lo: Float[np.ndarray, " k"], hi: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Return the log difference of upper tails, of which a quarter of Q(lo) or more remains."""
    log_q_lo, log_q_hi = log_ndtr(-lo), log_ndtr(-hi)
    return log_q_lo + np.log1p(-np.exp(log_q_hi - log_q_lo))


def _log_mass_narrow(
    lo: Float[np.ndarray, " k"], hi: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Return the log density at the middle plus the log integral of its ratio exp(-m t - t^2/2)."""
    # Ten nodes integrate the ratio to 1e-18 on the widest interval that counts as narrow.
    nodes, weights = gauss_legendre(10)
    middle, half = (lo + hi) / 2, (hi - lo) / 2
    t = half[:, None] * nodes
    log_ratio = np.log(np.exp(-middle[:, None] * t - t**2 / 2) @ weights)
    return -(middle**2) / 2 - np.log(2 * np.pi) / 2 + np.log(half) + log_ratio


@cache
def gauss_legendre(count: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return nodes and weights of Gauss and Legendre's rule on [-1, 1].

    Args:
        count: Number n of nodes.

    Returns:
        (n,) nodes and (n,) weights.
    """
    return np.polynomial.legendre.leggauss(count)
