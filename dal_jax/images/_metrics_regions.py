"""How many of the flagged regions are significant, on normal images and on anomalous ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._clusters import cluster_interval, cluster_standard_error

KINDS = ("normal", "anomalous")


class RegionShare(NamedTuple):
    """The share of some flagged regions that are significant; NaN where none was decided.

    Example:
        >>> found = region_counts(np.array([0.01, 0.4, np.nan]), ["normal"] * 3, ["a", "b", "c"])
        >>> found.normal.share, found.normal.num_decided, found.normal.num_undecided
        (0.5, 2, 1)
    """

    share: float  # in [0, 1]
    standard_error: float  # by groups; NaN with one group
    low: float  # interval of the share, clipped to [0, 1]; NaN with one group
    high: float  # its upper end
    num_significant: int  # p <= alpha
    num_decided: int  # regions with a p-value: what the share is of
    num_undecided: int  # regions whose p-value is NaN
    num_groups: int  # with a decided region


class RegionCounts(NamedTuple):
    """What `region_counts` found.

    Example:
        >>> kinds = ["normal", "anomalous", "anomalous"]
        >>> touches = [None, True, False]
        >>> found = region_counts(np.array([0.2, 0.01, 0.3]), kinds, ["a", "b", "c"], touches)
        >>> found.normal.share, found.touching.share, found.elsewhere.share
        (0.0, 1.0, 0.0)
    """

    alpha: float  # level of the test
    level: float  # of confidence of the intervals
    normal: RegionShare  # false calls
    anomalous: RegionShare  # the two below together, and where it is not known
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
    """Returns the shares of flagged regions with `p <= alpha`, with errors that know the groups.

    Images in which nothing was flagged have no region and are left out by the caller.

    Args:
        p_values: (m,) in [0, 1], one for each flagged region; NaN where the test gave none: such
            a region is counted as undecided and is in no share.
        kinds: (m,) "normal" or "anomalous", of the image.
        groups: (m,) the physical object of the image: regions are independent between groups.
        touches: (m,) does the region share a pixel with the mask? None where that is not known,
            and for a normal image; None for all where there are no masks.
        alpha: level of the test in (0, 1).
        level: of confidence of the intervals, in (0, 1).

    Returns:
        The shares; the anomalous also by whether their region touches the mask.

    Raises:
        InputError: lengths that differ, another kind, p-values out of [0, 1] or given as bool, a
            normal image whose region touches a mask, or a level out of (0, 1).

    Example:
        >>> p = np.array([0.01, 0.4, 0.02, 0.03])
        >>> kinds = ["normal", "normal", "anomalous", "anomalous"]
        >>> region_counts(p, kinds, list("abcd")).normal.share
        0.5

    Source: standard errors as `cluster_standard_error`.
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
    """The p-values, kinds and touches (1, 0, or NaN where not known), each (m,)."""
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
