"""Standard errors and intervals of means over images that come in groups.

Photographs of one object are not independent: errors that ignore their groups are too small.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special

from dal_jax._errors import InputError


def cluster_standard_error(values: np.ndarray, groups: Sequence[str]) -> float:
    """Returns the standard error of a mean whose values are independent only between groups.

    `sqrt(G / (G - 1)) sqrt(sum_g (sum_{i in g} (v_i - mean))^2) / n`, the sandwich of a ratio of
    sums; with groups of one it is the usual `s / sqrt(n)`.

    Args:
        values: (n,) finite.
        groups: the group of each value.

    Returns:
        The standard error; NaN if there is one group only.

    Raises:
        InputError: no values, values that are not finite, or another number of groups.

    Example:
        >>> round(cluster_standard_error(np.array([0.0, 0.0, 1.0, 1.0]), list("aabb")), 3)
        0.5

    Source: Liang and Zeger, Biometrika 73 (1986), with the correction for few groups.
    """
    values, member, count = _clusters(values, groups)
    if count < 2:
        return float("nan")
    sums = np.bincount(member, values - values.mean(), minlength=count)
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(values))


def cluster_interval(
    values: np.ndarray, groups: Sequence[str], level: float = 0.95
) -> tuple[float, float]:
    """Returns a confidence interval of a mean from values independent only between groups.

    `mean -+ t SE` with the quantile of G - 1 degrees of freedom. Where all values are 0, or all
    are 1, that would have no width; then it is the exact interval of G groups without an event,
    which ends at `1 - ((1 - level) / 2)^(1/G)`.

    Args:
        values: (n,) finite; for a rate, zeros and ones.
        groups: the group of each value.
        level: of confidence, in (0, 1).

    Returns:
        Its ends, not clipped to [0, 1]; NaN if there is one group only.

    Raises:
        InputError: as `cluster_standard_error`, or a level outside (0, 1).

    Example:
        >>> low, high = cluster_interval(np.array([0.0, 0.0, 0.0, 1.0]), list("abcd"))
        >>> low < 0.25 < high
        True

    Source: Liang and Zeger, Biometrika 73 (1986); Clopper and Pearson, Biometrika 26 (1934).
    """
    if not 0 < level < 1:
        raise InputError(f"level {level!r}, expected a number between 0 and 1")
    values, _, count = _clusters(values, groups)
    mean, tail = float(values.mean()), (1 - level) / 2
    if count < 2:
        return float("nan"), float("nan")
    if np.all(values == values[0]) and mean in (0.0, 1.0):
        width = 1 - tail ** (1 / count)
        return (0.0, width) if mean == 0 else (1 - width, 1.0)
    half = float(special.stdtrit(count - 1, 1 - tail)) * cluster_standard_error(values, groups)
    return mean - half, mean + half


def _clusters(values: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise InputError(f"values of shape {values.shape}, expected finite numbers (n,)")
    if len(groups) != len(values):
        raise InputError(f"groups: {len(groups)} of them for {len(values)} values")
    labels, member = np.unique(np.asarray(groups, str), return_inverse=True)
    return values, member, len(labels)
