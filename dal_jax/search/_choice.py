"""Choice of the next points of a line: what is decided, what matters, and where to look next.

The functions are traced by JAX for one line, in float64, with arrays of fixed length of which the
first entries count. Nothing here depends on the images.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from dal_jax._typing import Array, Bool, Float, Int
from dal_jax.inference import FOUND, KNOWN, UNKNOWN, Pieces, Seen, log_piece_mass, tail_quantile
from dal_jax.search._cells import CellShares

# Shares of the requested precision that undecided cells, and the tails, may use up.
CELLS_SHARE, TAILS_SHARE = 0.2, 0.25
# The ends of a randomized test's interval lie about this many standard deviations from the
# statistic. With either end as the mean, the open part may have the first share of the probability
# of the set, with the estimate as the mean the second. The tails of a 95% interval hold 0.025 and
# the estimate separates halves, so that each moves by at most about 0.1 standard deviations.
INTERVAL_REACH, INTERVAL_SHARE, ESTIMATE_SHARE = 2.25, 4e-3, 2e-2
# Ends are searched in float64 once they are known this well: float32 cannot resolve much more.
WIDE_BELOW = 3e-4
# A cell this narrow (relative to |z|, or 1) is not divided any more.
NARROWEST = 1e-9
# Distance of new points from the nodes of a cell, as a share of its width.
BORDER = 1e-3
# A line of more points than this does not finish its cells before it goes further out.
LONG = 64
# Steps outwards: this many standard deviations, or this share of the searched length.
STRIDE, GROWTH = 1.0, 0.2
# While a decision is uncertain the search continues with this share of the precision, repeatedly,
# down to a precision that exhausts the default range of z.
DEEPER, DEEPEST = 1e-2, 1e-40
# z_obs may miss its interval by this share of max(1, |z_obs|): the rounding of an end.
_EDGE = 1e-9


class LineState(NamedTuple):
    """Settings of the search of a line and where it stands, as numbers of float64; NaN: none."""

    z_obs: Any  # statistic that the selection saw, standardized
    spread: Any  # of the added noise, in standard deviations of the tested statistic
    shift: Any  # value of that noise
    alternative: Any  # index into `ALTERNATIVES`
    limit: Any  # largest |z|
    precision: Any  # that of tails and cells; falls below the requested one
    width: Any  # of the bounds on p at which the search may end
    alpha: Any  # level whose decision suffices
    level: Any  # level at which the decision must be certain
    shares: Any  # number of tests that share alpha and level
    pending: Any  # 1 if the host knows that a decision under another law is not certain
    elsewhere: Any  # 1 if the host has to tell
    spacing: Any  # of the grid
    sections: Any  # parts into which a cell is divided
    tolerance: Any  # accuracy of the ends
    safety: Any  # factor on interpolation errors
    noise: Any  # rounding error of a margin in float32, or in float64 if that is all there is
    wide_noise: Any  # the same in float64


class Nodes(NamedTuple):
    """Evaluated points of a line, ascending and different; beyond the last z is infinite."""

    z: Float[Array, " N"]  # standardized
    slot: Int[Array, " N"]  # number in the order of evaluation
    inside: Bool[Array, " N"]  # the region is the observed one
    lowest: Float[Array, " N"]  # lowest margin, units of the score
    noise: Float[Array, " N"]  # largest rounding error of a margin, units of the score
    count: Int[Array, ""]


class Judged(NamedTuple):
    """Cells between the nodes, and the sets that follow from them."""

    start: Float[Array, " N-1"]  # of the undecided part; start >= stop where all is decided
    stop: Float[Array, " N-1"]
    root: Float[Array, " N-1"]  # end of the set in the cell; NaN if both nodes agree
    error: Float[Array, " N-1"]  # of the interpolation, units of the score
    pieces: Pieces  # in standard deviations of what selection saw
    holds: Bool[Array, ""]  # whether the known part of the set holds the observed value


class Chosen(NamedTuple):
    """Points to be evaluated next."""

    z: Any  # (P,)
    wide: Any  # (P,), in float64
    total: Any  # number of points; more than P: they need more room
    precision: Any  # that the search has come to


def arrange(points: Float[Array, "4 N"], count: Int[Array, ""]) -> Nodes:
    """Sort evaluated points; of two at one place the more accurate one stays.

    Args:
        points: z, whether inside (0 or 1), lowest margin and noise, in the order of evaluation.
        count: Number of points.
    """
    z, inside, lowest, noise = points
    size = len(z)
    slot = jnp.arange(size, dtype=count.dtype)
    z, _, order = lax.sort((jnp.where(slot < count, z, jnp.inf), noise, slot), num_keys=2)
    first = jnp.concatenate([jnp.ones(1, bool), z[1:] > z[:-1]]) & (z < jnp.inf)
    place = jnp.where(first, jnp.cumsum(first, dtype=count.dtype) - 1, size)
    different = first.sum(dtype=count.dtype)
    slot = jnp.zeros_like(order).at[place].set(order, mode="drop")
    z = jnp.full(size, jnp.inf).at[place].set(z, mode="drop")
    return Nodes(z, slot, inside[slot] > 0, lowest[slot], noise[slot], different)


def widths(nodes: Nodes) -> Float[Array, " N-1"]:
    """Return the widths of the cells; 1 beyond the last one."""
    cells = jnp.arange(len(nodes.z) - 1, dtype=nodes.count.dtype) < nodes.count - 1
    ends = jnp.where(nodes.z < jnp.inf, nodes.z, 0)
    return jnp.where(cells, ends[1:] - ends[:-1], 1.0)


def judge_sets(nodes: Nodes, shares: CellShares, state: LineState) -> Judged:
    """Return the cells in places on the line, and the sets that they leave known and open."""
    cells = jnp.arange(len(nodes.z) - 1, dtype=nodes.count.dtype) < nodes.count - 1
    low, high = (jnp.where(cells, v, nodes.z[0]) for v in (nodes.z[:-1], nodes.z[1:]))
    width = widths(nodes)
    shares = CellShares(*(share.astype(jnp.float64) for share in shares))
    open_ = cells & (shares.start < shares.stop)
    start = jnp.where(open_, low + shares.start * width, high)
    stop = jnp.where(open_, low + shares.stop * width, high)
    root = low + shares.root * width
    left, right = nodes.inside[:-1] & cells, nodes.inside[1:] & cells
    first = jnp.where(left, low, jnp.where(right, root, high))
    last = jnp.where(right, high, jnp.where(left, root, high))
    # What is known of a cell lies on both sides of its undecided part.
    before = jnp.where(open_, jnp.minimum(last, start), last)
    after = jnp.where(open_, jnp.maximum(first, stop), last)
    known = _merged(_mixed(first, after), _mixed(before, last))
    ends = nodes.z[0], nodes.z[nodes.count - 1]
    infinite = jnp.full(1, jnp.inf)
    unknown = _merged(
        jnp.concatenate([-infinite, jnp.where(open_, start, 0), ends[1][None]]),
        jnp.concatenate([ends[0][None], jnp.where(open_, stop, 0), infinite]),
    )
    pieces = _together({KNOWN: known, UNKNOWN: unknown, FOUND: _merged(first, last)})
    slack = _EDGE * jnp.maximum(1.0, jnp.abs(state.z_obs))
    holds = (known[0] - slack <= state.z_obs) & (state.z_obs <= known[1] + slack)
    holds &= jnp.arange(len(holds), dtype=known[2].dtype) < known[2]
    return Judged(start, stop, root, shares.error, pieces, holds.any())


def _mixed(a: Array, b: Array) -> Array:
    return jnp.stack([a, b], axis=1).reshape(-1)


def _merged(low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Join intervals that touch, of those with low < high, which ascend; with their number."""
    some = low < high
    reach = lax.cummax(jnp.where(some, high, -jnp.inf))
    before = jnp.concatenate([jnp.full(1, -jnp.inf), reach[:-1]])
    starts = some & ((jnp.cumsum(some) == 1) | (low > before))
    number, size = jnp.cumsum(starts) - 1, len(low)
    new_low = jnp.zeros(size).at[jnp.where(starts, number, size)].set(low, mode="drop")
    new_high = jnp.full(size, -jnp.inf).at[jnp.where(some, number, size)].max(high, mode="drop")
    return new_low, jnp.where(new_high > -jnp.inf, new_high, 0), starts.sum()


def _together(sets: dict[int, tuple[Array, Array, Array]]) -> Pieces:
    places, offset = [], jnp.zeros_like(sets[KNOWN][2])
    size = sum(len(low) for low, _, _ in sets.values())
    for low, _, count in sets.values():
        own = jnp.arange(len(low), dtype=count.dtype)
        places.append(jnp.where(own < count, offset + own, size))
        offset = offset + count
    at = jnp.concatenate(places)
    low, high = (jnp.concatenate([found[k] for found in sets.values()]) for k in (0, 1))
    member = jnp.concatenate([jnp.full(len(found[0]), k) for k, found in sets.items()])
    low, high, member = (
        jnp.zeros(size, v.dtype).at[at].set(v, mode="drop") for v in (low, high, member)
    )
    return Pieces(low, high, member, offset)


def seen_of(state: LineState) -> Seen:
    """Return the observed statistic in its own standard deviations."""
    z = state.z_obs * jnp.hypot(1.0, state.spread) - state.shift
    return Seen(z, state.shift, state.spread, state.alternative.astype(int))


def choose(
    nodes: Nodes, judged: Judged, state: LineState, bounds: Float[Array, " 3"], room: int
) -> Chosen:
    """Choose the next points: in the undecided cells that matter, or further out.

    Cells come first: what is found in them says how far out the search must go. A score with many
    jumps may keep its cells undecided until the evaluations are exhausted, and its bounds would be
    those of the first reach. Cells of a long line therefore come first only while they hold more of
    the probability than what lies further out.

    Args:
        nodes: Evaluated points.
        judged: The cells between them.
        state: Settings of the search.
        bounds: p and its bounds, where there is an alpha or a level; else unused.
        room: Number P of points that the result has room for.

    Returns:
        The points; none if the bounds are tight and the ends are known.
    """
    decided = _is_decided(bounds, state)
    cells, doubtful = _Cells.of(nodes, judged, state), _doubtful(nodes, state)
    limits = _limits(judged, state)
    doubts = doubtful.sum()

    def look(carry: Any) -> Any:
        _, precision, *_ = carry
        needed = cells.needed(limits, precision, nodes, judged, state)
        reach = _needed_range(limits, precision, state)
        counts = jnp.where(needed, cells.parts, 0)
        outwards = _steps(nodes, reach, state)
        nothing = (doubts + counts.sum() == 0) & (outwards[0] + outwards[2] == 0)
        deeper = nothing & ~decided & (precision > DEEPEST)
        return deeper, jnp.where(deeper, DEEPER * precision, precision), counts, outwards

    steps = (jnp.zeros_like(doubts), state.z_obs) * 2
    none = jnp.zeros(len(judged.start), doubts.dtype)
    first = jnp.ones((), bool), state.precision, none, steps
    _, precision, counts, outwards = lax.while_loop(lambda carry: carry[0], look, first)
    within = doubts + counts.sum()
    number = jnp.arange(room, dtype=counts.dtype)
    z, wide = _within(number, nodes, judged, cells, doubtful, counts, state)
    out = _outside(number, nodes, outwards, state)
    further = outwards[0] + outwards[2]
    cells_first = (nodes.count <= LONG) | _cells_hold_more(nodes, judged, state)
    inwards = (within > 0) & ((further == 0) | cells_first)
    total = jnp.where(inwards, within, further)
    enough = ~jnp.isnan(state.alpha) & decided & _is_enough(bounds, state)
    return Chosen(
        jnp.where(inwards, z, out),
        jnp.where(inwards, wide, False),
        jnp.where(enough, 0, total),
        precision,
    )


def _certain(bounds: Array, level: Array, shares: Array) -> Array:
    """Return whether bounds determine the decisions at a level, its half, its third and so on."""

    def decide(number: Array, certain: Array) -> Array:
        own = level / number.astype(level.dtype)
        return certain & ((bounds[2] <= own) | (bounds[1] > own))

    return lax.fori_loop(1, shares.astype(int) + 1, decide, jnp.ones((), bool))


def _is_decided(bounds: Array, state: LineState) -> Array:
    certain = _certain(bounds, state.level, state.shares) | jnp.isnan(bounds[0])
    certain = jnp.where(state.elsewhere > 0, state.pending == 0, certain)
    return jnp.isnan(state.level) | certain


def _is_enough(bounds: Array, state: LineState) -> Array:
    tight = bounds[2] - bounds[1] <= jnp.maximum(state.width, 1e-12)
    certain = _certain(bounds, state.alpha, state.shares)
    return ~jnp.isnan(bounds[0]) & (tight | certain)


def _doubtful(nodes: Nodes, state: LineState) -> Array:
    """Mark points in float32 whose membership rounding may decide."""
    own = jnp.arange(len(nodes.z), dtype=nodes.count.dtype) < nodes.count
    return own & (nodes.noise > state.wide_noise) & (jnp.abs(nodes.lowest) <= nodes.noise)


def _log_set(judged: Judged, mean: Array) -> Array:
    """Return the log probability of all that was found, for a mean of z."""
    pieces = judged.pieces
    own = jnp.arange(len(pieces.low), dtype=pieces.count.dtype) < pieces.count
    logs = log_piece_mass(pieces.low - mean, pieces.high - mean)
    logs = jnp.where(own & (pieces.member == FOUND), logs, -jnp.inf)
    top = jnp.maximum(logs.max(), -1e300)
    return top + jnp.log(jnp.exp(logs - top).sum())


def _cells_hold_more(nodes: Nodes, judged: Judged, state: LineState) -> Array:
    """Return whether the undecided parts of cells hold more of the probability than all that lies
    further out, up to the limit.
    """
    outside_low = jnp.stack([-state.limit, nodes.z[nodes.count - 1]])
    outside_high = jnp.stack([nodes.z[0], state.limit])
    low = jnp.concatenate([outside_low, judged.start])
    logs = log_piece_mass(low, jnp.concatenate([outside_high, judged.stop]))
    masses = jnp.exp(logs - jnp.maximum(logs.max(), -1e300))
    return masses[2:].sum() > masses[:2].sum()


class _Limits(NamedTuple):
    """What may be left open with several means of z: 0, the ends of the interval, the estimate.

    The estimate is close to the value of the statistic. Without randomization only 0 counts.
    """

    means: Array  # (4,)
    logs: Array  # (4,), log probability of all that was found, with each mean
    count: Array  # 4 or 1

    def allowed(self, zero: Array) -> Array:
        """Return log probabilities (4,) that may be left open, given that share for 0."""
        shares = [jnp.asarray(v) for v in (INTERVAL_SHARE, INTERVAL_SHARE, ESTIMATE_SHARE)]
        return jnp.log(jnp.stack([zero, *shares])) + self.logs


def _limits(judged: Judged, state: LineState) -> _Limits:
    scale = jnp.hypot(1.0, state.spread)
    way = jnp.asarray([-1.0, 1.0, 0.0])
    means = state.z_obs + (way * INTERVAL_REACH - state.shift) / scale
    means = jnp.concatenate([jnp.zeros(1), means])
    count = jnp.where(state.spread > 0, 4, 1)

    def put(number: Array, logs: Array) -> Array:
        return logs.at[number].set(_log_set(judged, means[number]))

    return _Limits(means, lax.fori_loop(0, count, put, jnp.zeros(4)), count)


class _Cells(NamedTuple):
    """Cells that may be divided."""

    length: Array  # of the undecided part, standardized; 0 where there is none
    width: Array
    changes: Array  # the set has an end in the cell
    around: Array  # two points around that end
    parts: Array  # points that divide the cell

    @classmethod
    def of(cls, nodes: Nodes, judged: Judged, state: LineState) -> "_Cells":
        length, width = judged.stop - judged.start, widths(nodes)
        own = jnp.arange(len(width), dtype=nodes.count.dtype) < nodes.count - 1
        changes = own & (nodes.inside[1:] != nodes.inside[:-1])
        around = changes & (length < width / 2)
        sections = state.sections.astype(int)
        parts = jnp.where(changes, sections, jnp.maximum(sections - 1, 2)) - 1
        return cls(jnp.where(own, length, 0), width, changes, around, jnp.where(around, 2, parts))

    def needed(
        self,
        limits: _Limits,
        precision: Array,
        nodes: Nodes,
        judged: Judged,
        state: LineState,
    ) -> Array:
        """Mark the cells to be divided."""
        scale = jnp.maximum(1.0, jnp.abs(judged.start))
        allowed = limits.allowed(CELLS_SHARE * precision)

        def also(number: Array, negligible: Array) -> Array:
            return negligible & self._negligible(limits.means[number], allowed[number], judged)

        # The estimate bounds no cells.
        every = jnp.ones(len(self.length), bool)
        negligible = lax.fori_loop(0, jnp.minimum(limits.count, 3), also, every)
        needed = (self.length > 0) & (~negligible | self._adjacent(nodes, judged, state))
        needed |= self.changes & (self.length > state.tolerance * scale)
        return needed & (self.width > NARROWEST * scale)

    def _negligible(self, mean: Array, allowed: Array, judged: Judged) -> Array:
        """Mark the least probable undecided cells that may stay open."""
        some = self.length > 0
        mass = log_piece_mass(
            judged.start - mean, jnp.where(some, judged.stop, judged.start) - mean
        )
        mass = jnp.where(some, mass, -jnp.inf)
        finite = jnp.where(allowed > -jnp.inf, allowed, 0)
        share = jnp.exp(jnp.minimum(mass - finite, 700.0))
        number = jnp.arange(len(mass))
        before = (mass < mass[:, None]) | ((mass == mass[:, None]) & (number <= number[:, None]))
        total = jnp.where(before, share, 0).sum(axis=1)
        return (mass == -jnp.inf) | ((total <= 1) & (allowed > -jnp.inf))

    def _adjacent(self, nodes: Nodes, judged: Judged, state: LineState) -> Array:
        """Mark the two cells at the observed point while nothing is decided on either side."""
        at = (nodes.z < state.z_obs).sum(dtype=nodes.count.dtype)
        number = jnp.arange(len(self.length), dtype=at.dtype)
        open_ = self.length > 0
        joined = open_[:-1] & open_[1:] & (judged.stop[:-1] >= judged.start[1:])
        hidden = (joined & (number[1:] == at)).any()
        return hidden & ((number == at - 1) | (number == at))


def _needed_range(limits: _Limits, precision: Array, state: LineState) -> tuple[Array, Array]:
    """Return the range of z that p and the interval need to be searched."""
    allowed = limits.allowed(TAILS_SHARE * precision)
    reach, *others = tail_quantile(jnp.where(limits.count > 1, allowed, allowed[0]))
    others, means = jnp.stack(others), limits.means[1:]
    # At the upper end small values are extreme: of the values above the statistic only those that
    # the randomization moved there count. The lower end is the mirror image.
    moved = others * state.spread / jnp.hypot(1.0, state.spread)
    low = jnp.maximum(means - others, jnp.stack([means[2] - moved[0], -jnp.inf, -jnp.inf]))
    high = jnp.minimum(means + others, jnp.stack([jnp.inf, means[2] + moved[1], jnp.inf]))
    first = jnp.where(state.spread > 0, jnp.minimum(-reach, low.min()), -reach)
    last = jnp.where(state.spread > 0, jnp.maximum(reach, high.max()), reach)
    return jnp.maximum(first, -state.limit), jnp.minimum(last, state.limit)


def _steps(
    nodes: Nodes, reach: tuple[Array, Array], state: LineState
) -> tuple[Array, Array, Array, Array]:
    """Return the number of points below the searched part and the lowest one, and above it."""
    low, high = nodes.z[0], nodes.z[nodes.count - 1]
    stride = jnp.maximum(STRIDE, GROWTH * (high - low) / 2)
    first, last = jnp.maximum(reach[0], low - stride), jnp.minimum(reach[1], high + stride)
    below = jnp.where(low > reach[0], jnp.ceil((low - first) / state.spacing), 0).astype(int)
    above = jnp.where(high < reach[1], jnp.ceil((last - high) / state.spacing), 0).astype(int)
    return below, first, above, last


def _outside(number: Array, nodes: Nodes, outwards: Any, state: LineState) -> Array:
    """Return points further out, ascending, in steps of the grid."""
    below, first, above, last = outwards
    low, high = nodes.z[0], nodes.z[nodes.count - 1]
    left = low - state.spacing * (below - number).astype(low.dtype)
    right = high + state.spacing * (number - below + 1).astype(low.dtype)
    right = jnp.where(number == below + above - 1, last, right)
    return jnp.where(number < below, jnp.where(number == 0, first, left), right)


def _within(
    number: Array,
    nodes: Nodes,
    judged: Judged,
    cells: _Cells,
    doubtful: Array,
    counts: Array,
    state: LineState,
) -> tuple[Array, Array]:
    """Return doubtful points again, in float64, and points that divide cells: around the end of the
    set in a cell, or evenly.
    """
    every = jnp.concatenate([doubtful.astype(counts.dtype), counts])
    ends = jnp.cumsum(every)
    item = jnp.searchsorted(ends, number, side="right", method="compare_all").astype(number.dtype)
    item = jnp.minimum(item, len(every) - 1)
    again = item < len(doubtful)
    node, cell = jnp.minimum(item, len(doubtful) - 1), jnp.maximum(item - len(doubtful), 0)
    part = (number - ends[item] + every[item] + 1).astype(jnp.float64)
    low, high, start, stop = (v[cell] for v in (nodes.z, nodes.z[1:], judged.start, judged.stop))
    share = part / (cells.parts[cell] + 1).astype(part.dtype)
    points = start + (stop - start) * share
    points = jnp.where(cells.around[cell], jnp.where(part == 1, start, stop), points)
    border = BORDER * (high - low)
    points = jnp.minimum(jnp.maximum(points, low + border), high - border)
    # Interpolation errors below this are the effect of rounding on the slopes.
    rounding = 5 * state.safety * state.noise
    exact = (cells.length[cell] < WIDE_BELOW) | (judged.error[cell] <= rounding)
    return jnp.where(again, nodes.z[node], points), again | exact
