"""Covariances estimated from normal images, by the name of the model."""

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax.noise._ar1 import ar1
from dal_jax.noise._covariance import Covariance, diagonal, iid
from dal_jax.noise._estimate_dense import estimate_dense
from dal_jax.noise._estimate_patterns import (
    LEAST_SHRINKAGE,
    kronecker_from,
    low_rank_from,
    stationary_from,
)
from dal_jax.noise._sample import Groups, WeightedDeviations, sample_of
from dal_jax.noise._scaled import scaled

# Every kind of `estimate`, from few parameters to many.
KINDS = (
    *("iid", "ar1", "diagonal", "stationary", "scaled_stationary"),
    *("kronecker", "low_rank", "dense", "dense_stationary"),
)
_SHRINKABLE = KINDS[2:]


def estimate(
    images: ArrayLike,
    kind: str,
    *,
    groups: Groups = None,
    shrinkage: float | None = None,
    rank: int | None = None,
    mean: str = "image",
) -> Covariance:
    """Returns the noise covariance of normal images under one of the models.

    Kinds: "iid" one variance; "ar1" one variance and the correlation of neighbours along the
    flattened image (Burg's estimate); "diagonal" each pixel's variance; "stationary" tapered
    sample autocovariance, without wrap-around; "scaled_stationary" the same for images divided
    by each pixel's standard deviation, then multiplied again; "kronecker" the separable
    covariance of greatest likelihood; "low_rank" principal components plus each pixel's rest;
    "dense" the sample covariance, shrunk towards its diagonal, and "dense_stationary" towards
    the stationary estimate.

    Images of one group (exposures of one object, slices of one patient) do not count as
    independent: each weighs 1 / (size of its group), and the number of groups takes the place
    of the number of images in every correction.

    Args:
        images: (N, H, W, C) normal images, preprocessed like those to be tested, N >= 2.
        kind: one of the above.
        groups: N labels of the objects; None: each image is an object of its own.
        shrinkage: share in [0, 1] moved to the model's simpler target: of "diagonal" and of the
            scale of "scaled_stationary" the mean variance, of "dense_stationary" that model, of the
            others correlation zero. None:
            estimated (dense ones), 1 / (G + 1) for G groups (scales), else 0.001.
        rank: number of components of "low_rank"; None: up to 20.
        mean: what is removed first: "image" the mean image, "pixel" the mean pixel (one value
            per channel), "none" nothing.

    Returns:
        Covariance for images of shape (H, W, C), in squared units of the image.

    Raises:
        InputError: another kind, an option that the kind does not take, or images that do not
            allow the estimate.

    Example:
        >>> images = np.random.default_rng(0).normal(0.0, 2.0, (50, 8, 8, 1))
        >>> estimate(images, "iid").apply(np.ones((8, 8, 1))).max().round().item()
        4.0

    Source: Burg, Maximum Entropy Spectral Analysis (1975) for "ar1"; the other
    kinds as at `stationary_from`, `kronecker_from`, `low_rank_from`, `estimate_dense`.
    """
    _check_options(kind, shrinkage, rank)
    if kind in ("dense", "dense_stationary"):
        target = "diagonal" if kind == "dense" else "stationary"
        return estimate_dense(images, shrinkage, target, groups=groups, mean=mean)
    sample = sample_of(images, groups, mean)
    least = LEAST_SHRINKAGE if shrinkage is None else shrinkage
    if kind == "iid":
        return _iid_from(sample)
    if kind == "ar1":
        return _ar1_from(sample)
    if kind == "diagonal":
        return diagonal(_variances(sample, shrinkage))
    if kind == "stationary":
        return stationary_from(sample, least)
    if kind == "scaled_stationary":
        return _scaled_stationary_from(sample, shrinkage)
    if kind == "kronecker":
        return kronecker_from(sample, least)
    return low_rank_from(sample, rank, least)


def _check_options(kind: str, shrinkage: float | None, rank: int | None) -> None:
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage is {shrinkage!r}, expected None or a number from 0 to 1")
    if shrinkage is not None and kind not in _SHRINKABLE:
        raise InputError(f"shrinkage is {shrinkage!r}, expected None for the kind {kind!r}")
    if rank is not None and kind != "low_rank":
        raise InputError(f"rank is {rank!r}, expected None for the kind {kind!r}")


def _iid_from(sample: WeightedDeviations) -> Covariance:
    return iid(_positive(np.mean(np.sum(sample.scaled() ** 2, axis=0))) ** 0.5)


def _ar1_from(sample: WeightedDeviations) -> Covariance:
    flat = sample.scaled().reshape(len(sample.weights), -1)
    variance = _positive(np.sum(flat**2) / flat.shape[1])
    ends = np.sum(flat[:, 1:] ** 2) + np.sum(flat[:, :-1] ** 2)
    rho = 2 * np.sum(flat[:, 1:] * flat[:, :-1]) / ends if ends > 0 else 0.0
    return ar1(float(np.clip(rho, -1 + 1e-6, 1 - 1e-6)), variance**0.5)


def _variances(sample: WeightedDeviations, shrinkage: float | None) -> np.ndarray:
    """Returns each pixel's variance, shrunk to the mean of its channel."""
    share = 1 / (sample.count + 1) if shrinkage is None else shrinkage
    variances = np.sum(sample.scaled() ** 2, axis=0)
    return (1 - share) * variances + share * variances.mean(axis=(0, 1))


def _scaled_stationary_from(sample: WeightedDeviations, shrinkage: float | None) -> Covariance:
    scale = np.sqrt(_variances(sample, shrinkage))
    if not np.all(scale > 0):
        raise InputError("images do not vary in a pixel, expected variance > 0")
    relative = sample._replace(deviations=sample.deviations / scale)
    return scaled(stationary_from(relative, LEAST_SHRINKAGE), scale)


def _positive(variance: float) -> float:
    if not variance > 0:
        raise InputError("images do not vary, expected variance > 0")
    return float(variance)
