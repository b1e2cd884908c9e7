"""Cells between evaluated points of a line, in which interpolation may decide membership.

A pixel's margin is `score - threshold` inside the observed region and its negative outside; a point
belongs to the truncation set when every margin is positive. Between two evaluated points a margin
is assumed to lie within an error E of its chord. E follows from the change of the chord's slope at
the cell's ends; it is a bound for a function with one kink in the cell, or with none and little
curvature.

The functions are traced by JAX for arrays of fixed length, of which the first entries count.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from dal_jax._typing import Array, Bool, Float, Int

# Errors of neighbouring nodes partly cancel, and the noise is several times the largest error.
ROUNDED = 1 / 8


class EvaluatedPoints(NamedTuple):
    """Evaluated points of a line, ascending, and what is left of the arrays' fixed length."""

    width: Float[Array, " N-1"]  # of the cells, standardized; 1 beyond the last cell
    margin: Float[Array, "N n"]  # of every pixel, units of the score
    inside: Bool[Array, " N"]  # the region is the observed one
    noise: Float[Array, " N"]  # largest rounding error of a margin, units of the score
    count: Int[Array, ""]  # number of points, 2 or more


class CellShares(NamedTuple):
    """Undecided parts of cells, as shares of their widths; start >= stop where all is decided.

    Left of `start` a cell is like its left node, right of `stop` like its right node.
    """

    start: Any  # (N - 1,), as the others
    stop: Any
    root: Any  # end of the set by the chords; NaN if both nodes agree
    error: Any  # E of the pixel that crosses there, or of the lowest one


def decide_cells(
    nodes: EvaluatedPoints, counts: Bool[Array, " n"], safety: Float[Array, ""]
) -> CellShares:
    """Find the part of every cell in which interpolation does not decide membership.

    `E = safety (h / 4) max(d, rms of d over the pixels, r) + noise`, with d the sum of the changes
    of slope at both ends of a cell of width h, and r the rounding error of d: a `ROUNDED` share of
    the largest one that the noise allows. (Where d is pure rounding, E is then the same on every
    machine.) A part is inside when every chord - E is positive, and outside when some chord + E is
    negative.

    Args:
        nodes: Evaluated points.
        counts: Pixels that decide membership, at least one.
        safety: Factor on the error, 1 or above.

    Returns:
        The cells; entries beyond `nodes.count - 1` mean nothing.
    """
    left, right = nodes.margin[:-1], nodes.margin[1:]
    error = safety * _interpolation_error(nodes, counts)
    slack = error + jnp.maximum(nodes.noise[:-1], nodes.noise[1:])[:, None]
    from_inside, to_inside = nodes.inside[:-1], nodes.inside[1:]
    start = _decided_share(left, right, slack, from_inside, counts)
    stop = 1 - _decided_share(right, left, slack, to_inside, counts)
    differ = from_inside != to_inside
    # The chords leave the set at the first exit, or enter it at the last entry.
    exits = _crossings(left, right, from_inside[:, None])
    rank = jnp.where(differ[:, None], exits, jnp.minimum(left, right))
    pixel = jnp.where(counts, rank, jnp.inf).argmin(axis=1)[:, None]
    share = jnp.abs(jnp.take_along_axis(exits, pixel, axis=1)[:, 0])
    return CellShares(
        start,
        stop,
        jnp.where(differ, jnp.clip(share, start, jnp.maximum(start, stop)), jnp.nan),
        jnp.take_along_axis(error, pixel, axis=1)[:, 0],
    )


def _at_both_ends(change: Array, cells: Array) -> Array:
    """Add the changes at both ends of each cell; at an outermost end the other one counts twice."""
    number = jnp.arange(len(change) + 1, dtype=cells.dtype)
    number = number.reshape(-1, *(1,) * (change.ndim - 1))
    padded = jnp.concatenate([change[:1], change, change[-1:]])
    before, after = padded[:-1], padded[1:]
    return jnp.where(number == cells - 1, 2 * before, before + after)


def _interpolation_error(nodes: EvaluatedPoints, counts: Array) -> Array:
    cells = nodes.count - 1
    slope = jnp.diff(nodes.margin, axis=0) / nodes.width[:, None]
    total = _at_both_ends(jnp.abs(jnp.diff(slope, axis=0)), cells)
    # No pixel is trusted to be smoother than the others: its kinks may lie between the nodes.
    squares = jnp.sum(jnp.where(counts, total * total, 0), axis=1)
    rest = jnp.sqrt(squares / jnp.count_nonzero(counts).astype(squares.dtype))
    blur = ROUNDED * (nodes.noise[:-1] + nodes.noise[1:]) / nodes.width
    least = jnp.maximum(rest, _at_both_ends(blur[:-1] + blur[1:], cells))
    error = nodes.width[:, None] / 4 * jnp.maximum(total, least[:, None])
    return jnp.where(cells > 1, error, jnp.inf)  # of a single cell nothing is known


def _decided_share(near: Array, far: Array, slack: Array, inside: Array, counts: Array) -> Array:
    """Return the share of each cell, from its near end on, that is decided to be like that end."""
    # From an inside end: until the first margin may be lost. From an outside end: as long as one
    # and the same pixel is surely lost.
    sign = jnp.where(inside, 1, -1).astype(near.dtype)
    until = _until(sign[:, None] * near, sign[:, None] * far, slack)
    return sign * jnp.where(counts, sign[:, None] * until, jnp.inf).min(axis=1)


def _until(near: Array, far: Array, slack: Array) -> Array:
    """Return the share of each cell up to which a chord stays above the slack."""
    falls = (far <= slack) & (near > slack)
    share = (near - slack) / jnp.where(falls, near - far, 1)
    return jnp.where(near <= slack, 0, jnp.where(falls, share, 1))


def _crossings(left: Array, right: Array, from_inside: Array) -> Array:
    """Return the share at which each chord leaves the set, or minus that at which it enters."""
    crosses = (left > 0) != (right > 0)
    share = left / jnp.where(crosses, left - right, 1)
    leaves = jnp.where(crosses & (right <= 0), share, 1)
    enters = jnp.where(crosses & (left <= 0), share, 0)
    return jnp.where(from_inside, leaves, -enters)
