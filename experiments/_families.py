"""Non-Gaussian noise at a chosen Wasserstein distance from N(0, 1), for the robustness studies."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from dal_jax import InputError

# Nodes of the trapezoid rule on each side of zero; kinks of |F - Phi| cost 1 / nodes^2.
_NODES = 4000
# The integral ends where both distributions leave this much probability.
_TAIL = 1e-12


class _Kind(NamedTuple):
    """A scipy family and the shapes used of it: W1 grows strictly from `nearest` to `farthest`."""

    make: Callable[..., Any]
    normal: float  # shape, or its limit, that is the normal distribution
    nearest: float  # at most 4e-7 from normal; closer, scipy's exponnorm loses its digits
    farthest: float


_KINDS = {
    "skewnorm": _Kind(stats.skewnorm, 0.0, 0.01, 1000.0),
    "exponnorm": _Kind(stats.exponnorm, 0.0, 0.01, 100.0),
    "gennorm_steep": _Kind(stats.gennorm, 2.0, 2.0, 0.5),
    # Beyond 100 scipy's gennorm.cdf loses its digits.
    "gennorm_flat": _Kind(stats.gennorm, 2.0, 2.0, 100.0),
    "t": _Kind(stats.t, np.inf, 1e6, 2.5),
}
FAMILIES: tuple[str, ...] = tuple(_KINDS)


@dataclass(frozen=True)
class Family:
    """A distribution of mean 0 and variance 1, `(Y - E[Y]) / sd(Y)` with Y of a scipy family.

    Args:
        name: one of `FAMILIES`.
        shape: scipy's parameter, no unit: `a` of skewnorm in [0.01, 1000], `K` of exponnorm in
            [0.01, 100], `beta` of gennorm in [0.5, 2] (steep) or [2, 100] (flat), degrees of
            freedom of t in [2.5, 1e6]; or its limit for N(0, 1): 0, 0, 2, 2 and infinity.

    Raises:
        InputError: unknown name, or a shape outside these ranges.

    Source: Katsuoka et al., arXiv 2402.11789, the robustness experiment.
    """

    name: str
    shape: float

    def __post_init__(self):
        kind = _kind(self.name)
        low, high = sorted((kind.nearest, kind.farthest))
        if self.shape != kind.normal and not low <= self.shape <= high:
            raise InputError(
                f"shape: got {self.shape}, expected {low:g} to {high:g} or {kind.normal:g} "
                f"for {self.name}"
            )

    @cached_property
    def distribution(self) -> Any:
        """The frozen scipy distribution, standardized by its own mean and deviation."""
        kind = _kind(self.name)
        if self.shape == kind.normal:
            return stats.norm()
        mean, variance = (float(m) for m in kind.make(self.shape).stats("mv"))
        deviation = variance**0.5
        return kind.make(self.shape, loc=-mean / deviation, scale=1 / deviation)

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> np.ndarray:
        """Returns independent draws in float64, of any shape, by scipy's `rvs`."""
        return np.asarray(self.distribution.rvs(shape, random_state=rng), np.float64)


@lru_cache
def family_at(name: str, distance: float) -> Family:
    """Returns the member of a family at a given 1-Wasserstein distance from N(0, 1).

    The shape solves `W1(F, N(0, 1)) = distance`, to 1e-6 in the distance.

    Args:
        name: one of `FAMILIES`.
        distance: standard deviations, 0 to the distance of the family's last shape, about 0.1929
            (skewnorm), 0.3143 (exponnorm), 0.3489 (gennorm_steep), 0.1540 (gennorm_flat) and
            0.3147 (t); 0 is N(0, 1) itself.

    Returns:
        Family.

    Raises:
        InputError: unknown name, or a distance out of reach.

    Example:
        >>> round(family_at("t", 0.02).shape, 1)
        20.2

    Source: Katsuoka et al., arXiv 2402.11789, the robustness experiment.
    """
    kind = _kind(name)
    limit = _distance(name, kind.farthest)
    if not 0 <= distance <= limit:
        raise InputError(f"distance: got {distance}, expected 0 to {limit:.4f} for {name}")
    if distance == 0:
        return Family(name, kind.normal)
    if distance <= _distance(name, kind.nearest):
        return Family(name, kind.nearest)

    def shape(way: float) -> float:  # geometric, and exact at both ends
        return kind.nearest ** (1 - way) * kind.farthest**way

    def excess(way: float) -> float:
        return _distance(name, shape(way)) - distance

    root: Any = optimize.brentq(excess, 0.0, 1.0, xtol=1e-9)
    return Family(name, shape(root))


def wasserstein_to_normal(distribution: Any) -> float:
    """Returns the 1-Wasserstein distance of a continuous distribution from N(0, 1).

    `W1 = int_0^1 |F^-1(u) - Phi^-1(u)| du = int |F(x) - Phi(x)| dx`, by the trapezoid rule in s
    with x = sinh(s), which reaches far into heavy tails. The absolute error is below 1e-6 for the
    members of `FAMILIES`.

    Args:
        distribution: frozen scipy distribution, with vectorized `sf`, and `ppf` and `isf`.

    Returns:
        The distance, in the unit of x.

    Source: the two forms of W1 are textbook.
    """
    reach = max(-distribution.ppf(_TAIL), distribution.isf(_TAIL), stats.norm.isf(_TAIL))
    s = np.linspace(-1.0, 1.0, 2 * _NODES + 1) * np.arcsinh(reach)
    x = np.sinh(s)
    gap = np.abs(distribution.sf(x) - stats.norm.sf(x))  # skewnorm's cdf is slow in its left tail
    return float(np.trapezoid(gap * np.cosh(s), s))


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise InputError(f"name: got {name!r}, expected one of {', '.join(FAMILIES)}")
    return _KINDS[name]


def _distance(name: str, shape: float) -> float:
    return wasserstein_to_normal(Family(name, shape).distribution)
