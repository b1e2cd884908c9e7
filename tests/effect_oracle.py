"""Estimate and interval by numpy and brentq, with which the compiled ones are compared."""

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy import optimize
from scipy.special import ndtri

from dal_jax.inference import Effect
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


def effect(observed: Observed, confidence: float = 0.95) -> Effect:
    """As `dal_jax.inference.effect`, with the root of one function after the other."""
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
