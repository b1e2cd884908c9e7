"""Shares of significant regions, with standard errors that respect the groups of images.

Photographs of one object are not independent: standard errors that ignore groups are too small.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from dal_jax._errors import InputError

KINDS = ("normal", "anomalous")


class RegionShare(NamedTuple):
    """Share of some flagged regions that are significant; NaN where none was decided.

    Example:
        >>> found = region_counts(np.array([0.01, 0.4, np.nan]), ["normal"] * 3, ["a", "b", "c"])
        >>> found.normal.share, found.normal.num_decided, found.normal.num_undecided
        (0.5, 2, 1)
    """

    share: float  # in [0, 1]
    standard_error: float  # clustered by group; NaN with one group
    low: float  # interval of the share, clipped to [0, 1]; NaN with one group
    high: float  # its upper end
    num_significant: int  # p <= alpha
    num_decided: int  # regions with a p-value, the denominator of the share
    num_undecided: int  # regions whose p-value is NaN
    num_groups: int  # groups with a decided region


class RegionCounts(NamedTuple):
    """Result of `region_counts`.

    Example:
        >>> kinds = ["normal", "anomalous", "anomalous"]
        >>> touches = [None, True, False]
        >>> found = region_counts(np.array([0.2, 0.01, 0.3]), kinds, ["a", "b", "c"], touches)
        >>> found.normal.share, found.touching.share, found.elsewhere.share
        (0.0, 1.0, 0.0)
    """

    alpha: float  # level of the test
    level: float  # confidence of the intervals
    normal: RegionShare  # false calls
    anomalous: RegionShare  # the next two together, and regions for which touching is unknown
    touching: RegionShare  # of the anomalous, regions that share a pixel with the mask
    elsewhere: RegionShare  # of the anomalous, regions that share none


def region_counts(
    p_values: np.ndarray,
    kinds: Sequence[str],
    groups: Sequence[str],
    touches: Sequence[bool | None] | None = None,
    alpha: float = 0.05,
    level: float = 0.95,
) -> RegionCounts:
    """Return the shares of flagged regions with `p <= alpha`, with errors clustered by group.

    Images without a flagged region have to be left out by the caller.

    Args:
        p_values: P-values (m,) in [0, 1], one for each flagged region; NaN where the test gave
            none: such a region is counted as undecided and is in no share.
        kinds: Kind of each image, (m,) "normal" or "anomalous".
        groups: Physical object of each image, (m,); regions are independent between groups.
        touches: True where the region shares a pixel with the mask, (m,); None where that is not
            known, and for a normal image; None for all if there are no masks.
        alpha: Level of the test in (0, 1).
        level: Confidence of the intervals, in (0, 1).

    Returns:
        The shares; those of anomalous images also by whether their region touches the mask.

    Raises:
        InputError: Lengths differ, a kind is unknown, p-values are out of [0, 1] or bool, the
            region of a normal image touches a mask, or a level is out of (0, 1).

    Example:
        >>> p = np.array([0.01, 0.4, 0.02, 0.03])
        >>> kinds = ["normal", "normal", "anomalous", "anomalous"]
        >>> region_counts(p, kinds, list("abcd")).normal.share
        0.5

    Source: Liang and Zeger, Biometrika 73 (1986), as in `cluster_standard_error`.
    """
    p_values, kind, touch = _checked(p_values, kinds, groups, touches)
    for name, number in (("alpha", alpha), ("level", level)):
        if not 0 < number < 1:
            raise InputError(f"{name} {number!r}, expected a number between 0 and 1")
    group = np.asarray(groups, str)
    chosen = {
        "normal": kind == "normal",
        "anomalous": kind == "anomalous",
        "touching": (kind == "anomalous") & (touch == 1),
        "elsewhere": (kind == "anomalous") & (touch == 0),
    }
    shares = {k: _share(p_values[v], group[v], alpha, level) for k, v in chosen.items()}
    return RegionCounts(alpha, level, **shares)


def _share(p_values: np.ndarray, group: np.ndarray, alpha: float, level: float) -> RegionShare:
    decided = np.isfinite(p_values)
    called, group = p_values[decided] <= alpha, group[decided]
    undecided, nan = int((~decided).sum()), float("nan")
    if not len(called):
        return RegionShare(nan, nan, nan, nan, 0, 0, undecided, 0)
    names, values = group.tolist(), called.astype(np.float64)
    low, high = cluster_interval(values, names, level)
    return RegionShare(
        float(values.mean()),
        cluster_standard_error(values, names),
        float(np.clip(low, 0, 1)),
        float(np.clip(high, 0, 1)),
        int(called.sum()),
        len(called),
        undecided,
        len(set(names)),
    )


def _checked(
    p_values: np.ndarray,
    kinds: Sequence[str],
    groups: Sequence[str],
    touches: Sequence[bool | None] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the p-values, kinds and touches (1, 0, or NaN where not known), each (m,)."""
    p_values, kind = np.asarray(p_values), np.asarray(kinds, str)
    if p_values.dtype.kind != "f" or p_values.ndim != 1:
        what = f"{p_values.dtype} {p_values.shape}"
        raise InputError(f"p_values {what}, expected floating numbers (m,), not decisions")
    if ((p_values < 0) | (p_values > 1)).any():
        raise InputError("p_values: a number outside [0, 1], expected p-values or NaN")
    touch = np.full(len(p_values), np.nan) if touches is None else _known(touches)
    for name, size in (("kinds", len(kind)), ("groups", len(groups)), ("touches", len(touch))):
        if size != len(p_values):
            raise InputError(f"{name}: {size} of them, expected {len(p_values)}, as p-values")
    if other := sorted(set(kind.tolist()) - set(KINDS)):
        raise InputError(f"kinds {other[0]!r}, expected 'normal' or 'anomalous'")
    if ((kind == "normal") & (touch == 1)).any():
        raise InputError("touches: a normal image whose region touches a mask, expected none")
    return p_values, kind, touch


def _known(touches: Sequence[bool | None]) -> np.ndarray:
    return np.array([np.nan if touch is None else float(bool(touch)) for touch in touches])


def cluster_standard_error(values: np.ndarray, groups: Sequence[str]) -> float:
    """Return the standard error of a mean whose values are independent only between groups.

    `sqrt(G / (G - 1)) sqrt(sum_g (sum_{i in g} (v_i - mean))^2) / n`, the sandwich estimate of a
    ratio of sums; with groups of one it is the usual `s / sqrt(n)`.

    Args:
        values: Values (n,), finite.
        groups: Group of each value.

    Returns:
        The standard error; NaN if there is only one group.

    Raises:
        InputError: There are no values, values are not finite, or the number of groups differs.

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
    """Return a confidence interval of a mean from values independent only between groups.

    `mean -+ t SE` with the quantile of G - 1 degrees of freedom. A rate of which all values are 0
    would have no width; the result is then the exact interval of G groups without an event, which
    ends at `1 - ((1 - level) / 2)^(1/G)`. The interval of a rate with few events, whose SE is too
    small, ends no lower; likewise for values that are all 1, or nearly.

    Args:
        values: Values (n,), finite; zeros and ones for a rate.
        groups: Group of each value.
        level: Confidence, in (0, 1).

    Returns:
        Ends of the interval, not clipped to [0, 1]; NaN if there is only one group.

    Raises:
        InputError: As in `cluster_standard_error`, or the level is outside (0, 1).

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
    half = float(special.stdtrit(count - 1, 1 - tail)) * cluster_standard_error(values, groups)
    low, high = mean - half, mean + half
    if np.isin(values, (0, 1)).all():
        width = 1 - tail ** (1 / count)
        low, high = min(low, 1 - width), max(high, width)
    return low, high


def _clusters(values: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise InputError(f"values of shape {values.shape}, expected finite numbers (n,)")
    if len(groups) != len(values):
        raise InputError(f"groups: {len(groups)} of them for {len(values)} values")
    labels, member = np.unique(np.asarray(groups, str), return_inverse=True)
    return values, member, len(labels)
