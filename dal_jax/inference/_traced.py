"""P-values, bounds, estimate and interval as functions that JAX traces, for arrays of fixed length.

They compute what `selective_p` and `effect` do, with the same formulas, in float64. A union of
intervals is a list of pieces of which the first ones count. Pieces are taken `_BLOCK` at a time, so
that the work follows their number and not the length of the arrays.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import erfc, ndtri

from dal_jax._typing import Array, Bool, Float
from dal_jax.inference._intervals import gauss_legendre
from dal_jax.inference._p_value import ALTERNATIVES
from dal_jax.inference._randomized import (
    DROP,
    HALVINGS,
    LEAST_SPREAD,
    NEAREST,
    NODES,
    PARTS,
    STEP,
)

# Sets of pieces: the known part of the truncation set, what was not searched, and all of the
# truncation set that was found, as if everything between the outermost points were known.
KNOWN, UNKNOWN, FOUND = 0, 1, 2
# Pieces that are integrated at a time.
_BLOCK = 4
# Beyond this no probability is left and squares would overflow.
_FARTHEST = 1e150
# From here on the tail of the normal law follows from its asymptotic series, to 1e-12.
_SERIES = -35.0
_LOG_ROOT = math.log(2 * math.pi) / 2
_NEWTON = 12  # steps, with errors that shrink quadratically and keep their sign
# A share of an interval below this is integrated rather than computed as a difference.
_LITTLE = 1e-4
# An end of an interval further out than the last step, in standard deviations, counts as infinite.
_DOUBLINGS = 14
# Accuracy of estimate and ends, standard deviations, and the most steps to reach it.
_XTOL, _STEPS = 1e-9, 60


class Pieces(NamedTuple):
    """Intervals in standard deviations of what selection saw; pieces of one set are disjoint.

    Example:
        >>> pieces = Pieces(np.zeros(8), np.ones(8), np.full(8, KNOWN), np.int64(1))
        >>> int(pieces.count)
        1
    """

    low: Any  # (K,)
    high: Any  # (K,)
    member: Any  # (K,), the set of the piece: `KNOWN`, `UNKNOWN` or `FOUND`
    count: Any  # pieces that count, the first ones


class Seen(NamedTuple):
    """Observed statistic and its law, in standard deviations of the tested statistic.

    Example:
        >>> Seen(2.0, 0.1, 0.5, ALTERNATIVES.index("greater")).alternative
        2
    """

    z_obs: Any  # the tested statistic
    shift: Any  # noise that selection added to it
    spread: Any  # standard deviation of that noise; 0: none
    alternative: Any  # index into `ALTERNATIVES`


def log_ndtr(x: Array) -> Array:
    """Return the log of the normal distribution function, with full relative accuracy."""
    near, positive = x > _SERIES, x > 0
    tail = erfc(jnp.where(near, jnp.abs(x), 0) / math.sqrt(2)) / 2
    far = jnp.where(near, _SERIES, x)
    square = 1 / (far * far)
    series = -square * (1 - 3 * square * (1 - 5 * square * (1 - 7 * square)))
    log = jnp.log(jnp.where(positive, 1, jnp.where(near, tail, -far)))
    rest = jnp.log1p(jnp.where(positive, -tail, jnp.where(near, 0, series)))
    return rest + jnp.where(near, log, -far * far / 2 - _LOG_ROOT - log)


def tail_quantile(log_p: Array) -> Array:
    """Return the distance from 0 beyond which the normal tail has a log probability.

    Args:
        log_p: Log probabilities below log 1/2, of any shape, in float64.

    Returns:
        The distances, to 1e-11 relative; infinite for -inf.

    Example:
        >>> from dal_jax._compat import enable_x64
        >>> with enable_x64():
        ...     round(float(tail_quantile(jnp.log(0.025))), 4)
        1.96
    """
    finite = log_p > -_FARTHEST
    wanted = jnp.where(finite, log_p, -1.0)

    def step(_: Any, x: Array) -> Array:
        # The log is concave and x is too large, so that it stays too large.
        log = log_ndtr(-x)
        hazard = jnp.exp(-x * x / 2 - _LOG_ROOT - log)
        return jnp.maximum(x + (log - wanted) / hazard, 0)

    found = lax.fori_loop(0, _NEWTON, step, jnp.sqrt(-2 * wanted))
    return jnp.where(finite, found, jnp.inf)


def log_piece_mass(low: Array, high: Array) -> Array:
    """Return the log probability of intervals under N(0, 1), as `log_mass`.

    Args:
        low: Lower ends, of any shape, in float64.
        high: Upper ends, of the same shape.

    Returns:
        The logs, to 1e-11; -inf where low >= high.

    Example:
        >>> from dal_jax._compat import enable_x64
        >>> with enable_x64():
        ...     round(float(log_piece_mass(jnp.float64(0.0), jnp.float64(np.inf))), 4)
        -0.6931
    """
    empty = low >= high
    low, high = (jnp.clip(jnp.where(empty, 0, v), -_FARTHEST, _FARTHEST) for v in (low, high))
    mirrored = low + high < 0
    low, high = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    narrow = (high - low) * high < 1
    # Each formula gets arguments for which it is finite.
    log_low, log_high = log_ndtr(-jnp.stack([low, high]))
    wide = log_low + jnp.log1p(-jnp.exp(jnp.where(narrow, -1.0, log_high - log_low)))
    nodes, weights = gauss_legendre(10)
    middle = jnp.where(narrow, (low + high) / 2, 0)
    half = jnp.where(narrow & ~empty, (high - low) / 2, 1)
    t = half[..., None] * nodes
    total = jnp.sum(jnp.exp(-middle[..., None] * t - t * t / 2) * weights, axis=-1)
    thin = -(middle**2) / 2 - _LOG_ROOT + jnp.log(half * total)
    return jnp.where(empty, -jnp.inf, jnp.where(narrow, thin, wide))


class _Law(NamedTuple):
    """Density of V restricted to T above a limit, `phi(v) P(T >= limit | V = v)`."""

    r: Array  # mean of T per unit of V, in deviations of each
    s: Array  # deviation of T given V
    limit: Array  # less the mean of T

    def log_density(self, v: Array) -> Array:
        return -(v**2) / 2 + log_ndtr((self.r * v - self.limit) / self.s)

    def mode(self) -> Array:
        """Return the place where the density is highest, by Newton's method from the left."""

        def step(_: Any, v: Array) -> Array:
            x = (self.r * v - self.limit) / self.s
            hazard = jnp.exp(-(x**2) / 2 - _LOG_ROOT - log_ndtr(x))
            ratio = self.r / self.s
            # The slope of the log density falls, and ever less so.
            bend = ratio**2 * jnp.clip(hazard * (x + hazard), 0, 1) + 1
            return jnp.maximum(v + (ratio * hazard - v) / bend, v)

        return lax.fori_loop(0, _NEWTON, step, jnp.zeros_like(self.limit))


def log_tails(low: Array, high: Array, limit: Array, spread: Array) -> Array:
    """Return `log P(V in I and T >= limit)` for intervals I of V, as the function of that name.

    Args:
        low: Lower ends (..., k), in standard deviations of V from its mean.
        high: Upper ends (..., k); an interval without length has no probability.
        limit: Limits of T (..., 1), less its mean, in standard deviations of T.
        spread: Standard deviation of V about T, above 0, in standard deviations of T.
    """
    r = 1 / jnp.hypot(1.0, spread)
    law = _Law(r, spread * r, limit)
    mode = jnp.clip(law.mode(), low, high)
    low, high = _support(law, mode, low, high)
    even = np.linspace(0, 1, PARTS + 1)
    step = jnp.expand_dims((limit + law.s * STEP) / r, -2)
    mode, low, high = (jnp.expand_dims(v, -1) for v in (mode, low, high))
    cuts = jnp.concatenate(
        [low + (mode - low) * even, mode + (high - mode) * even, jnp.clip(step, low, high)], axis=-1
    )
    cuts = jnp.sort(cuts, axis=-1)
    nodes, weights = gauss_legendre(NODES)
    middle, half = (cuts[..., 1:] + cuts[..., :-1]) / 2, jnp.diff(cuts, axis=-1) / 2
    wide = law._replace(limit=law.limit[..., None, None])
    logs = wide.log_density(middle[..., None] + half[..., None] * nodes)
    top = jnp.maximum(logs.max(axis=(-1, -2)), -np.finfo(np.float64).max)
    terms = jnp.exp(logs - top[..., None, None]) * weights * half[..., None]
    sums = terms.sum(axis=(-1, -2))
    return top + jnp.log(sums) - _LOG_ROOT


def _support(law: _Law, mode: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Return the ends on both sides of each mode beyond which the density is negligible."""
    way = np.array([-1.0, 1.0]).reshape(2, *(1,) * mode.ndim)
    # The second derivative of the logarithm is at most -1: the density is negligible beyond.
    reach = jnp.minimum(jnp.stack([mode - low, high - mode]), math.sqrt(2 * DROP))
    top, *ends = law.log_density(jnp.concatenate([mode[None], mode + way * reach]))
    floor, whole = top - DROP, jnp.stack(ends) >= top - DROP

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        near, far = ends
        middle = jnp.sqrt(near * far)
        above = law.log_density(mode + way * middle) >= floor
        return jnp.where(above, middle, near), jnp.where(above, far, middle)

    _, far = lax.fori_loop(0, HALVINGS, halve, (jnp.minimum(NEAREST, reach), reach))
    found = mode + way * jnp.where(whole, reach, far)
    return found[0], found[1]


def _totals(pieces: Pieces, kinds: tuple[int, ...], sets: int, masses: Any) -> Array:
    """Return log sums over the pieces of each set, (sets, *kinds), of `masses(low, high)`."""
    size = -(-len(pieces.low) // _BLOCK) * _BLOCK - len(pieces.low)
    low, high, member = (jnp.pad(v, (0, size)) for v in pieces[:3])

    def add(number: Array, logs: Array) -> Array:
        at = number * _BLOCK
        own = [lax.dynamic_slice(v, (at,), (_BLOCK,)) for v in (low, high, member)]
        counts = at + jnp.arange(_BLOCK, dtype=at.dtype) < pieces.count
        found = masses(*(jnp.where(counts, v, 0) for v in own[:2]))
        parts = [jnp.where(counts & (own[2] == k), found, -jnp.inf) for k in range(sets)]
        return _log_sum(logs, jnp.stack(parts))

    blocks = (pieces.count + (_BLOCK - 1)) // _BLOCK
    return lax.fori_loop(0, blocks, add, jnp.full((sets, *kinds), -jnp.inf))


def _log_sum(logs: Array, more: Array) -> Array:
    """Add the exponentials of the last axis of `more` to those of `logs`."""
    top = jnp.maximum(logs, more.max(axis=-1))
    top = jnp.where(top > -jnp.inf, top, 0)
    total = jnp.exp(logs - top) + jnp.exp(more - top[..., None]).sum(axis=-1)
    return top + jnp.log(total)


def _share(log_part: Array, log_rest: Array) -> Array:
    """Return part / (part + rest) from logarithms; NaN where both are empty."""
    empty = (log_part == -jnp.inf) & (log_rest == -jnp.inf)
    sure = (log_rest == -jnp.inf) | (log_part == -jnp.inf)
    difference = jnp.where(sure, 0, log_rest) - jnp.where(sure, 0, log_part)
    share = jnp.where(
        sure, jnp.where(log_rest == -jnp.inf, 1.0, 0.0), 1 / (1 + jnp.exp(difference))
    )
    return jnp.where(empty, jnp.nan, share)


def p_bounds(pieces: Pieces, seen: Seen, holds: Bool[Array, ""]) -> Float[Array, " 3"]:
    """Return p of all that was found, and its bounds, as `selective_p`.

    Args:
        pieces: Pieces of the sets `KNOWN`, `UNKNOWN` and `FOUND`.
        seen: Observed statistic.
        holds: Whether the known part of the truncation set holds what selection saw.

    Returns:
        (p, low, high); NaN unless `holds`.

    Example:
        >>> from dal_jax._compat import enable_x64
        >>> ends = np.array([[1.0, 3.0], [-np.inf, -4.0], [4.0, np.inf], [1.0, 3.0]])
        >>> member = np.array([KNOWN, UNKNOWN, UNKNOWN, FOUND])
        >>> with enable_x64():
        ...     pieces = Pieces(*map(jnp.asarray, (*ends.T, member, 4)))
        ...     seen = Seen(*map(jnp.float64, (2.0, 0.0, 0.0)), jnp.asarray(0))
        ...     found = p_bounds(pieces, seen, jnp.asarray(True))
        >>> found.round(4).tolist()
        [0.136, 0.136, 0.1364]
    """
    two, _, greater, less = (seen.alternative == number for number in range(len(ALTERNATIVES)))
    upper = jnp.where(two, jnp.abs(seen.z_obs), seen.z_obs)
    lower = jnp.where(two, -upper, seen.z_obs)
    # Sides: "less" and "greater" for "equal-tailed", else twice the same.
    first = jnp.where(two | ~greater, lower, -jnp.inf), jnp.where(two | greater, upper, jnp.inf)
    second = jnp.where(two | less, lower, -jnp.inf), jnp.where(two | ~less, upper, jnp.inf)

    spread = jnp.maximum(seen.spread, LEAST_SPREAD)
    is_random = seen.spread >= LEAST_SPREAD
    everywhere = -jnp.inf * jnp.ones_like(upper), jnp.inf * jnp.ones_like(upper)
    halves = (upper, everywhere[1]), (everywhere[0], lower)

    def masses(low: Array, high: Array) -> Array:
        lows, highs = (
            jnp.where(is_random, whole, jnp.stack(ends))[:, None]
            for whole, *ends in zip(everywhere, *halves, first, second, strict=True)
        )
        plain = log_piece_mass(jnp.maximum(low, lows), jnp.minimum(high, highs))

        def tails() -> Array:
            lows, highs = jnp.stack([low, -high]), jnp.stack([high, -low])
            return log_tails(lows, highs, jnp.stack([upper, -lower])[:, None], spread)

        return jnp.concatenate([lax.cond(is_random, tails, lambda: plain[:2]), plain[2:]])

    above, below, *rest = jnp.moveaxis(_totals(pieces, (4,), 3, masses), 1, 0)
    both = jnp.logaddexp(above, below)
    inner = jnp.stack(
        [
            jnp.where(two, both, jnp.where(greater, above, below)),
            jnp.where(two, both, jnp.where(less, below, above)),
        ]
    )
    # What is not in one tail is in the other one; of two tails it is the difference.
    others = jnp.stack([jnp.where(greater, below, above), jnp.where(less, above, below)])
    random = jnp.where(two, _difference(jnp.stack(rest), inner), others)
    outer = jnp.where(is_random, random, jnp.stack(rest))
    (known, unknown, found), (known_, unknown_, found_) = inner.T, outer.T
    sides = jnp.stack(
        [
            _share(found, found_),
            _share(known, jnp.logaddexp(known_, unknown_)),
            _share(jnp.logaddexp(known, unknown), known_),
        ]
    )
    equal = seen.alternative == ALTERNATIVES.index("equal-tailed")
    p = jnp.where(equal, jnp.minimum(1.0, 2 * sides.min(axis=1)), sides[:, 0])
    return jnp.where(holds, p, jnp.nan)


def _difference(whole: Array, part: Array) -> Array:
    """Return `log(exp(whole) - exp(part))`, -inf where nothing or less remains."""
    empty = whole == -jnp.inf
    ratio = jnp.minimum(0, part - jnp.where(empty, 0, whole))
    return jnp.where(empty, -jnp.inf, whole + jnp.log1p(-jnp.exp(ratio)))


def mean_effect(
    pieces: Pieces, seen: Seen, confidence: Float[Array, ""], holds: Bool[Array, ""]
) -> Float[Array, " 3"]:
    """Return the estimate and the interval of the statistic's mean, as `effect`.

    Args:
        pieces: Pieces of the sets `KNOWN` and `UNKNOWN`; others are left out.
        seen: Observed statistic.
        confidence: Confidence level, in (0, 1).
        holds: As in `p_bounds`.

    Returns:
        (estimate, lower end, upper end), in standard deviations; NaN unless `holds`.

    Example:
        >>> from dal_jax._compat import enable_x64
        >>> ends = np.array([[1.0, 3.0], [-np.inf, -4.0], [4.0, np.inf], [1.0, 3.0]])
        >>> member = np.array([KNOWN, UNKNOWN, UNKNOWN, FOUND])
        >>> with enable_x64():
        ...     pieces = Pieces(*map(jnp.asarray, (*ends.T, member, 4)))
        ...     seen = Seen(*map(jnp.float64, (2.0, 0.0, 0.0)), jnp.asarray(0))
        ...     found = mean_effect(pieces, seen, jnp.float64(0.95), jnp.asarray(True))
        >>> found.round(2).tolist()
        [2.0, -1.92, 5.92]
    """
    z, scale = seen.z_obs, jnp.hypot(1.0, seen.spread)
    spread, is_random = jnp.maximum(seen.spread, LEAST_SPREAD), seen.spread >= LEAST_SPREAD
    tail = (1 - confidence) / 2
    goals = ndtri(jnp.stack([jnp.full_like(tail, 0.5), tail, 1 - tail]))

    def above(means: Array) -> Array:
        mean = means[:, None]

        def masses(low: Array, high: Array) -> Array:
            own = low - mean / scale, high - mean / scale
            cut = jnp.where(is_random, jnp.inf, z)  # the first part is all of a piece if random
            lows = jnp.stack([jnp.where(is_random, low, jnp.maximum(low, z)), low])
            highs = jnp.stack([high, jnp.minimum(high, cut)])
            plain = log_piece_mass(lows[:, None] - mean / scale, highs[:, None] - mean / scale)
            return lax.cond(
                is_random, lambda: _split_randomly(*own, z - mean, spread, plain[0]), lambda: plain
            )

        (known, known_), (unknown, unknown_) = _totals(pieces, (2, 3), 2, masses)
        p = [
            _share(known, known_)[0],
            _share(jnp.logaddexp(known, unknown), known_)[1],
            _share(known, jnp.logaddexp(known_, unknown_))[2],
        ]
        return ndtri(jnp.clip(jnp.stack(p), 1e-300, 1 - 1e-16)) - goals

    found, first = _crossings(above, jnp.full(3, 1.0) * z)
    return jnp.where(jnp.isnan(first) | ~jnp.asarray(holds), jnp.nan, found)


def _split_randomly(low: Array, high: Array, limit: Array, spread: Array, whole: Array) -> Array:
    """Return the log probabilities of intervals of V with T above a limit, and below it."""

    def split(state: Any) -> Any:
        number, inner, rest, little = state
        mirrored = number > 0
        own = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
        found = log_tails(*own, jnp.where(mirrored, -limit, limit), spread)
        first = jnp.minimum(found, whole)
        # Where almost nothing remains, far from the limit, the difference has no digits; for a
        # mean far out it may matter all the same.
        rest = jnp.where(mirrored, jnp.where(little, found, rest), _difference(whole, first))
        inner = jnp.where(mirrored, inner, first)
        return number + 1, inner, rest, (inner > whole - _LITTLE) & (whole > -jnp.inf)

    none = jnp.zeros(whole.shape)
    state = 0, none, none, none == 0
    state = lax.while_loop(lambda s: (s[0] == 0) | ((s[0] == 1) & s[3].any()), split, state)
    return jnp.stack(state[1:3])


class _Bracket(NamedTuple):
    """A search of roots: first outwards, then between two points of different signs."""

    step: Array  # number of the next step
    at: Array  # where the functions are evaluated next
    a: Array  # latest point
    fa: Array
    b: Array  # the other point
    fb: Array
    inside: Array  # whether the root is between the points
    stop: Array  # whether there is nothing left to do


def _crossings(rising: Any, start: Array) -> tuple[Array, Array]:
    """Return the roots of rising functions, evaluated together, and the values of the first one at
    the start. A root is infinite where there is none.

    Source: Chandrupatla, Advances in Engineering Software 28, 1997.
    """

    def outwards(s: _Bracket, f: Array) -> _Bracket:
        left = jnp.where(s.step == 0, f > 0, s.at < start)
        way = jnp.where(left, -1.0, 1.0)
        inside = (s.step > 0) & ~(f * way < 0)
        out = start + way * 2.0 ** s.step.astype(start.dtype)
        # The functions are nearly straight: the first step between the points is a secant.
        t = jnp.clip(f / (f - s.fa), 0.01, 0.99)
        back = s.at + jnp.where(jnp.isnan(t), 0.5, t) * (s.a - s.at)
        stop = ((s.step >= _DOUBLINGS) & ~inside) | (f == 0)
        at = jnp.where(inside, back, out)
        return _Bracket(s.step, at, s.at, f, s.a, s.fa, inside, stop)

    def between(s: _Bracket, f: Array) -> _Bracket:
        same = jnp.sign(f) == jnp.sign(s.fa)
        c, fc = jnp.where(same, s.a, s.b), jnp.where(same, s.fa, s.fb)
        b, fb = jnp.where(same, s.b, s.a), jnp.where(same, s.fb, s.fa)
        a, fa = s.at, f
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        quadratic = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        t = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        width = jnp.abs(b - a)
        least = _XTOL / 2 / jnp.maximum(width, _XTOL)
        at = a + jnp.clip(jnp.where(quadratic, t, 0.5), least, 1 - least) * (b - a)
        return _Bracket(s.step, at, a, fa, b, fb, s.inside, (width <= _XTOL) | (fa == 0))

    def step(state: tuple[_Bracket, Array]) -> tuple[_Bracket, Array]:
        s, first = state
        f = rising(jnp.where(s.stop, s.a, s.at))
        out, new = outwards(s, f), between(s, f)
        moved = _Bracket(*(jnp.where(s.inside, v, w) for v, w in zip(new, out, strict=True)))
        kept = [jnp.where(s.stop, v, w) for v, w in zip(s, moved, strict=True)]
        return _Bracket(*kept)._replace(step=s.step + 1), jnp.where(s.step[0] == 0, f[0], first)

    none, no = jnp.zeros_like(start), start != start
    state = _Bracket(jnp.zeros(len(start), int), start, start, none, start, none, no, no)
    going = lambda state: (state[0].step[0] < _STEPS) & ~state[0].stop.all()  # noqa: E731
    s, first = lax.while_loop(going, step, (state, none[0]))
    best = jnp.where(jnp.abs(s.fa) < jnp.abs(s.fb), s.a, s.b)
    exact = s.inside | (s.fa == 0)
    return jnp.where(exact, jnp.where(s.fa == 0, s.a, best), jnp.sign(s.a - start) * jnp.inf), first
