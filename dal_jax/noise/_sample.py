"""Images as a sample: their mean removed, images of one object counted as one."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float, Int

Groups = Sequence[Any] | np.ndarray | None

_MEANS = ("image", "pixel", "none")


class WeightedDeviations(NamedTuple):
    """Deviations of images from their mean, with what a covariance estimate needs of them."""

    deviations: Float[np.ndarray, "N H W C"]  # in units of the image
    weights: Float[np.ndarray, " N"]  # 1 / (size of the group * number of groups), sum 1
    members: Int[np.ndarray, " N"]  # group of each image, 0 to count - 1
    count: int  # number of groups: the effective number of images
    freedom: float  # weighted mean of squares / freedom is the unbiased variance

    def scaled(self) -> Float[np.ndarray, "N H W C"]:
        """Returns deviations y with `sum_i y_i y_i' = S`, the sample covariance."""
        factors = np.sqrt(self.weights / self.freedom)
        return self.deviations * factors[:, None, None, None]


def sample_of(images: ArrayLike, groups: Groups = None, mean: str = "image") -> WeightedDeviations:
    """Returns images as a sample in which each group weighs the same.

    Images of one group (exposures of one object, slices of one patient) may be as good as copies
    of each other. Each weighs `1 / (m G)`, m the size of its group and G the number of groups,
    and the removed mean costs `1 / G` of the variance, as if the groups were the images.

    Args:
        images: (N, H, W, C), finite, of one preprocessing.
        groups: N labels of the objects; None: each image is an object of its own.
        mean: what is removed: "image" the mean image, "pixel" the mean pixel (one value per
            channel), "none" nothing (the mean is known to be zero).

    Returns:
        WeightedDeviations.

    Raises:
        InputError: wrong shape or values, another mean, labels that do not fit, or fewer than 2
            groups.
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
    """Returns the number of each image's group and the number of groups.

    Args:
        groups: N labels (text or numbers), or None for groups of one image each.
        num_images: N.

    Returns:
        (N,) group of each image from 0, and their number.

    Raises:
        InputError: another number of labels, or labels that cannot be compared.
    """
    if groups is None:
        return np.arange(num_images), num_images
    if len(groups) != num_images:
        raise InputError(f"groups holds {len(groups)} labels, expected {num_images} as images")
    labels = _hashable(groups)
    number = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    return np.array([number[label] for label in labels], dtype=np.int64), len(number)


def mean_image(images: ArrayLike, groups: Groups = None) -> Float[np.ndarray, "H W C"]:
    """Returns the mean image in which each group weighs the same.

    Args:
        images: (N, H, W, C).
        groups: N labels, or None.

    Returns:
        (H, W, C), in units of the image.

    Raises:
        InputError: another number of labels.
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
    # From the first image on, so that a value that never changes has deviations of exactly 0.
    average = values[0] + np.tensordot(weights, values - values[0], axes=1)
    return average if mean == "image" else average.mean(axis=(0, 1))
