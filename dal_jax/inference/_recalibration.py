"""Recalibration after the search: the law of the statistic fitted to images known to be normal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from .._errors import InputError
from .._typing import Float, Int
from ._intervals import Intervals
from ._normal import log_mass
from ._p_value import SelectiveP, selective_p

# Degrees of freedom that are tried; the last one is the normal law.
DEGREES = (2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 25.0, 50.0, np.inf)
_FACTORS = (0.2, 20.0)

Fitted = TypeVar("Fitted")


class Observed(NamedTuple):
    """What a finished search says of one image; enough to test it again under another law.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> observed = Observed(2.0, as_intervals([1.0, np.inf]), as_intervals([-np.inf, np.inf]))
        >>> round(Law().p_value(observed).p, 4)
        0.1434
    """

    z_obs: float  # statistic over its standard deviation
    truncation: Intervals  # (k, 2) standardized
    searched: Intervals  # (m, 2) standardized


@dataclass(frozen=True)
class Law:
    """The law of the statistic before selection: `factor` times Student's t, or N(0, factor^2).

    With `Sigma -> factor^2 Sigma` the line does not change, only its scale: no image is searched
    again. Heavier tails are taken account of in the statistic alone, not along the line: exact for
    an elliptical law of many pixels only, otherwise judged by held-out images.

    Raises:
        InputError: factor or degrees not positive.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> line = as_intervals([-np.inf, np.inf])
        >>> laws = Law(), Law(factor=2.0), Law(factor=2.0, degrees=3.0)
        >>> [round(law.p_value(Observed(4.0, line, line)).p, 4) for law in laws]
        [0.0001, 0.0455, 0.1393]

    Source: this project.
    """

    factor: float = 1.0  # standard deviations of the noise model per standard deviation of the law
    degrees: float = np.inf  # of freedom; infinite: normal

    def __post_init__(self) -> None:
        for name in ("factor", "degrees"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected above 0")

    def normal_scores(self, z: ArrayLike) -> Float[np.ndarray, "..."]:
        """Maps values to those of N(0, 1) with the same probability below them.

        Args:
            z: standardized, any shape, possibly infinite.

        Returns:
            `Phi^-1(F(z / factor))`, increasing in z.
        """
        scaled = np.asarray(z, np.float64) / self.factor
        if np.isinf(self.degrees):
            return scaled
        # From the tail that is small: full relative accuracy on both sides.
        with np.errstate(divide="ignore"):
            log_tail = np.log(special.stdtr(self.degrees, -np.abs(scaled)))
        return np.sign(scaled) * -special.ndtri_exp(log_tail)

    def p_value(self, observed: Observed, alternative: str = "two-sided") -> SelectiveP:
        """The selective p-value and its bounds under this law.

        Args:
            observed: of one image.
            alternative: as in `selective_p`.

        Returns:
            SelectiveP(p, low, high).

        Raises:
            InputError: unknown alternative.
        """
        z, *parts = (self.normal_scores(part) for part in observed)
        # Ends that are neighbours in float64 may change places by rounding.
        truncation, searched = (np.sort(part, axis=-1) for part in parts)
        return selective_p(float(z), truncation, searched, alternative)

    def log_likelihoods(self, observed: Sequence[Observed]) -> Float[np.ndarray, " m"]:
        """Log densities of observed statistics given that each lies in its truncation set.

        Args:
            observed: of m images, one or more.

        Returns:
            (m,) `log f(z_obs) - log P(Z)`.
        """
        sizes = [len(one.truncation) for one in observed]
        masses = log_mass(self.normal_scores(np.concatenate([one.truncation for one in observed])))
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        scaled = np.array([one.z_obs for one in observed]) / self.factor
        return (
            self._log_density(scaled) - np.log(self.factor) - np.logaddexp.reduceat(masses, starts)
        )

    def _log_density(self, scaled: np.ndarray) -> np.ndarray:
        if np.isinf(self.degrees):
            return -(scaled**2) / 2 - np.log(2 * np.pi) / 2
        half = self.degrees / 2
        constant = (
            special.gammaln(half + 0.5) - special.gammaln(half) - np.log(2 * half * np.pi) / 2
        )
        return constant - (half + 0.5) * np.log1p(scaled**2 / (2 * half))


def inflation(observed: Sequence[Observed], alternative: str = "two-sided") -> Law:
    """The normal law whose p-values of normal images average one half.

    Args:
        observed: of images known to be normal, one or more.
        alternative: as in `selective_p`.

    Returns:
        Law(factor); the factor is within [0.2, 20].

    Raises:
        InputError: no images.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> line = as_intervals([-np.inf, np.inf])  # where nothing was selected
        >>> z = 2 * special.ndtri(np.arange(0.05, 1, 0.1))  # twice what the noise model says
        >>> round(inflation([Observed(float(one), line, line) for one in z]).factor, 1)
        2.0

    Source: this project.
    """
    _some(observed)

    def excess(log_factor: float) -> float:
        law = Law(float(np.exp(log_factor)))
        return float(np.nanmean([law.p_value(one, alternative).p for one in observed])) - 0.5

    low, high = np.log(_FACTORS)
    if excess(low) * excess(high) >= 0:
        return Law(_FACTORS[int(abs(excess(high)) < abs(excess(low)))])
    root: Any = optimize.brentq(excess, low, high, xtol=1e-4)
    return Law(float(np.exp(root)))


def heavy_tails(observed: Sequence[Observed], groups: ArrayLike | None = None) -> Law:
    """The Student law under which the statistics of normal images are most likely.

    Each image's likelihood is conditional on its own truncation set, so selection does not bias
    the fit: `max sum_i w_i log f(z_i) / P(Z_i)` over factor and degrees of freedom.

    Args:
        observed: of images known to be normal, one or more.
        groups: (m,) the physical object of each; each image has the weight 1 / size of its group,
            so that all images of one object together count as one. None: all are independent.

    Returns:
        The law.

    Raises:
        InputError: no images, or groups of another length.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> line = as_intervals([-np.inf, np.inf])  # where nothing was selected
        >>> z = 2 * special.stdtrit(3.0, np.arange(0.005, 1, 0.01))
        >>> law = heavy_tails([Observed(float(one), line, line) for one in z])
        >>> round(law.factor), law.degrees < 10
        (2, True)

    Source: this project.
    """
    _some(observed)
    weights = np.ones(len(observed))
    if groups is not None:
        _, index, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
        if len(index) != len(observed):
            raise InputError(f"groups has {len(index)} entries, expected {len(observed)}")
        weights = 1.0 / sizes[index]

    def loss(log_factor: float, degrees: float) -> float:
        law = Law(float(np.exp(log_factor)), degrees)
        return -float(weights @ law.log_likelihoods(observed))

    best: tuple[float, Law] | None = None
    for degrees in DEGREES:
        bounds = tuple(np.log(_FACTORS))
        found = optimize.minimize_scalar(
            loss, bounds=bounds, args=(degrees,), method="bounded", options={"xatol": 1e-3}
        )
        law = Law(float(np.exp(found.x)), degrees)
        if best is None or found.fun < best[0]:
            best = float(found.fun), law
    assert best is not None
    return best[1]


def conformal_p(calibration: ArrayLike, value: float) -> float:
    """The rank of a p-value among those of normal images: `(1 + #{calibration <= p}) / (1 + m)`.

    Uniform (never too small) if the image is exchangeable with the calibration images, whatever
    their law. With groups that is: if the groups are exchangeable and one image of each is used.

    Args:
        calibration: (m,) p-values, or any score small for anomalous images; NaN is left out.
        value: that of the image.

    Returns:
        In (0, 1]; NaN for NaN.

    Example:
        >>> conformal_p([0.1, 0.5, 0.9], 0.3)
        0.5

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005.
    """
    if np.isnan(value):
        return float("nan")
    known = np.asarray(calibration, np.float64)
    known = known[~np.isnan(known)]
    return float((1 + np.sum(known <= value)) / (1 + len(known)))


def cross_fitted(
    folds: Int[np.ndarray, " m"],
    fit: Callable[[np.ndarray], Fitted],
    apply: Callable[[Fitted, int], Any],
) -> list[Any]:
    """Treats each image by what was fitted to the images of the other folds.

    Args:
        folds: (m,) the fold of each image; images of one physical object share it.
        fit: (indices of the other folds' images) -> what is fitted.
        apply: (what was fitted, index of an image) -> anything.

    Returns:
        What `apply` gave, in order.

    Raises:
        InputError: fewer than two folds.

    Example:
        >>> values = np.array([1.0, 3.0, 10.0])
        >>> cross_fitted(np.array([0, 0, 1]), lambda others: float(values[others].mean()),
        ...              lambda mean, index: mean)
        [10.0, 10.0, 2.0]

    Source: this project.
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise InputError(f"folds are {len(numbers)}, expected two or more")
    treated: dict[int, Any] = {}
    for number in numbers:
        fitted = fit(np.flatnonzero(folds != number))
        for index in np.flatnonzero(folds == number):
            treated[int(index)] = apply(fitted, int(index))
    return [treated[index] for index in range(len(folds))]


def _some(observed: Sequence[Observed]) -> None:
    if not len(observed):
        raise InputError("observed is empty, expected images known to be normal")
