"""The cells of a line by numpy, with which those of the devices are compared."""

from typing import NamedTuple

import numpy as np

from dal_jax._typing import Bool, Float
from dal_jax.search._cells import ROUNDED


class EvaluatedPoints(NamedTuple):
    """Evaluated points of a line, ascending."""

    z: Float[np.ndarray, " N"]  # standardized
    margin: Float[np.ndarray, "N n"]  # of every pixel, units of the score
    inside: Bool[np.ndarray, " N"]  # the region is the observed one
    noise: Float[np.ndarray, " N"]  # largest rounding error of a margin, units of the score


class Cells(NamedTuple):
    """The N - 1 cells between neighbouring points; start >= stop where all of a cell is decided.

    Left of `start` a cell is like its left node, right of `stop` like its right node.
    """

    start: Float[np.ndarray, " N-1"]  # standardized z
    stop: Float[np.ndarray, " N-1"]
    root: Float[np.ndarray, " N-1"]  # end of the set by the chords; NaN if both nodes agree
    error: Float[np.ndarray, " N-1"]  # E of the pixel that crosses there, or of the lowest one


def decide_cells(nodes: EvaluatedPoints, safety: float) -> Cells:
    """As `dal_jax.search._cells.decide_cells`, in places on the line."""
    width = np.diff(nodes.z)
    error = safety * _interpolation_error(nodes, width)
    left, right = nodes.margin[:-1], nodes.margin[1:]
    slack = error + np.maximum(nodes.noise[:-1], nodes.noise[1:])[:, None]
    start = _decided_share(left, right, slack, nodes.inside[:-1])
    stop = 1 - _decided_share(right, left, slack, nodes.inside[1:])
    differ = np.flatnonzero(nodes.inside[:-1] != nodes.inside[1:])
    pixel = np.minimum(left, right).argmin(axis=1)
    share, pixel[differ] = _exit(left[differ], right[differ], nodes.inside[differ])
    low, high = nodes.z[:-1], nodes.z[1:]
    cells = Cells(
        np.where(start < stop, low + start * width, high),
        np.where(start < stop, low + stop * width, high),
        np.full(len(width), np.nan),
        np.take_along_axis(error, pixel[:, None], axis=1)[:, 0],
    )
    share = np.clip(share, start[differ], np.maximum(start, stop)[differ])
    cells.root[differ] = low[differ] + share * width[differ]
    return cells


def _interpolation_error(nodes: EvaluatedPoints, width: np.ndarray) -> np.ndarray:
    slope = np.diff(nodes.margin, axis=0) / width[:, None]
    change = np.abs(np.diff(slope, axis=0))
    if not len(change):
        return np.full_like(slope, np.inf)
    # Beyond the last nodes the changes of slope are unknown and count like the outermost ones.
    total = np.concatenate([2 * change[:1], change[:-1] + change[1:], 2 * change[-1:]])
    # No pixel is trusted to be smoother than the others: its kinks may lie between the nodes.
    rest = np.sqrt(np.einsum("cp,cp->c", total, total) / total.shape[1])
    least = np.maximum(rest, _rounding_of_changes(nodes.noise, width))
    return width[:, None] / 4 * np.maximum(total, least[:, None])


def _rounding_of_changes(noise: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return the rounding errors of the changes of slope at both ends of each cell."""
    slope = ROUNDED * (noise[:-1] + noise[1:]) / width
    change = slope[:-1] + slope[1:]
    return np.concatenate([2 * change[:1], change[:-1] + change[1:], 2 * change[-1:]])


def _decided_share(
    near: np.ndarray, far: np.ndarray, slack: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    """Return the share of each cell, from its near end on, that is decided to be like that end."""
    share = np.empty(len(near))
    # From an inside end: until the first margin may be lost.
    share[inside] = _until(near[inside], far[inside], slack[inside]).min(axis=1)
    # From an outside end: as long as one and the same pixel is surely lost.
    share[~inside] = _until(-near[~inside], -far[~inside], slack[~inside]).max(axis=1)
    return share


def _until(near: np.ndarray, far: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """Return the share of each cell up to which a chord stays above the slack."""
    until = np.ones_like(near)
    falls = (far <= slack) & (near > slack)
    np.divide(near - slack, near - far, out=until, where=falls)
    until[near <= slack] = 0.0
    return until


def _exit(left: np.ndarray, right: np.ndarray, from_inside: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the share at which the chords leave the set (or enter it, from outside), and the
    pixel.
    """
    crosses = (left > 0) != (right > 0)
    crossing = np.divide(left, left - right, out=np.full_like(left, np.nan), where=crosses)
    leaves = np.where(crosses & (right <= 0), crossing, 1.0)
    enters = np.where(crosses & (left <= 0), crossing, 0.0)
    pixel = np.where(from_inside, leaves.argmin(axis=1), enters.argmax(axis=1))
    rows = np.arange(len(left))
    return np.where(from_inside, leaves[rows, pixel], enters[rows, pixel]), pixel
