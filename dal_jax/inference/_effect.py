"""Estimate and confidence interval of the mean of a statistic whose selection is conditioned on."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import optimize
from scipy.special import ndtri

from dal_jax._errors import InputError
from dal_jax.inference._intervals import (
    Intervals,
    as_intervals,
    complement,
    intersect,
    log_mass,
    subtract,
)
from dal_jax.inference._p_value import SelectiveP, holds, of_masses
from dal_jax.inference._randomized import LEAST_SPREAD, log_tails
from dal_jax.inference._recalibration import Observed

# An end of an interval further from the observed statistic than this, in standard deviations,
# counts as infinite.
_FARTHEST = 1e4
# A share of an interval below this is integrated rather than computed as a difference.
_LITTLE = 1e-4


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
    if not 0 < confidence < 1:
        raise InputError(f"confidence: got {confidence!r}, expected a level between 0 and 1")
    inside = as_intervals(observed.searched)
    known, unknown = intersect(as_intervals(observed.truncation), inside), complement(inside)
    if not holds(known, observed.z_obs + observed.perturbation.shift):
        return Effect(np.nan, np.nan, np.nan)
    above, tail = _above(observed, known, unknown), (1 - confidence) / 2
    if np.isnan(above(observed.z_obs).p):  # a set too narrow to have any probability
        return Effect(np.nan, np.nan, np.nan)
    return Effect(
        _crossing(lambda mean: _score(above(mean).p) - _score(0.5), observed.z_obs),
        _crossing(lambda mean: _score(above(mean).high) - _score(tail), observed.z_obs),
        _crossing(lambda mean: _score(above(mean).low) - _score(1 - tail), observed.z_obs),
    )


def _score(p: float) -> float:
    """Return the normal quantile, kept finite; it is nearly linear in the mean."""
    return float(ndtri(min(max(p, 1e-300), 1 - 1e-16)))


def _above(
    observed: Observed, known: Intervals, unknown: Intervals
) -> Callable[[float], SelectiveP]:
    """Return `selective_p` for "greater" as a function of the mean, with all sets computed once."""
    z, spread = observed.z_obs, observed.perturbation.spread
    tail = as_intervals([z, np.inf])
    if spread < LEAST_SPREAD:
        parts = [
            part
            for whole in (known, unknown)
            for part in (intersect(whole, tail), subtract(whole, tail))
        ]
        ends, starts = np.concatenate(parts), np.cumsum([len(part) for part in parts])[:-1]

        def masses(mean: float) -> list[float]:
            logs = np.split(log_mass(ends - mean), starts)
            return [float(np.logaddexp.reduce(one, initial=-np.inf)) for one in logs]
    else:
        ends, count = np.concatenate([known, unknown]), len(known)

        def masses(mean: float) -> list[float]:
            whole = log_mass((ends - mean) / np.hypot(1.0, spread))
            inner = np.minimum(log_tails(ends, z, spread, mean), whole)
            with np.errstate(divide="ignore", invalid="ignore"):
                outer = np.where(inner > -np.inf, whole + np.log1p(-np.exp(inner - whole)), whole)
            # Where almost nothing remains, far from z, the difference has no digits; for a mean far
            # out it may matter all the same.
            little = inner > whole - _LITTLE
            outer[little] = log_tails(-ends[little, ::-1], -z, spread, -mean)
            return [
                float(np.logaddexp.reduce(one, initial=-np.inf))
                for one in (inner[:count], outer[:count], inner[count:], outer[count:])
            ]

    @cache
    def above(mean: float) -> SelectiveP:
        return of_masses(*masses(mean))

    return above


def _crossing(rising: Callable[[float], float], start: float) -> float:
    """Return the root of a rising function; infinite if there is none."""
    here, step = rising(start), 1.0
    if here == 0:
        return start
    way = -1.0 if here > 0 else 1.0
    near = start
    while step <= _FARTHEST:
        far = start + way * step
        there = rising(far)
        if not there * way < 0:
            low, high = sorted((near, far))
            return float(optimize.brentq(rising, low, high, xtol=1e-8))  # type: ignore[arg-type]
        near, step = far, 2 * step
    return way * np.inf
