"""Deviations of normal images, and the likelihood of a covariance given them."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float, Int
from dal_jax.noise._covariance import Covariance, Whitening, _batch
from dal_jax.noise._dense import dense

Groups = Sequence[Any] | np.ndarray | None

_MEANS = ("image", "pixel", "none")


class WeightedDeviations(NamedTuple):
    """Deviations of images from their mean, with the numbers that a covariance estimate needs."""

    deviations: Float[np.ndarray, "N H W C"]  # in units of the image
    weights: Float[np.ndarray, " N"]  # 1 / (size of the group * number of groups), sum 1
    members: Int[np.ndarray, " N"]  # group of each image, 0 to count - 1
    count: int  # number of groups: the effective number of images
    freedom: float  # weighted mean of squares / freedom is the unbiased variance

    def scaled(self) -> Float[np.ndarray, "N H W C"]:
        """Return deviations y with `sum_i y_i y_i' = S`, the sample covariance."""
        factors = np.sqrt(self.weights / self.freedom)
        return self.deviations * factors[:, None, None, None]


def sample_of(images: ArrayLike, groups: Groups = None, mean: str = "image") -> WeightedDeviations:
    """Return images as a sample in which each group weighs the same.

    Images of one group (exposures of one object, slices of one patient) may be almost copies of
    each other. Each weighs `1 / (m G)` for a group of size m and G groups, and the removed mean
    costs `1 / G` of the variance, as if the groups were the images.

    Args:
        images: Images (N, H, W, C), finite, of one preprocessing.
        groups: Labels of the objects (N,); None makes each image an object of its own.
        mean: Mean that is removed: "image", the mean image; "pixel", the mean pixel (one value per
            channel); or "none", if the mean is known to be zero.

    Returns:
        The deviations with their weights.

    Raises:
        InputError: The shape or values are wrong, the mean is unknown, labels do not fit, or there
            are fewer than 2 groups.
    """
    values = np.asarray(images, dtype=np.float64)
    if values.ndim != 4 or len(values) < 2 or values.size == 0:
        raise InputError(f"images has shape {values.shape}, expected (N, H, W, C) with N >= 2")
    if not np.all(np.isfinite(values)):
        raise InputError("images holds a NaN or infinite value, expected finite values")
    if mean not in _MEANS:
        raise InputError(f"mean: got {mean!r}, expected one of {', '.join(map(repr, _MEANS))}")
    members, count = group_members(groups, len(values))
    if count < 2:
        raise InputError("groups holds 1 group, expected images of 2 or more objects")
    weights = 1 / (np.bincount(members)[members] * count)
    deviations = values - _mean(values, weights, mean)
    return WeightedDeviations(deviations, weights, members, count, 1 - (mean == "image") / count)


def group_members(groups: Groups, num_images: int) -> tuple[Int[np.ndarray, " N"], int]:
    """Return the number of each image's group and the number of groups.

    Args:
        groups: Labels (N,), text or numbers, or None for groups of one image each.
        num_images: Number of images N.

    Returns:
        Group of each image (N,), counted from 0, and the number of groups.

    Raises:
        InputError: The number of labels differs, or labels cannot be compared.
    """
    if groups is None:
        return np.arange(num_images), num_images
    if len(groups) != num_images:
        raise InputError(f"groups holds {len(groups)} labels, expected {num_images} as images")
    labels = _hashable(groups)
    number = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    return np.array([number[label] for label in labels], dtype=np.int64), len(number)


def mean_image(images: ArrayLike, groups: Groups = None) -> Float[np.ndarray, "H W C"]:
    """Return the mean image in which each group weighs the same.

    Args:
        images: Images (N, H, W, C).
        groups: Labels (N,), or None.

    Returns:
        The mean image (H, W, C) in units of the image.

    Raises:
        InputError: The number of labels differs.
    """
    values = np.asarray(images, dtype=np.float64)
    members, count = group_members(groups, len(values))
    return _mean(values, 1 / (np.bincount(members)[members] * count), "image")


def _hashable(groups: Sequence[Any] | np.ndarray) -> list[Any]:
    labels = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
    for label in labels:
        if not isinstance(label, Hashable):
            raise InputError(f"groups holds a {type(label).__name__}, expected text or numbers")
    return labels


def _mean(values: np.ndarray, weights: np.ndarray, mean: str) -> np.ndarray:
    if mean == "none":
        return np.zeros(values.shape[1:])
    # Relative to the first image, so that a value that never changes has deviations of exactly 0.
    average = values[0] + np.tensordot(weights, values - values[0], axes=1)
    return average if mean == "image" else average.mean(axis=(0, 1))


# Images of up to this many values are treated with an explicit matrix (32 MB) where it helps.
DENSE_LIMIT = 2048


def as_matrix(covariance: Covariance, shape: tuple[int, int, int]) -> Float[np.ndarray, "n n"]:
    """Return the matrix of a covariance on small images, column by column.

    Args:
        covariance: Any operator.
        shape: Shape (H, W, C) of the images, at most 2048 values.

    Returns:
        The matrix (n, n) of the flattened image, n = H*W*C.

    Raises:
        InputError: The size does not fit or is too large.

    Example:
        >>> from dal_jax.noise import iid
        >>> as_matrix(iid(2.0), (1, 2, 1)).tolist()
        [[4.0, 0.0], [0.0, 4.0]]
    """
    n = int(np.prod(shape))
    if n > DENSE_LIMIT:
        raise InputError(f"shape {shape} holds {n} values, expected at most {DENSE_LIMIT}")
    covariance.check(shape)
    columns = [covariance.apply(unit.reshape(shape)).ravel() for unit in np.eye(n)]
    return np.stack(columns, axis=1)


def whitening(covariance: Covariance, shape: tuple[int, ...]) -> Whitening:
    """Return the covariance itself if it can whiten, else its matrix (small images only).

    Args:
        covariance: Any operator.
        shape: Shape (H, W, C) of the images.

    Returns:
        An operator that can whiten images of that shape.

    Raises:
        InputError: The operator cannot whiten, and the images have more than 2048 values.
    """
    if isinstance(covariance, Whitening):
        return covariance
    explicit = dense(as_matrix(covariance, (shape[0], shape[1], shape[2])))
    assert isinstance(explicit, Whitening)
    return explicit


def whiten(covariance: Covariance, images: ArrayLike) -> Float[np.ndarray, "N H W C"]:
    """Turn noise into independent standard normal values, `A e` with `A Sigma A' = I`.

    A depends on the operator: it is triangular (innovations along the flattened image) for `dense`,
    `ar1`, `toeplitz` and `kronecker`, symmetric for `low_rank` and `circulant`, and triangular for
    `stationary`, exact up to 2048 values and block by block beyond (see there).

    Args:
        covariance: Covariance Sigma of one image.
        images: Noise (N, H, W, C), its mean removed, in units of the image.

    Returns:
        Values (N, H, W, C), without unit.

    Raises:
        InputError: Sizes do not fit, or the covariance is singular.

    Example:
        >>> from dal_jax.noise import iid
        >>> whiten(iid(2.0), np.ones((1, 1, 1, 1))).item()
        0.5
    """
    values = _batch(covariance, images)
    return whitening(covariance, values.shape[1:]).whiten(values)


def log_likelihood(covariance: Covariance, images: ArrayLike) -> Float[np.ndarray, " N"]:
    """Return the log density of each image under N(0, Sigma).

    `-(|A e|^2 + log det Sigma + n log(2 pi)) / 2`, with `A Sigma A' = I` and n = H*W*C. Where
    `covariance.is_exact(shape)` is False it is the density of the block approximation, itself a
    density and thus fit for comparing operators on held-out images.

    Args:
        covariance: Covariance Sigma of one image.
        images: Noise (N, H, W, C), its mean removed, in units of the image.

    Returns:
        Log densities (N,), in nats.

    Raises:
        InputError: Sizes do not fit, or the covariance is singular.

    Example:
        >>> from dal_jax.noise import iid
        >>> round(log_likelihood(iid(1.0), np.zeros((1, 1, 1, 1))).item(), 4)
        -0.9189
    """
    values = _batch(covariance, images)
    operator = whitening(covariance, values.shape[1:])
    squares = np.sum(operator.whiten(values) ** 2, axis=(1, 2, 3))
    constant = operator.log_determinant(values.shape[1:]) + values[0].size * np.log(2 * np.pi)
    return -0.5 * (squares + constant)
