"""Standard normal probability of intervals, in log space: full relative accuracy in any tail."""

from functools import cache

import numpy as np
from scipy.special import log_ndtr

from dal_jax._typing import Float
from dal_jax.inference._intervals import Intervals

# Beyond this no probability is left and squares would overflow.
_FARTHEST = 1e150


def log_mass(intervals: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, " k"]:
    """Returns the log probability of each interval under N(0, 1).

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
    with np.errstate(all="ignore"):  # each formula is evaluated where the other one serves, too
        return np.where((hi - lo) * hi < 1, _log_mass_narrow(lo, hi), _log_mass_wide(lo, hi))


def log_total_mass(intervals: Intervals) -> float:
    """Returns the log probability of a union of intervals under N(0, 1).

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
    """Difference of upper tails; at least a quarter of Q(lo) remains where it is used."""
    log_q_lo, log_q_hi = log_ndtr(-lo), log_ndtr(-hi)
    return log_q_lo + np.log1p(-np.exp(log_q_hi - log_q_lo))


def _log_mass_narrow(
    lo: Float[np.ndarray, " k"], hi: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Density at the middle, times the integral of its ratio exp(-m t - t^2/2) around it."""
    # Ten nodes integrate the ratio to 1e-18 on the widest interval that counts as narrow.
    nodes, weights = gauss_legendre(10)
    middle, half = (lo + hi) / 2, (hi - lo) / 2
    t = half[:, None] * nodes
    log_ratio = np.log(np.exp(-middle[:, None] * t - t**2 / 2) @ weights)
    return -(middle**2) / 2 - np.log(2 * np.pi) / 2 + np.log(half) + log_ratio


@cache
def gauss_legendre(count: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns nodes and weights of Gauss and Legendre's rule on [-1, 1].

    Args:
        count: of nodes, n.

    Returns:
        (n,) nodes and (n,) weights.
    """
    return np.polynomial.legendre.leggauss(count)
