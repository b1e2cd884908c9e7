"""Baseline p-values: naive, Bonferroni over all regions, over-conditioned, permutation."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_ndtr

from dal_jax._errors import InputError
from dal_jax.inference._p_value import check_alternative, selective_p
from dal_jax.inference._randomized import NO_PERTURBATION, Perturbation

# Values this close to the observed one, relative to it, are tied with it: rounding of means.
_TIE = 100 * np.finfo(np.float64).eps


def naive_p(z_obs: float, alternative: str = "two-sided") -> float:
    """Return the p-value that ignores the selection of the region, which is not valid.

    `2 Phi(-|z_obs|)` for "two-sided" and "equal-tailed", `Phi(-z_obs)` for "greater",
    `Phi(z_obs)` for "less".

    Args:
        z_obs: Observed statistic in units of its standard deviation.
        alternative: "two-sided", "equal-tailed", "greater" or "less".

    Returns:
        p in [0, 1]; NaN for NaN.

    Raises:
        InputError: Unknown alternative.

    Example:
        >>> round(naive_p(2.0), 4)
        0.0455

    Source: Katsuoka et al., arXiv 2402.11789.
    """
    return float(np.exp(_log_naive_p(z_obs, alternative)))


def bonferroni_log10_p(z_obs: float, num_pixels: int, alternative: str = "two-sided") -> float:
    """Return log10 of the naive p-value corrected for all 2^n regions: valid, with little power.

    `min(0, log10 naive + n log10 2)`, in log space as 2^n overflows.

    Args:
        z_obs: Observed statistic in units of its standard deviation.
        num_pixels: Number n of pixels that may be flagged, >= 1.
        alternative: "two-sided", "equal-tailed", "greater" or "less".

    Returns:
        log10 p <= 0; NaN for NaN.

    Raises:
        InputError: Unknown alternative or num_pixels < 1.

    Example:
        >>> round(bonferroni_log10_p(10.0, num_pixels=64), 2)
        -3.55

    Source: Katsuoka et al., arXiv 2402.11789.
    """
    if num_pixels < 1:
        raise InputError(f"num_pixels: got {num_pixels!r}, expected a positive integer")
    log_p = _log_naive_p(z_obs, alternative) + num_pixels * np.log(2)
    return float(np.minimum(0.0, log_p / np.log(10)))


def over_conditioned_p(
    z_obs: float,
    window: ArrayLike,
    alternative: str = "two-sided",
    perturbation: Perturbation = NO_PERTURBATION,
) -> float:
    """Return the selective p-value given the window of z_obs, too: valid, with less power.

    Args:
        z_obs: Observed statistic in units of its standard deviation.
        window: (2,) standardized ends of the window that holds z_obs or, where selection was
            randomized, the value that it saw.
        alternative: "two-sided", "equal-tailed", "greater" or "less".
        perturbation: Noise that was added to the statistic for the selection.

    Returns:
        p in [0, 1]; NaN when z_obs is not in the window.

    Raises:
        InputError: Unknown alternative, or a window that is no interval.

    Example:
        >>> round(over_conditioned_p(2.0, [1.9, 2.5]), 3)
        0.735

    Source: Katsuoka et al., arXiv 2402.11789.
    """
    return selective_p(z_obs, window, [-np.inf, np.inf], alternative, perturbation).p


def permutation_p(observed: float, permuted: ArrayLike, alternative: str = "two-sided") -> float:
    """Return the p-value of a statistic among its values for B permuted images.

    `p = (1 + #{b : T_b at least as extreme as T_obs}) / (1 + B)`: `|T_b| >= |T_obs|` for
    "two-sided", `T_b >= T_obs` for "greater", `T_b <= T_obs` for "less"; "equal-tailed" is
    `min(1, 2 min(greater, less))`. Exact if the permuted parts are exchangeable under the null.

    Args:
        observed: Observed statistic T_obs.
        permuted: (B,) the same statistic of the permuted images; a NaN counts as extreme.
        alternative: "two-sided", "equal-tailed", "greater" or "less".

    Returns:
        p in [1 / (1 + B), 1]; NaN when T_obs is NaN.

    Raises:
        InputError: Unknown alternative, or values that are not a vector.

    Example:
        >>> permutation_p(2.0, [0.5, -3.0, 1.0])
        0.5

    Source: Katsuoka et al., arXiv 2402.11789; Phipson and Smyth, SAGMB 9, 2010 (the 1 added).
    """
    check_alternative(alternative)
    values = np.asarray(permuted, np.float64)
    if values.ndim != 1:
        raise InputError(f"permuted has shape {values.shape}, expected (B,)")
    if np.isnan(observed):
        return float("nan")
    tie = _TIE * abs(observed)

    def share(less_extreme: np.ndarray) -> float:
        return float((1 + np.count_nonzero(~less_extreme)) / (1 + values.size))

    if alternative == "two-sided":
        return share(np.abs(values) < abs(observed) - tie)
    greater, less = share(values < observed - tie), share(values > observed + tie)
    if alternative == "equal-tailed":
        return min(1.0, 2 * min(greater, less))
    return greater if alternative == "greater" else less


def _log_naive_p(z_obs: float, alternative: str) -> float:
    check_alternative(alternative)
    if alternative in ("greater", "less"):
        return float(log_ndtr(-z_obs if alternative == "greater" else z_obs))
    return float(np.minimum(0.0, np.log(2) + log_ndtr(-abs(z_obs))))
