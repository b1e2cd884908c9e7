"""Estimate and confidence interval of the mean of a statistic whose selection is conditioned on."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._arrays import power_of_2
from dal_jax._compat import enable_x64
from dal_jax.inference._intervals import Intervals, as_intervals, complement, intersect
from dal_jax.inference._p_value import ALTERNATIVES, check_level, holds
from dal_jax.inference._recalibration import Observed
from dal_jax.inference._traced import KNOWN, UNKNOWN, Pieces, Seen, mean_effect

# Intervals for which the compiled program has room; more need a larger program.
_ROOM = 32


class Effect(NamedTuple):
    """Estimate and confidence interval of a selected statistic's mean, in standard deviations.

    Example:
        >>> Effect(2.0, 0.04, 3.96).low > 0
        True
    """

    estimate: float  # median-unbiased; NaN without a p-value
    low: float  # lower end of the confidence interval; may be -inf
    high: float  # upper end; may be inf


def effect(observed: Observed, confidence: float = 0.95) -> Effect:
    """Return the median-unbiased estimate and the equal-tailed interval of the statistic's mean.

    Given that `T ~ N(delta, 1)` was selected, `P_delta(T >= T_obs | selected)` rises with delta.
    The interval holds every delta at which this probability lies between `(1 - confidence) / 2` and
    one minus that; the estimate is the delta at which it is one half. The unsearched part of the
    line counts in the least favourable way, so that the interval is the widest one possible. With a
    randomized selection the interval is bounded once enough of the line was searched; without one
    it may be infinite.

    Args:
        observed: Result of a finished search.
        confidence: Confidence level, in (0, 1).

    Returns:
        Effect(estimate, low, high); NaN without a p-value.

    Raises:
        InputError: `confidence` is out of range.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> line = as_intervals([-np.inf, np.inf])
        >>> [round(value, 2) for value in effect(Observed(2.0, line, line))]
        [2.0, 0.04, 3.96]
        >>> [round(value, 2) for value in effect(Observed(2.0, as_intervals([1.5, np.inf]), line))]
        [0.93, -5.49, 3.81]

    Source: Lee, Sun, Sun and Taylor, Annals of Statistics 44, 2016 (interval); Kivaranovic and
    Leeb, arXiv 2007.12448 (length with randomization).
    """
    check_level("confidence", confidence)
    inside = as_intervals(observed.searched)
    known, unknown = intersect(as_intervals(observed.truncation), inside), complement(inside)
    if not holds(known, observed.z_obs + observed.perturbation.shift):
        return Effect(np.nan, np.nan, np.nan)
    pieces = _pieces([known, unknown], observed.perturbation.scale)
    seen = Seen(
        np.float64(observed.z_obs),
        np.float64(observed.perturbation.shift),
        np.float64(observed.perturbation.spread),
        np.int64(ALTERNATIVES.index("greater")),
    )
    with enable_x64(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return Effect(*np.asarray(_program()(pieces, seen, np.float64(confidence))).tolist())


def _pieces(sets: list[Intervals], scale: float) -> Pieces:
    """Return known and unsearched intervals, in standard deviations of what selection saw."""
    intervals = np.concatenate(sets) / scale
    room = max(_ROOM, power_of_2(len(intervals)))
    padded = np.zeros((room, 2))
    padded[: len(intervals)] = intervals
    member = np.full(room, UNKNOWN)
    member[: len(sets[0])] = KNOWN
    return Pieces(padded[:, 0], padded[:, 1], member, np.int64(len(intervals)))


@cache
def _program() -> Any:
    return jax.jit(
        lambda pieces, seen, confidence: mean_effect(pieces, seen, confidence, jnp.ones((), bool))
    )
