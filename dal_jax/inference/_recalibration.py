"""Laws of the statistic: the p-value of every search, and its recalibration on normal images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from dal_jax._errors import InputError
from dal_jax._typing import Float, Int
from dal_jax.inference._intervals import Intervals, log_mass, log_total_mass
from dal_jax.inference._p_value import SelectiveP, p_of_split, selective_p
from dal_jax.inference._randomized import (
    LEAST_SPREAD,
    NO_PERTURBATION,
    Perturbation,
    log_total,
    student_split,
    student_total,
)

# Degrees of freedom that are tried; the last one is the normal law.
DEGREES = (2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 25.0, 50.0, np.inf)
_FACTORS = (0.2, 20.0)
# Inflation makes no p-value smaller: a factor below 1 would, on normal images that vary less than
# the noise model says by chance.
_INFLATIONS = (1.0, _FACTORS[1])

Fitted = TypeVar("Fitted")


class Observed(NamedTuple):
    """Result of a finished search for one image, enough to repeat the test under another law.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> observed = Observed(2.0, as_intervals([1.0, np.inf]), as_intervals([-np.inf, np.inf]))
        >>> round(NullLaw().p_value(observed).p, 4)
        0.1434
    """

    z_obs: float  # statistic over its standard deviation
    truncation: Intervals  # (k, 2) standardized
    searched: Intervals  # (m, 2) standardized
    perturbation: Perturbation = NO_PERTURBATION  # of what selection saw, standardized


def on_line(
    z_obs: float, truncation: Intervals, searched: Intervals, perturbation: Perturbation
) -> Observed:
    """Convert the result of a search to standard deviations of the tested statistic.

    Args:
        z_obs: Place of the observed image on the line, in standard deviations of the statistic that
            selection saw.
        truncation: (k, 2) truncation set in the same units.
        searched: (m, 2) searched part of the line in the same units.
        perturbation: Noise of the selection, in standard deviations of the tested statistic.

    Returns:
        The result in standard deviations of the tested statistic.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> line = as_intervals([-np.inf, np.inf])
        >>> seen = Perturbation(spread=0.75, shift=0.5)  # selection saw a deviation of 1.25
        >>> on_line(2.0, line, line, seen).z_obs
        2.0
    """
    scale = perturbation.scale
    return Observed(
        z_obs * scale - perturbation.shift, truncation * scale, searched * scale, perturbation
    )


@dataclass(frozen=True)
class NullLaw:
    """Law of the statistic before selection: `factor` times Student's t, or N(0, factor^2).

    With `Sigma -> factor^2 Sigma` only the scale of the line changes, so that no image is searched
    again. Heavier tails are taken into account for the statistic alone, not along the line: this is
    exact only for an elliptical law of many pixels, and must be judged by held-out images
    otherwise.

    Raises:
        InputError: `factor` or `degrees` is not positive.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> line = as_intervals([-np.inf, np.inf])
        >>> laws = NullLaw(), NullLaw(factor=2.0), NullLaw(factor=2.0, degrees=3.0)
        >>> [round(law.p_value(Observed(4.0, line, line)).p, 4) for law in laws]
        [0.0001, 0.0455, 0.1393]
    """

    factor: float = 1.0  # standard deviations of the noise model per standard deviation of the law
    degrees: float = np.inf  # degrees of freedom; infinite: normal law

    def __post_init__(self) -> None:
        for name in ("factor", "degrees"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: got {getattr(self, name)}, expected above 0")

    def normal_scores(self, z: ArrayLike) -> Float[np.ndarray, "..."]:
        """Map values to those of N(0, 1) with the same probability below them.

        Args:
            z: Standardized values of any shape, possibly infinite.

        Returns:
            `Phi^-1(F(z / factor))`, increasing in z.
        """
        scaled = np.asarray(z, np.float64) / self.factor
        if np.isinf(self.degrees):
            return scaled
        # The smaller tail gives full relative accuracy on both sides.
        with np.errstate(divide="ignore"):
            log_tail = np.log(special.stdtr(self.degrees, -np.abs(scaled)))
        return np.sign(scaled) * -special.ndtri_exp(log_tail)

    def p_value(self, observed: Observed, alternative: str = "two-sided") -> SelectiveP:
        """Return the selective p-value and its bounds under this law.

        Args:
            observed: Result of the search for one image.
            alternative: Alternative hypothesis, as in `selective_p`.

        Returns:
            SelectiveP(p, low, high).

        Raises:
            InputError: Unknown alternative.
        """
        if observed.perturbation.spread >= LEAST_SPREAD:
            return self._randomized_p(observed, alternative)
        z, *parts = (self.normal_scores(part) for part in observed[:3])
        # Ends that are neighbours in float64 may change places by rounding.
        truncation, searched = (np.sort(part, axis=-1) for part in parts)
        return selective_p(float(z), truncation, searched, alternative)

    def _randomized_p(self, observed: Observed, alternative: str) -> SelectiveP:
        z, truncation, searched = (part / self.factor for part in observed[:3])
        seen = observed.perturbation.over(self.factor)
        if np.isinf(self.degrees):
            return selective_p(float(z), truncation, searched, alternative, seen)

        def split(part: Intervals, tails: Intervals) -> tuple[float, float]:
            return student_split(part, tails, seen.spread, self._log_density)

        return p_of_split(split, float(z), float(z) + seen.shift, truncation, searched, alternative)

    def log_likelihoods(self, observed: Sequence[Observed]) -> Float[np.ndarray, " m"]:
        """Return log densities of observed statistics given that each lies in its truncation
        set.

        Args:
            observed: Results of m images, one or more.

        Returns:
            (m,) `log f(z_obs) - log P(Z)`; for a randomized selection f is multiplied by the
            probability that selection sees Z given z_obs.
        """
        scaled = np.array([one.z_obs for one in observed]) / self.factor
        logs = self._log_density(scaled) - np.log(self.factor)
        if any(one.perturbation.spread >= LEAST_SPREAD for one in observed):
            return logs - np.array([self._log_selected(one) for one in observed])
        sizes = [len(one.truncation) for one in observed]
        masses = log_mass(self.normal_scores(np.concatenate([one.truncation for one in observed])))
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return logs - np.logaddexp.reduceat(masses, starts)

    def _log_selected(self, observed: Observed) -> float:
        """Return `log P(V in Z)`, less the same given the observed statistic."""
        truncation, seen = observed.truncation, observed.perturbation.over(self.factor)
        if observed.perturbation.spread < LEAST_SPREAD:
            return log_total_mass(self.normal_scores(truncation))
        given = log_total_mass((truncation - observed.z_obs) / observed.perturbation.spread)
        scaled = truncation / self.factor
        if np.isinf(self.degrees):
            return log_total(scaled, seen.spread) - given
        return student_total(scaled, seen.spread, self.degrees) - given

    def _log_density(self, scaled: np.ndarray) -> np.ndarray:
        if np.isinf(self.degrees):
            return -(scaled**2) / 2 - np.log(2 * np.pi) / 2
        half = self.degrees / 2
        constant = (
            special.gammaln(half + 0.5) - special.gammaln(half) - np.log(2 * half * np.pi) / 2
        )
        return constant - (half + 0.5) * np.log1p(scaled**2 / (2 * half))


def inflation(observed: Sequence[Observed], alternative: str = "two-sided") -> NullLaw:
    """Return the normal law under which p-values of normal images average one half.

    The law is never narrower than the noise model: where its own p-values average more than one
    half, the factor is 1, so that recalibration makes no p-value smaller.

    Args:
        observed: Results of images known to be normal, one or more.
        alternative: Alternative hypothesis, as in `selective_p`.

    Returns:
        NullLaw(factor); the factor is within [1, 20].

    Raises:
        InputError: No images.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> line = as_intervals([-np.inf, np.inf])  # without selection
        >>> z = 2 * special.ndtri(np.arange(0.05, 1, 0.1))  # twice what the noise model says
        >>> round(inflation([Observed(float(one), line, line) for one in z]).factor, 1)
        2.0
    """
    _check_not_empty(observed)

    def excess(log_factor: float) -> float:
        law = NullLaw(float(np.exp(log_factor)))
        return float(np.nanmean([law.p_value(one, alternative).p for one in observed])) - 0.5

    low, high = np.log(_INFLATIONS)
    if excess(low) >= 0:  # p-values grow with the factor
        return NullLaw(_INFLATIONS[0])
    if excess(high) <= 0:
        return NullLaw(_INFLATIONS[1])
    root: Any = optimize.brentq(excess, low, high, xtol=1e-4)
    return NullLaw(float(np.exp(root)))


def heavy_tails(observed: Sequence[Observed], groups: ArrayLike | None = None) -> NullLaw:
    """Return the Student law under which the statistics of normal images are most likely.

    Each image's likelihood is conditional on its own truncation set, so selection does not bias
    the fit: `max sum_i w_i log f(z_i) / P(Z_i)` over factor and degrees of freedom. A Student law
    of the noise model's variance has a factor below 1, and smaller p-values near 0: `recalibrate`
    takes the larger of them and those of the noise model.

    Args:
        observed: Results of images known to be normal, one or more.
        groups: (m,) physical object of each image; an image has the weight 1 / size of its group,
            so that all images of one object together count as one. None: All images are
            independent.

    Returns:
        The law.

    Raises:
        InputError: No images, or groups of another length.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> line = as_intervals([-np.inf, np.inf])  # without selection
        >>> z = 2 * special.stdtrit(3.0, np.arange(0.005, 1, 0.01))
        >>> law = heavy_tails([Observed(float(one), line, line) for one in z])
        >>> round(law.factor), law.degrees < 10
        (2, True)
    """
    _check_not_empty(observed)
    weights = np.ones(len(observed))
    if groups is not None:
        _, index, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
        if len(index) != len(observed):
            raise InputError(f"groups has {len(index)} entries, expected {len(observed)}")
        weights = 1.0 / sizes[index]

    def loss(log_factor: float, degrees: float) -> float:
        law = NullLaw(float(np.exp(log_factor)), degrees)
        return -float(weights @ law.log_likelihoods(observed))

    best: tuple[float, NullLaw] | None = None
    for degrees in DEGREES:
        bounds = tuple(np.log(_FACTORS))
        found = optimize.minimize_scalar(
            loss, bounds=bounds, args=(degrees,), method="bounded", options={"xatol": 1e-3}
        )
        law = NullLaw(float(np.exp(found.x)), degrees)
        if best is None or found.fun < best[0]:
            best = float(found.fun), law
    assert best is not None
    return best[1]


@dataclass(frozen=True)
class Ranks:
    """P-values of normal images with their bounds, among which further p-values are ranked.

    Raises:
        InputError: Fields of different lengths.

    Example:
        >>> ranks = Ranks((0.1, 0.2, 0.9), (0.1, 0.2, 0.8), (0.1, 0.3, 1.0), (0.5, 0.5, 1.0))
        >>> ranks.rank(SelectiveP(p=0.15, low=0.15, high=0.25))
        SelectiveP(p=0.5, low=0.5, high=0.6666666666666666)
    """

    p: tuple[float, ...] = field(repr=False)
    low: tuple[float, ...] = field(repr=False)
    high: tuple[float, ...] = field(repr=False)
    weights: tuple[float, ...] = field(repr=False)  # see `conformal_p`

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("p", "low", "high", "weights")}
        if len(set(sizes.values())) > 1:
            raise InputError(f"ranks have fields of {sizes} entries, expected the same number")

    @property
    def least(self) -> float:
        """Smallest possible conformal p-value."""
        return 1 / (1 + sum(self.weights))

    def rank(self, bounds: SelectiveP) -> SelectiveP:
        """Return the conformal p-value of an image whose selective p-value is known within
        bounds.

        Args:
            bounds: P-value of the image, with its bounds.

        Returns:
            The rank, and the ranks between which it lies whatever the searches left open.
        """
        return SelectiveP(
            conformal_p(self.p, bounds.p, self.weights),
            conformal_p(self.high, bounds.low, self.weights),
            conformal_p(self.low, bounds.high, self.weights),
        )


def recalibrate(
    by: NullLaw | Ranks,
    observed: Observed,
    alternative: str = "two-sided",
    raw: SelectiveP | None = None,
) -> SelectiveP:
    """Return the recalibrated p-value of a finished search, with its bounds.

    Under a law it is the larger of the p-value under that law and the raw one, so that no fit makes
    a p-value smaller; among ranks it is the rank of the raw one. Every decision with a
    recalibration comes from this function.

    Args:
        by: Law, or p-values of normal images.
        observed: Result of the search for one image.
        alternative: Alternative hypothesis, as in `selective_p`.
        raw: Raw p-value of the image with bounds, if it is computed already.

    Returns:
        SelectiveP(p, low, high) with low <= p <= high, whatever the unsearched part of the line
        holds.

    Raises:
        InputError: Unknown alternative.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> observed = Observed(2.0, as_intervals([1.0, 4.0]), as_intervals([-4.0, 4.0]))
        >>> [round(value, 3) for value in recalibrate(NullLaw(2.0), observed)]
        [0.476, 0.476, 0.548]
        >>> recalibrate(NullLaw(0.5), observed) == recalibrate(NullLaw(), observed)
        True
    """
    raw = NullLaw().p_value(observed, alternative) if raw is None else raw
    if isinstance(by, Ranks):
        return by.rank(raw)
    return SelectiveP(*np.maximum(raw, by.p_value(observed, alternative)).tolist())


def conformal_p(calibration: ArrayLike, value: float, weights: ArrayLike | None = None) -> float:
    """Return the rank of a p-value among those of normal images; each object counts as one.

    `(1 + sum_i w_i [p_i <= p]) / (1 + sum_i w_i)`, with `w_i` one over the number of images of the
    object of image i. Let the image be any one of an object that is exchangeable with those of the
    calibration, whatever the images of one object have in common. Then P(p <= alpha) <= alpha,
    given that the image has a p-value. (Drawn from all objects, an image with a p-value is image i
    with probability proportional to w_i. The other images of its own object are unknown: they count
    as 1 - w with a p that is no larger.)

    Args:
        calibration: (m,) p-values, or any score that is small for anomalous images; NaN is left
            out.
        value: Value of the image.
        weights: (m,) above 0; one over the number of images of the object, with those that have no
            p-value. None: Each image is the only one of its object.

    Returns:
        The rank in (0, 1]; NaN for NaN.

    Raises:
        InputError: Weights of another length.

    Example:
        >>> conformal_p([0.1, 0.5, 0.9], 0.3)
        0.5
        >>> conformal_p([0.1, 0.1, 0.9], 0.3, [0.5, 0.5, 1.0])  # the first two are of one object
        0.6666666666666666

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; objects: Lee,
    Barber and Willett, arXiv 2306.06342.
    """
    known = np.asarray(calibration, np.float64)
    counted = np.ones(len(known)) if weights is None else np.asarray(weights, np.float64)
    if len(counted) != len(known):
        raise InputError(f"weights has {len(counted)} entries, expected {len(known)}")
    if np.isnan(value):
        return float("nan")
    counted = np.where(np.isnan(known), 0.0, counted)
    return float((1 + np.sum(counted[known <= value])) / (1 + np.sum(counted)))


def cross_fit(
    folds: Int[np.ndarray, " m"],
    fit: Callable[[np.ndarray], Fitted],
    apply: Callable[[Fitted, int], Any],
) -> list[Any]:
    """Apply to each image the fit to the images of the other folds.

    Args:
        folds: (m,) the fold of each image; images of one physical object share it.
        fit: Function (indices of the images of the other folds) -> fit.
        apply: Function (fit, index of an image) -> any result.

    Returns:
        The results of `apply`, in the order of the images.

    Raises:
        InputError: Fewer than two folds.

    Example:
        >>> values = np.array([1.0, 3.0, 10.0])
        >>> cross_fit(np.array([0, 0, 1]), lambda others: float(values[others].mean()),
        ...              lambda mean, index: mean)
        [10.0, 10.0, 2.0]
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise InputError(f"folds has {len(numbers)} different numbers, expected two or more")
    treated: dict[int, Any] = {}
    for number in numbers:
        fitted = fit(np.flatnonzero(folds != number))
        for index in np.flatnonzero(folds == number):
            treated[int(index)] = apply(fitted, int(index))
    return [treated[index] for index in range(len(folds))]


def _check_not_empty(observed: Sequence[Observed]) -> None:
    if not len(observed):
        raise InputError("observed is empty, expected images known to be normal")
