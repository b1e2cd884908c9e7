"""Tests of regions fixed in advance: what a noise model must pass before any selection."""

from typing import NamedTuple

import numpy as np

from dal_jax._typing import Bool, Float
from dal_jax.noise._covariance import Covariance

_SQUARES = (1, 2, 3, 5, 8, 12)
_CRITICAL = 1.959963984540054  # two-sided normal test at 0.05
_POSITIONS = 4  # along each axis


class Shape(NamedTuple):
    """A rectangle of pixels."""

    height: int
    width: int


class Scores(NamedTuple):
    """The z scores of the means of rectangles, at fixed positions of each image."""

    shapes: tuple[Shape, ...]
    rejected: Float[np.ndarray, "N shapes"]  # share of the positions with |z| > 1.96
    squares: Float[np.ndarray, "N shapes"]  # mean of z^2 over the positions


def fixed_shapes(height: int, width: int) -> tuple[Shape, ...]:
    """Returns the rectangles that are tested on images of a size.

    Squares of side 1, 2, 3, 5, 8 and 12 as they fit, and a row and a column of half the image.

    Args:
        height: of the images, in pixels.
        width: likewise.

    Returns:
        Shapes without repetition.
    """
    squares = [Shape(side, side) for side in _SQUARES if side <= min(height, width)]
    thin = [Shape(1, max(1, width // 2)), Shape(max(1, height // 2), 1)]
    return tuple(dict.fromkeys(squares + thin))


def region_scores(
    covariance: Covariance, deviations: Float[np.ndarray, "N H W C"], share: float = 1.0
) -> Scores:
    """Returns how often the mean of a fixed rectangle is called different from the mean image.

    `z = nu . d / sqrt(share nu' Sigma nu)`, nu the mean over the rectangle and all channels, at up
    to 4 x 4 positions spread evenly over the image; rejected where |z| > 1.96.

    Args:
        covariance: Sigma.
        deviations: (N, H, W, C) images, a mean removed.
        share: of the variance that the removed mean has left, in (0, 1].

    Returns:
        Scores, each image by itself.

    Raises:
        InputError: sizes that do not fit.
    """
    height, width = deviations.shape[1:3]
    shapes = fixed_shapes(height, width)
    rejected, squares = np.empty((2, len(deviations), len(shapes)))
    for k, shape in enumerate(shapes):
        masks = [_mask(shape, (y, x), (height, width)) for y, x in _positions(shape, height, width)]
        z = np.stack([_z(covariance, deviations, mask, share) for mask in masks], axis=1)
        rejected[:, k] = np.mean(np.abs(z) > _CRITICAL, axis=1)
        squares[:, k] = np.mean(z**2, axis=1)
    return Scores(shapes, rejected, squares)


def _positions(shape: Shape, height: int, width: int) -> list[tuple[int, int]]:
    rows, columns = _spread(height - shape.height + 1), _spread(width - shape.width + 1)
    return [(y, x) for y in rows for x in columns]


def _spread(count: int) -> list[int]:
    """Returns the middles of four equal parts of 0..count-1, all where there are fewer."""
    parts = min(_POSITIONS, count)
    return [int((k + 0.5) * count / parts) for k in range(parts)]


def _mask(shape: Shape, first: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    mask = np.zeros(size, dtype=bool)
    mask[first[0] : first[0] + shape.height, first[1] : first[1] + shape.width] = True
    return mask


def _z(
    covariance: Covariance,
    deviations: Float[np.ndarray, "N H W C"],
    mask: Bool[np.ndarray, "H W"],
    share: float,
) -> Float[np.ndarray, " N"]:
    size = deviations.shape[1:]
    nu = np.broadcast_to(mask[:, :, None] / (mask.sum() * size[2]), size)
    variance = share * float(np.sum(nu * covariance.apply(nu)))
    return deviations[:, mask].mean(axis=(1, 2)) / np.sqrt(variance)
