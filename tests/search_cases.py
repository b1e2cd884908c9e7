"""What the tests of the search share: tiny piecewise-linear localizers, lines, dense grids."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax import Localizer, from_score
from dal_jax.inference import (
    Intervals,
    as_intervals,
    contains,
    intersect,
    region_line,
    subtract,
    union,
)
from dal_jax.noise import Covariance, iid
from dal_jax.search import EngineResult, LineProblem, Membership, operands, select_region

# Two computations of one end add the same terms in other orders: 1e-15 in a score, divided by
# slopes that are seldom below 1e-4.
SAME_END = 1e-10


def _conv(x: Any, kernel: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def pooled_net(params: Any, draws: Any, x: Any) -> Any:
    """A ReLU network with max pooling; reconstructs the image."""
    h = jnp.maximum(_conv((x + draws)[None], params["encode"]) + params["bias"], 0)
    square = (1, 2, 2, 1)
    h = lax.reduce_window(h, -jnp.inf, lax.max, square, square, "VALID")
    h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
    return _conv(h, params["decode"])[0]


def pooled_score(params: Any, draws: Any, x: Any) -> Any:
    """How far a channel is from its reconstruction, summed over channels."""
    return jnp.sum(jnp.abs(pooled_net(params, draws, x) - x), axis=-1)


def dense_score(params: Any, draws: Any, x: Any) -> Any:
    """Two dense layers around a ReLU: each pixel moves with every other."""
    h = jnp.maximum(params["first"] @ (x + draws).reshape(-1), 0)
    y = (params["second"] @ h).reshape(x.shape)
    return jnp.sum(jnp.abs(y - x), axis=-1)


def jumping_score(params: Any, draws: Any, x: Any) -> Any:
    """A score that jumps: two reconstructions, chosen by the sign of a weighted sum."""
    sums = (params["gate"] @ (x + draws).reshape(-1)).reshape(x.shape)
    y = jnp.where(sums > 0, 0.5 * x + 0.3, -0.2 * sums - 0.4)
    return jnp.sum(jnp.abs(y - x), axis=-1)


def pooled_localizer(
    seed: int = 0, side: int = 4, channels: int = 1, strength: float = 0.25, threshold: float = 1.3
) -> Localizer:
    """A localizer of `pooled_score`; the larger the strength, the more the network moves."""
    rng = np.random.default_rng(seed)
    params = {
        "encode": 0.35 * rng.normal(size=(3, 3, channels, 4)),
        "bias": 0.3 * rng.normal(size=4),
        "decode": strength * rng.normal(size=(3, 3, 4, channels)),
    }
    params = {name: array.astype(np.float32) for name, array in params.items()}
    shape = (side, side, channels)
    draws = rng.normal(size=shape)
    return from_score(pooled_score, shape, threshold * channels, params, draws, pooled_net)


def dense_localizer(seed: int = 0, side: int = 5, channels: int = 1) -> Localizer:
    """A localizer of `dense_score`."""
    rng = np.random.default_rng(seed)
    n, hidden = side * side * channels, 24
    params = {
        "first": rng.normal(size=(hidden, n)) / np.sqrt(n),
        "second": rng.normal(size=(n, hidden)) / np.sqrt(hidden),
    }
    shape = (side, side, channels)
    threshold = 1.5 * channels
    return from_score(dense_score, shape, threshold, params, rng.normal(size=shape))


def jumping_localizer(
    seed: int = 0, side: int = 4, channels: int = 1, threshold: float = 0.9
) -> Localizer:
    """A localizer of `jumping_score`."""
    rng = np.random.default_rng(seed)
    n = side * side * channels
    shape = (side, side, channels)
    params = {"gate": rng.normal(size=(n, n)) / np.sqrt(n)}
    draws = rng.normal(size=shape)
    return from_score(jumping_score, shape, threshold * channels, params, draws)


def random_problem(localizer: Localizer, seed: int, noise: Covariance | None = None) -> LineProblem:
    """The line of a null image in which something is flagged."""
    rng = np.random.default_rng((seed, 1))
    while True:
        x, x_ref = rng.normal(size=(2, *localizer.image_shape))
        score = localizer.score(x)
        region = score > localizer.threshold
        if region.any():
            break
    line = region_line(x, x_ref, region, noise or iid(1.0))
    selected = select_region(score, localizer.threshold)
    return LineProblem(*localizer[:1], *localizer[2:5], *line[:2], selected, line.z_obs)


def scalar_problem(score_fn: Any, z_obs: float, region: Any, **params: float) -> LineProblem:
    """A line along which the image's first pixel is z itself, for scores made by hand.

    `score_fn(params, draws, x)` returns (1, P) scores; they exceed 0.8 where `region` says.
    """
    shape = (1, 1, 1)
    arrays = {name: np.float64(value) for name, value in params.items()}
    selected = select_region(np.asarray(region, float).reshape(1, -1), 0.8)
    return LineProblem(score_fn, arrays, (), 0.8, np.zeros(shape), np.ones(shape), selected, z_obs)


@lru_cache(maxsize=16)
def _members(score_fn: Any) -> Any:
    return jax.jit(jax.vmap(Membership(score_fn), in_axes=(None, 0)))


def members(problem: LineProblem, points: np.ndarray) -> np.ndarray:
    """Whether each point lies in the truncation set, by evaluating the score there in float64."""
    batches = np.resize(points, -(-points.size // 2048) * 2048).reshape(-1, 2048)
    values = operands(problem, "float64")
    found = [np.asarray(_members(problem.score_fn)(values, batch)[0]) for batch in batches]
    return np.concatenate(found)[: points.size]


def check_on_grid(problem: LineProblem, inside: Intervals, lo: float, hi: float) -> None:
    """A dense grid agrees with a set at every point that is not within rounding of an end."""
    points = np.linspace(lo, hi, 20_000)
    ends = np.concatenate([inside.reshape(-1), [np.inf]])
    # Rounding of a root: far below the spacing of the grid (6e-4).
    clear = np.abs(points[:, None] - ends).min(axis=1) > 1e-9
    wrong = (members(problem, points) != contains(inside, points)) & clear
    assert not wrong.any(), points[wrong][:5]


def same_set(a: Intervals, b: Intervals, tolerance: float = SAME_END) -> None:
    """Two unions of intervals have the same ends to a tolerance."""
    assert a.shape == b.shape, (a, b)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


class KnownSet:
    """An engine that knows the truncation set and, if told so, cannot see some parts of the line.

    It refuses parts that are not finite, ascending and disjoint, and to search anything twice.
    """

    def __init__(self, truth: Intervals, blind: Any = ()):
        self.truth, self.blind = as_intervals(truth), as_intervals(blind)
        self.done = as_intervals([])
        self.calls = 0

    def __call__(self, parts: Any) -> EngineResult:
        """Looks the set up."""
        flat = np.asarray(parts, float).reshape(-1)
        assert flat.size
        assert np.isfinite(flat).all()
        assert np.all(np.diff(flat) > 0)
        asked = as_intervals(parts)
        assert not intersect(asked, self.done).size
        self.done = union(self.done, asked)
        self.calls += 1
        gaps = intersect(asked, self.blind)
        seen = subtract(asked, gaps)
        inside = intersect(self.truth, seen)
        return EngineResult(inside, gaps, len(inside), len(flat), True)
