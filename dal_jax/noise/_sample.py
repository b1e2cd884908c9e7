"""Images as a sample: their mean is removed, and images of one object count as one."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float, Int

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
        raise InputError(f"mean is {mean!r}, expected one of {', '.join(map(repr, _MEANS))}")
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
