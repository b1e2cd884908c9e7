"""Probabilities for a selection that saw a noisier statistic than the tested one.

The test is about `T ~ N(0, 1)`; selection saw `V = T + e` with `e ~ N(0, spread^2)`. All
probabilities are in log space, with a relative error of 1e-8 even 20 standard deviations out. Ends
are scaled, and so rounded: an interval much narrower than 1e-6, the accuracy of the ends of a
search, has fewer digits.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize
from scipy.special import log_ndtr

from dal_jax._typing import Float
from dal_jax.inference._intervals import (
    Intervals,
    complement,
    gauss_legendre,
    intersect,
    log_mass,
    log_total_mass,
)

# A smaller spread changes no p-value noticeably, and quadrature cannot resolve it.
LEAST_SPREAD = 1e-6

# Pieces end where the integrand has dropped by this much, in units of its logarithm.
DROP = 45.0
# The integral over T of a law with heavy tails: its range, and where its pieces end.
_TO = np.array([[-1e6, 1e6]])
_AROUND = np.array([-9.0, -6.0, -4.0, -2.5, -1.0, 0.0, 1.0, 2.5, 4.0, 6.0, 9.0])
_POSITIVE = np.concatenate([np.arange(0.5, 12, 0.5), np.geomspace(12, 1e6, 40)])
_WIDE = np.concatenate([-_POSITIVE[::-1], [0.0], _POSITIVE])
# More pieces around the value of V at which T passes its limit, in conditional deviations of T.
STEP = np.array([-6.0, -3.0, -1.0, 1.0, 3.0, 6.0])
# The search for the end of the integrand starts at this distance from the mode; this number of
# halvings locates the end to one percent.
NEAREST, HALVINGS = 1e-7, 11
# Even parts between the mode and the end of the integrand, and nodes in a part, which spans a drop
# of 8 in the logarithm or a step of three deviations.
PARTS, NODES = 6, 16


class Perturbation(NamedTuple):
    """Noise that was added to the statistic for the selection, in standard deviations.

    Example:
        >>> Perturbation(spread=0.5, shift=-0.2).scale > 1
        True

    Source: Tian and Taylor, Annals of Statistics 46, 2018.
    """

    spread: float = 0.0  # standard deviation of the noise; 0: selection saw T itself
    shift: float = 0.0  # value of the noise: selection saw T_obs + shift

    @property
    def scale(self) -> float:
        """Standard deviation of the statistic that selection saw."""
        return float(np.hypot(1.0, self.spread))

    def over(self, factor: float) -> "Perturbation":
        """Return the same perturbation in units that are larger by a factor."""
        return Perturbation(self.spread / factor, self.shift / factor)


NO_PERTURBATION = Perturbation()


def normal_split(
    part: Intervals, tails: Intervals, spread: float, mean: float = 0.0
) -> tuple[float, float]:
    """Split the probability of `V in R` by whether T lies in its tails.

    Args:
        part: (k, 2) the set R of V, disjoint, in standard deviations of T.
        tails: Tails of T, one or two disjoint half-lines.
        spread: Standard deviation of V about T, above 0, in standard deviations of T.
        mean: Mean of T, in its standard deviations.

    Returns:
        `log P(V in R and T in tails)` to full relative accuracy, and
        `log P(V in R and T not in tails)`, to the same for one tail, to the rounding of their sum
        for two.
    """

    def tail(limit: float, upper: bool) -> float:
        if upper:
            return log_tail(part, limit, spread, mean)
        return log_tail(-part[::-1, ::-1], -limit, spread, -mean)

    inner = -np.inf
    for low, high in tails:
        inner = float(np.logaddexp(inner, tail(high, False) if np.isinf(low) else tail(low, True)))
    if len(tails) == 1 and np.isfinite(tails).any():  # the other one is the rest
        low, high = tails[0]
        return inner, tail(high, True) if np.isinf(low) else tail(low, False)
    whole = log_total(part, spread, mean)
    if not np.isfinite(whole):
        return inner, -np.inf
    with np.errstate(divide="ignore"):
        return inner, float(whole + np.log1p(-np.exp(min(0.0, inner - whole))))


def student_split(
    part: Intervals,
    tails: Intervals,
    spread: float,
    log_density: Callable[[np.ndarray], np.ndarray],
) -> tuple[float, float]:
    """Split the probability of `V in R` where T follows Student's law, by integration over T.

    Args:
        part: (k, 2) the set R of V, disjoint.
        tails: Tails of T, one or two disjoint half-lines.
        spread: Standard deviation of V about T, above 0.
        log_density: The logarithm of the density of T.

    Returns:
        The two log probabilities, to 1e-8 relative; one below e^-40 of the other is less accurate.
    """
    inner, outer = intersect(_TO, tails), intersect(_TO, complement(tails))
    if not len(part):
        return -np.inf, -np.inf
    ends = part[np.isfinite(part)]
    cuts = np.concatenate([(ends[:, None] + spread * _AROUND).ravel(), _WIDE, inner.ravel()])

    def log_integral(within: Intervals) -> float:
        logs = [-np.inf]
        for low, high in within:
            own = np.unique(np.clip(cuts, low, high))
            nodes, weights = gauss_legendre(NODES)
            middle, half = (own[1:] + own[:-1]) / 2, np.diff(own) / 2
            t = (middle[:, None] + half[:, None] * nodes).ravel()
            shifted = (part[None] - t[:, None, None]) / spread
            log_w = np.logaddexp.reduce(
                log_mass(shifted.reshape(-1, 2)).reshape(len(t), -1), axis=1
            )
            with np.errstate(divide="ignore"):
                scale = np.log((half[:, None] * weights).ravel())
            logs.append(float(np.logaddexp.reduce(log_density(t) + log_w + scale)))
        return float(np.logaddexp.reduce(logs))

    return log_integral(inner), log_integral(outer)


def student_total(selected: Intervals, spread: float, degrees: float) -> float:
    """Return `log P(V in R)` where T follows Student's law, as a mixture of normal ones.

    `T = Z / sqrt(W)` with W of a gamma law of mean 1, and V is normal given W. The integral over
    `log W` uses the trapezoidal rule.

    Args:
        selected: (k, 2) the set R of V, disjoint.
        spread: Standard deviation of V about T, 0 or above.
        degrees: Degrees of freedom, 2 or above.

    Returns:
        The log probability; -inf for the empty set.
    """
    if not len(selected):
        return -np.inf
    half = degrees / 2
    # The density of log W falls as W^half to the left, and faster than exp(-half W) to the right.
    u = np.arange(-max(12.0, 40 / half), 4.0, 0.25 / np.sqrt(half))
    log_weight = half * (u - np.exp(u))
    log_weight -= np.logaddexp.reduce(log_weight)
    sd = np.sqrt(np.exp(-u) + spread**2)
    masses = log_mass((selected[None] / sd[:, None, None]).reshape(-1, 2)).reshape(len(u), -1)
    return float(np.logaddexp.reduce((masses + log_weight[:, None]).ravel()))


def log_total(selected: Intervals, spread: float, mean: float = 0.0) -> float:
    """Return `log P(V in R)`, where T has the given mean.

    Args:
        selected: (k, 2) the set R of V, disjoint, in standard deviations of T.
        spread: Standard deviation of V about T, in standard deviations of T.
        mean: Mean of T, in its standard deviations.

    Returns:
        The log probability; -inf for the empty set.

    Example:
        >>> round(float(np.exp(log_total(np.array([[0.0, np.inf]]), spread=0.5))), 6)
        0.5
    """
    return log_total_mass((selected - mean) / np.hypot(1.0, spread))


def log_tail(selected: Intervals, limit: float, spread: float, mean: float = 0.0) -> float:
    """Return `log P(V in R and T >= limit)`, where T has the given mean.

    The density of V times `P(T >= limit | V)` is log-concave on every interval. It is integrated by
    Gauss and Legendre's rule on both sides of its mode, out to where it is negligible.

    Args:
        selected: (k, 2) the set R of V, disjoint, in standard deviations of T.
        limit: Limit of T, finite, in standard deviations of T.
        spread: Standard deviation of V about T, above 0, in standard deviations of T.
        mean: Mean of T, in its standard deviations.

    Returns:
        The log probability; -inf for the empty set.

    Example:
        >>> everywhere = np.array([[-np.inf, np.inf]])
        >>> round(float(np.exp(log_tail(everywhere, 1.645, spread=0.5))), 4)
        0.05
    """
    logs = log_tails(selected, limit, spread, mean)
    return float(np.logaddexp.reduce(logs, initial=-np.inf))


def log_tails(
    selected: Intervals, limit: float, spread: float, mean: float = 0.0
) -> Float[np.ndarray, " k"]:
    """Return `log P(V in I and T >= limit)` for each interval I of R.

    Args:
        selected: Set R of V, as in `log_tail`.
        limit: Limit of T, as in `log_tail`.
        spread: Standard deviation of V about T, as in `log_tail`.
        mean: Mean of T, as in `log_tail`.

    Returns:
        (k,) log probabilities.
    """
    # In standard deviations of V: T given V = v has the mean r v and the deviation s.
    r = 1 / float(np.hypot(1.0, spread))
    part = _Part(r, spread * r, limit - mean)
    ends = (np.asarray(selected, np.float64) - mean) * r
    return part.log_integrals(ends) if len(ends) else np.zeros(0)


class _Part(NamedTuple):
    """Density of V restricted to T above a limit: `phi(v) P(T >= limit | V = v)`."""

    r: float  # mean of T per unit of V, in deviations of each
    s: float  # deviation of T given V
    limit: float

    def log_density(self, v: np.ndarray) -> np.ndarray:
        return -(v**2) / 2 + log_ndtr((self.r * v - self.limit) / self.s)

    def log_integrals(self, ends: np.ndarray) -> np.ndarray:
        low, high = ends.T
        mode = np.clip(self.mode(), low, high)
        low, high = self._support(mode, low, high)
        even = np.linspace(0, 1, PARTS + 1)
        step = (self.limit + self.s * STEP) / self.r
        cuts = np.concatenate(
            [
                low[:, None] + (mode - low)[:, None] * even,
                mode[:, None] + (high - mode)[:, None] * even,
                np.clip(step, low[:, None], high[:, None]),
            ],
            axis=1,
        )
        cuts.sort(axis=1)
        nodes, weights = gauss_legendre(NODES)
        middle, half = (cuts[:, 1:] + cuts[:, :-1]) / 2, np.diff(cuts, axis=1) / 2
        logs = self.log_density(middle[..., None] + half[..., None] * nodes)
        top = np.maximum(logs.max(axis=(1, 2)), -np.finfo(np.float64).max)
        with np.errstate(divide="ignore"):  # an interval without length
            sums = np.sum(np.exp(logs - top[:, None, None]) @ weights * half, axis=1)
            return top + np.log(sums) - np.log(2 * np.pi) / 2

    def mode(self) -> float:
        """Return the place where the density is highest; its logarithm is concave."""

        def slope(v: float) -> float:
            x = (self.r * v - self.limit) / self.s
            log_hazard = float(-(x**2) / 2 - np.log(2 * np.pi) / 2 - log_ndtr(x))  # phi / Phi
            return float(self.r / self.s * np.exp(log_hazard) - v)

        high = max(self.limit / self.r, 0.0) + self.r / self.s + 1.0
        return float(optimize.brentq(slope, 0.0, high, xtol=1e-9 * self.s))  # type: ignore[arg-type]

    def _support(
        self, mode: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends on both sides of each mode beyond which the density is negligible."""
        floor = np.tile(self.log_density(mode) - DROP, 2)
        start, way = np.tile(mode, 2), np.repeat([-1.0, 1.0], len(mode))
        # The second derivative of the logarithm is at most -1: the density is negligible beyond.
        reach = np.minimum(np.concatenate([mode - low, high - mode]), np.sqrt(2 * DROP))
        near, far = np.minimum(NEAREST, reach), reach
        whole = self.log_density(start + way * reach) >= floor
        for _ in range(HALVINGS):
            middle = np.sqrt(near * far)
            above = self.log_density(start + way * middle) >= floor
            near, far = np.where(above, middle, near), np.where(above, far, middle)
        ends = start + way * np.where(whole, reach, far)
        return ends[: len(mode)], ends[len(mode) :]
