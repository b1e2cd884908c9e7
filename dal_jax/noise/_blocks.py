"""Whitening of images block by block, each block given the earlier blocks that touch it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._likelihood import DENSE_LIMIT

# Larger images are divided into blocks that are treated jointly with their surroundings, with at
# most this many values in all: a dozen Cholesky factors of this size cost less than the filtering
# of a few images.
_JOINT = 1024

# Covariance between the values of two lists of pixels: (a, 2), (b, 2) -> (a C, b C).
Between = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Geometry(NamedTuple):
    """Pixels of a block and of those before it, relative to its first pixel."""

    height: int  # of the block, in pixels
    width: int
    above: int  # rows of context above the block
    left: int  # columns of context to its left
    right: int  # columns of context above it, to its right


class Block(NamedTuple):
    """One block of the image."""

    row: int  # of its first pixel
    column: int
    geometry: Geometry


class Factor(NamedTuple):
    """Linear map of one geometry, on the values of its context and its block in this order."""

    filter: Float[np.ndarray, "t ct"]  # last rows of the inverse Cholesky factor
    log_determinant: float  # of the block given its context


class BlockPlan(NamedTuple):
    """The blocks of an image, and the factors of their geometries."""

    blocks: tuple[Block, ...]
    factors: dict[Geometry, Factor]

    def is_exact(self) -> bool:
        """Return whether one block holds the image."""
        return len(self.blocks) == 1

    def log_determinant(self) -> float:
        """Return the sum over the blocks of the log determinant given the context."""
        return sum(self.factors[block.geometry].log_determinant for block in self.blocks)

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        """Return the innovations of each block given its context."""
        result = np.empty_like(images)
        for row, column, geometry in self.blocks:
            rows, columns = np.concatenate(_pixels(geometry)).T
            values = images[:, row + rows, column + columns].reshape(len(images), -1)
            size = (len(images), geometry.height, geometry.width, images.shape[3])
            inside = np.s_[:, row : row + geometry.height, column : column + geometry.width]
            result[inside] = (values @ self.factors[geometry].filter.T).reshape(size)
        return result


def plan_blocks(
    between: Between, shape: tuple[int, int, int], limit: int = DENSE_LIMIT
) -> BlockPlan:
    """Return the blocks of an image; one block if the image has at most `limit` values.

    `p(e) = prod_b p(e_b | e_a, a before b and touching b)`, with the blocks taken row by row. A
    block and its at most four predecessors together hold at most `limit` and at most 1024 values.

    Args:
        between: Covariance between two lists of pixels, a function of their displacement.
        shape: Shape (H, W, C) of the images.
        limit: Largest number of values of an image that is treated in one piece, >= 1.

    Returns:
        The blocks with their factors.

    Raises:
        InputError: A covariance is singular.

    Source: Stein, Chi and Welty, J. R. Statist. Soc. B 66 (2004) 275-296.
    """
    height, width, channels = shape
    side = max(height, width)
    if height * width * channels > limit:
        side = max(1, int(np.sqrt(min(limit, _JOINT) / (5 * channels))))
    blocks = tuple(
        Block(row, column, _geometry(row, column, side, height, width))
        for row in range(0, height, side)
        for column in range(0, width, side)
    )
    geometries = {block.geometry for block in blocks}
    return BlockPlan(blocks, {geometry: _factor(between, geometry) for geometry in geometries})


def _geometry(row: int, column: int, side: int, height: int, width: int) -> Geometry:
    above, left = min(side, row), min(side, column)
    wide = min(side, width - column)
    right = min(side, width - column - wide) if above else 0
    return Geometry(min(side, height - row), wide, above, left, right)


def _pixels(geometry: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels (k, 2) above the block, to its left, and of the block."""
    height, width, above, left, right = geometry
    return (
        _rectangle(range(-above, 0), range(-left, width + right)),
        _rectangle(range(height), range(-left, 0)),
        _rectangle(range(height), range(width)),
    )


def _rectangle(rows: range, columns: range) -> np.ndarray:
    return np.array([(y, x) for y in rows for x in columns], dtype=np.int64).reshape(-1, 2)


def _factor(between: Between, geometry: Geometry) -> Factor:
    above, left, block = _pixels(geometry)
    pixels = np.concatenate([above, left, block])
    matrix = between(pixels, pixels)
    own = len(matrix) * len(block) // len(pixels)
    try:
        root = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise InputError(
            "noise is singular to working precision, expected a spectrum without zeros to whiten"
        ) from None
    units = np.eye(len(root))[:, -own:]
    rows = solve_triangular(root, units, lower=True, trans=1).T
    return Factor(rows, 2 * float(np.sum(np.log(np.diag(root)[-own:]))))
