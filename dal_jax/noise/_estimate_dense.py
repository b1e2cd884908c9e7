"""A covariance matrix estimated from images, shrunk so that few images suffice."""

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance
from dal_jax.noise._dense import dense
from dal_jax.noise._estimate_patterns import LEAST_SHRINKAGE, stationary_from
from dal_jax.noise._likelihood import as_matrix
from dal_jax.noise._sample import Groups, WeightedDeviations, sample_of

_TARGETS = ("diagonal", "identity", "stationary")


def estimate_dense(
    images: ArrayLike,
    shrinkage: float | None = None,
    target: str = "diagonal",
    *,
    groups: Groups = None,
    mean: str = "image",
) -> Covariance:
    """Returns the sample covariance of images, shrunk towards a simpler one.

    `Sigma = (1 - a) S + a D`, S the sample covariance around the mean image (divisor N - 1) and D
    either diag(S), the mean variance times I, or the stationary estimate. By default the
    intensity a is the estimate of the one with least expected squared error,
    `sum Var(S_ij) / sum (S_ij - D_ij)^2` over the entries that shrink, within [0.001, 1]; the
    matrix is then positive definite even if N < n.
    With groups, N is their number G and `Var(S_ij)` is the variance between them.

    Args:
        images: (N, H, W, C), N >= 2 images of one mean and covariance.
        shrinkage: intensity a in [0, 1]; None to estimate it. 0 needs N > n = H*W*C.
        target: "diagonal" keeps each pixel's own variance, "identity" shrinks those, too;
            "stationary" shrinks to the covariance that `estimate` finds as "stationary" (n at
            most 2048).
        groups: N labels of the objects, see `estimate`; None: the images are independent.
        mean: what is removed, see `estimate`.

    Returns:
        Covariance for images of shape (H, W, C), stored as a matrix (n, n).

    Raises:
        InputError: wrong shape, shrinkage or target, values not finite, a pixel without variance
            (target "diagonal"), or a result that is not positive definite (shrinkage 0).

    Example:
        >>> images = np.random.default_rng(0).normal(0.0, 1.0, (5, 4, 4, 1))  # of 16 values
        >>> matrix = as_matrix(estimate_dense(images), (4, 4, 1))
        >>> bool(np.linalg.eigvalsh(matrix).min() > 0)
        True

    Source: Ledoit and Wolf, J. Multivariate Analysis 88 (2004) 365-411; Schaefer and Strimmer,
    Stat. Appl. Genet. Mol. Biol. 4 (2005) 32, table 2, targets B ("identity") and D ("diagonal");
    groups and stationary target this project.
    """
    sample = sample_of(images, groups, mean)
    flat = sample.scaled().reshape(len(sample.weights), -1)
    matrix = flat.T @ flat
    goal = _target(sample, matrix, target)
    if shrinkage is None:
        shrinkage = max(LEAST_SHRINKAGE, _intensity(sample, matrix, goal, target))
    if not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage is {shrinkage!r}, expected None or a number from 0 to 1")
    return dense((1 - shrinkage) * matrix + shrinkage * goal)


def _target(
    sample: WeightedDeviations, matrix: Float[np.ndarray, "n n"], target: str
) -> Float[np.ndarray, "n n"]:
    if target not in _TARGETS:
        raise InputError(f"target is {target!r}, expected one of {', '.join(map(repr, _TARGETS))}")
    if target == "stationary":
        height, width, channels = sample.deviations.shape[1:]
        return as_matrix(stationary_from(sample, LEAST_SHRINKAGE), (height, width, channels))
    variances = np.diag(matrix)
    goal = variances if target == "diagonal" else np.full_like(variances, variances.mean())
    if not np.all(goal > 0):
        still = int(np.argmin(goal))
        raise InputError(f"images do not vary in value {still} of each, expected variance > 0")
    return np.diag(goal)


def _intensity(
    sample: WeightedDeviations,
    matrix: Float[np.ndarray, "n n"],
    goal: Float[np.ndarray, "n n"],
    target: str,
) -> float:
    """Returns `sum Var(S_ij) / sum (S_ij - D_ij)^2` over the entries that shrink, at most 1."""
    centre = matrix * sample.freedom
    spread = _squares(sample, target) - sample.count * _total(centre, target)
    # Var(S_ij) = sum_g (w_g - mean w)^2 / (G (G - 1)), times (G / (G - 1))^2 for the mean removed
    variance = spread / (sample.count * (sample.count - 1) * sample.freedom**2)
    total = _total(matrix - goal, target)
    return float(np.clip(variance / total, 0, 1)) if total > 0 else 1.0


def _total(matrix: Float[np.ndarray, "n n"], target: str) -> float:
    """Returns the sum of squares over the entries that shrink."""
    kept = np.sum(np.diag(matrix) ** 2) if target == "diagonal" else 0.0
    return float(np.sum(matrix**2) - kept)


def _squares(sample: WeightedDeviations, target: str) -> float:
    """Returns `sum_g sum_ij w_gij^2`, w_g the mean of `d d'` over the images of group g.

    By `sum_ij (sum_k d_ki d_kj)^2 = sum_kl (d_k . d_l)^2` no further n x n matrix is needed.
    """
    flat = sample.deviations.reshape(len(sample.weights), -1)
    order = np.argsort(sample.members, kind="stable")
    result = 0.0
    for rows in np.split(order, np.cumsum(np.bincount(sample.members))[:-1]):
        own = flat[rows]
        result += np.sum((own @ own.T) ** 2) / len(rows) ** 2
        if target == "diagonal":
            result -= np.sum(np.mean(own**2, axis=0) ** 2)
    return float(result)
