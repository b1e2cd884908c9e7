"""What several test files share: checks of pieces and sweeps, an oracle, a compile counter."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax import TOLERANCE, TestOptions, TestResult, contradiction, dal_test, dal_test_batch
from dal_jax.affine import AffinePiece, Swept, affine_piece, sweep
from dal_jax.models import UNet, UNetConfig, init_unet

# Cases of the independent implementation: where this variable says, or beside the repository.
REFERENCE = Path(
    os.environ.get("DAL_JAX_REFERENCE", Path(__file__).parents[2] / "shared" / "golden")
)
# Functions in the tests take values of about 10 in float64, whose spacing is 2e-15 there, and a few
# dozen roundings follow one another.
ROUNDING = 1e-12
# Two windows, or a window and a node, compute a shared end by different sums: the rounding of a
# value, divided by slopes that are seldom below 0.1.
END = 1e-11
# Intervals narrower than this come from one crossing computed twice; at their midpoints a direct
# evaluation cannot tell the sides apart.
NARROW = 1e-9

# What moves in the tests of single operations.
_rng = np.random.default_rng(5)
W, B, V, C = (_rng.normal(size=7) for _ in range(4))
MASK = np.array([True, False, True, True, False, True, False])
IMAGE, TILT = _rng.normal(size=(2, 1, 6, 4, 2))
MATRIX = _rng.normal(size=(7, 7)) / 2
KERNEL = _rng.normal(size=(3, 3, 2, 2)) / 3


def published_options(**options: Any) -> TestOptions:
    """`TestOptions` of the test as published, without randomization."""
    return TestOptions(**{"randomization": 0.0, **options})


def published_test(*arguments: Any, **options: Any) -> TestResult:
    """`dal_test` as published, without randomization."""
    return dal_test(*arguments, **{"randomization": 0.0, **options})


def published_batch(*arguments: Any, **options: Any) -> list[TestResult]:
    """`dal_test_batch` as published, without randomization."""
    return dal_test_batch(*arguments, **{"randomization": 0.0, **options})


def x(z: Any) -> Any:
    """A moving vector."""
    return 2.0 * W * z + B


def y(z: Any) -> Any:
    """Another."""
    return V * z + C


def image(z: Any) -> Any:
    """A moving image (1, 6, 4, 2)."""
    return IMAGE + TILT * z


def columns(leaves: Sequence[Any], count: int) -> np.ndarray:
    """Output leaves (count, ...) as one complex array (count, entries)."""
    return np.concatenate([np.asarray(v, complex).reshape(count, -1) for v in leaves], axis=1)


class Direct:
    """Evaluates a function at many points, in batches of one size so that it compiles once."""

    BATCH = 128

    def __init__(self, f: Callable[[Any], Any]):
        self._f = jax.jit(jax.vmap(f))

    def __call__(self, points: Any) -> np.ndarray:
        points = np.asarray(points, np.float64).reshape(-1)
        padded = np.resize(points, -(-points.size // self.BATCH) * self.BATCH)
        rows = [
            columns(jax.tree.leaves(self._f(batch)), self.BATCH)
            for batch in padded.reshape(-1, self.BATCH)
        ]
        return np.concatenate(rows)[: points.size]


def derivative(f: Callable[[Any], Any], z: Any) -> tuple[list[Any], list[Any]]:
    """Leaves of value and derivative by `jax.jvp`; integers have derivative zero."""
    values, slopes = jax.jvp(f, (z,), (jnp.ones_like(z),))
    leaves = jax.tree.leaves(values)
    found = [
        s if jnp.issubdtype(v.dtype, jnp.inexact) else jnp.zeros(v.shape)
        for v, s in zip(leaves, jax.tree.leaves(slopes), strict=True)
    ]
    return leaves, found


class Case(NamedTuple):
    """A function of z to be checked."""

    f: Callable[[Any], Any]
    reference: Callable[[Any], Any] | None = None  # the same with JAX's derivative right
    sharp: bool = True  # False: some choices do not show in the output


def check_case(case: Case, lo: float = -3.0, hi: float = 3.0) -> None:
    """Pieces at random points and a sweep, each against direct evaluation and one another."""
    zs = np.random.default_rng(7).uniform(lo, hi, 24)
    direct = Direct(case.f)
    pieces = check_pieces(case, zs, direct)
    swept = swept_parts(case.f, [(lo, hi)])
    check_swept(swept, direct)
    ends = np.concatenate([pieces.lo, pieces.hi])
    ends = ends[(ends > lo) & (ends < hi)]
    assert distance_to(ends, all_nodes(swept)).max(initial=0) < NARROW


def check_pieces(case: Case, zs: np.ndarray, direct: Direct) -> AffinePiece:
    """Pieces at points in general position: equal to jvp, affine inside, not just outside."""
    f, reference, sharp = case

    def both(z: Any) -> tuple[AffinePiece, tuple[list[Any], list[Any]]]:
        return affine_piece(f, z), derivative(reference or f, z)

    pieces, expected = jax.vmap(jax.jit(both))(zs)
    assert not np.any(pieces.status)
    lo, hi = np.asarray(pieces.lo), np.asarray(pieces.hi)
    assert np.all((lo < zs) & (zs < hi))
    value = columns(jax.tree.leaves(pieces.value), len(zs))
    slope = columns(jax.tree.leaves(pieces.slope), len(zs))
    np.testing.assert_allclose(value, columns(expected[0], len(zs)), rtol=ROUNDING, atol=ROUNDING)
    np.testing.assert_allclose(slope, columns(expected[1], len(zs)), rtol=ROUNDING, atol=ROUNDING)

    def excess(points: np.ndarray) -> np.ndarray:
        """How far f is from the piece at one point for each z."""
        there = value + slope * (points - zs)[:, None]
        return np.abs(direct(points) - there).max(1)

    left, right = np.maximum(lo, zs - 3), np.minimum(hi, zs + 3)
    for share in (0.02, 0.3, 0.7, 0.98):
        assert excess(left + share * (right - left)).max() < 10 * ROUNDING
    if sharp:
        # Slopes differ by more than 1e-4: that shows 1e-5 past a kink, far above rounding.
        step = 1e-5
        for end, outside in ((hi, hi + step), (lo, lo - step)):
            cut = np.isfinite(end)
            assert np.all(excess(np.where(cut, outside, zs))[cut] > 1e-4 * step)
    return pieces


def swept_parts(
    f: Callable[[Any], Any], parts: Sequence[tuple[float, float]], dtype: Any = np.float64
) -> list[Swept]:
    """All that a sweep of f yields."""
    prepared = sweep(lambda _, z: f(z), (), np.zeros((), dtype)[()])
    return list(prepared.run(prepared.bind(()), parts))


def check_swept(swept: Sequence[Swept], direct: Direct) -> None:
    """Nodes and midpoints of a sweep against direct evaluation; what jumps is constant between."""
    points, found = [], []
    for part in swept:
        assert np.all(np.diff(part.z) >= 0)
        wide = ~part.closed & (np.diff(part.z) > NARROW)
        assert not np.any((np.diff(part.z) > 0) & part.closed & (np.diff(part.z) < 1e-6))
        # A node between two wide intervals is not at a jump, which would have two nodes.
        single = np.flatnonzero(np.append(wide, False) & np.append(False, wide))
        inside = np.flatnonzero(wide)
        points += [part.z[single], (part.z[inside] + part.z[inside + 1]) / 2]
        for leaf in part.outputs:
            if leaf.dtype.kind in "biu":
                np.testing.assert_array_equal(leaf[inside], leaf[inside + 1])
        table = columns(part.outputs, len(part.z))
        found += [table[single], (table[inside] + table[inside + 1]) / 2]
    expected = direct(np.concatenate(points))
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=ROUNDING, atol=10 * ROUNDING)


def all_nodes(swept: Sequence[Swept]) -> np.ndarray:
    """The nodes of a sweep, ascending."""
    return np.concatenate([part.z for part in swept])


def distance_to(points: Any, nodes: np.ndarray) -> np.ndarray:
    """How far each point is from the nearest node."""
    points = np.asarray(points)
    at = np.clip(np.searchsorted(nodes, points), 1, len(nodes) - 1)
    return np.minimum(np.abs(points - nodes[at - 1]), np.abs(points - nodes[at]))


def walked_windows(f: Callable[[Any], Any], lo: float, hi: float) -> np.ndarray:
    """Windows (k, 2) met by walking from lo to hi; each begins where the one before ended."""
    piece = jax.jit(partial(affine_piece, f))
    windows, at = [], lo
    while at < hi:
        # The nudge is far below the narrowest window; the check below would tell if it were not.
        found = piece(at + 1e-10)
        assert int(found.status) == 0
        if windows:
            assert abs(float(found.lo) - at) < END * max(1.0, abs(at))
        windows.append((float(found.lo), float(found.hi)))
        at = float(found.hi)
    return np.asarray(windows)


class Mlp(NamedTuple):
    """A ReLU network on the line `base + direction z`; the last layer has no ReLU."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]

    def __call__(self, z: Any) -> Any:
        """The network in JAX."""
        h = jnp.reshape(z, (1,))
        for k, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = (jnp.maximum(h, 0.0) if k else h) @ w + b
        return h


def random_mlp(seed: int, widths: Sequence[int]) -> Mlp:
    """An MLP of normal weights (variance 2 / fan-in) and normal biases, one input."""
    rng = np.random.default_rng(seed)
    pairs = list(zip([1, *widths[:-1]], widths, strict=True))
    weights = [rng.normal(size=pair) * np.sqrt(2 / pair[0]) for pair in pairs]
    return Mlp(weights, [rng.normal(size=n) for n in widths])


def mlp_pieces(net: Mlp, z: np.ndarray) -> tuple[np.ndarray, ...]:
    """Values, slopes, window ends and activation patterns of an MLP at points z, by hand."""
    value, slope = z[:, None], np.ones((z.size, 1))
    lo, hi = np.full(z.size, -np.inf), np.full(z.size, np.inf)
    patterns = []
    for k, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        if k:
            on = value > 0
            patterns.append(on)
            root = z[:, None] - value / slope
            lo = np.maximum(lo, np.where(root < z[:, None], root, -np.inf).max(1))
            hi = np.minimum(hi, np.where(root > z[:, None], root, np.inf).min(1))
            value, slope = value * on, slope * on
        value, slope = value @ w + b, slope @ w
    return value, slope, lo, hi, np.concatenate(patterns, axis=1)


def mlp_windows(net: Mlp, lo: float, hi: float) -> np.ndarray:
    """Every window (k, 2) of an MLP between lo and hi, without stepping along the line.

    Gaps are bisected until the windows at both sides of each differ in one unit: neighbours.
    """
    _, _, left, right, patterns = mlp_pieces(net, np.array([lo, hi]))
    found = {p.tobytes(): (a, b, p) for a, b, p in zip(left, right, patterns, strict=True)}
    while True:
        windows = sorted(found.values(), key=lambda window: window[0])
        gaps = [
            (before[1], after[0])
            for before, after in pairwise(windows)
            if not (np.sum(before[2] != after[2]) == 1 and abs(after[0] - before[1]) < END)
        ]
        if not gaps:
            return np.asarray([window[:2] for window in windows])
        assert min(b - a for a, b in gaps) > END  # else: two units flip at once, to rounding
        _, _, left, right, patterns = mlp_pieces(net, np.mean(gaps, axis=1))
        found |= {p.tobytes(): (a, b, p) for a, b, p in zip(left, right, patterns, strict=True)}


def assert_same_record(one: dict[str, Any], other: dict[str, Any], what: str = "") -> None:
    """Two computations of one test agree as promised (docs/engines.md): settled p and ends, too."""
    assert contradiction(one, other) is None, what
    p = [np.nan if r["p_value"] is None else r["p_value"] for r in (one, other)]
    np.testing.assert_allclose(*p, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)
    sets = [np.asarray(r["truncation"], float).reshape(-1, 2) for r in (one, other)]
    assert len(sets[0]) == len(sets[1]), what
    if len(sets[0]):
        ends = [each / r["sd"] for each, r in zip(sets, (one, other), strict=True)]
        spans = [np.asarray(r["searched"], float) / r["sd"] for r in (one, other)]
        # Both sets reach as far as their search did; that far is not promised.
        inner = [max(s[0, 0] for s in spans), min(s[-1, 1] for s in spans)]
        ends = [np.clip(e, *inner) for e in ends]
        np.testing.assert_allclose(*ends, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)


_compiled = 0


def _count_compilation(event: str, duration_secs: float, **_: Any) -> None:
    global _compiled
    _compiled += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def num_compilations() -> int:
    """How many programs XLA has compiled in this process."""
    return _compiled


def small_unet() -> Callable[[Any], Any]:
    """A U-Net of 2 and 3 channels for 4 x 4 images, random, on a random line."""
    config = UNetConfig(channels=(2, 3), time_dim=4)
    rng = np.random.default_rng(2)
    drawn = jax.tree.map(lambda v: v + 0.3 * rng.normal(size=v.shape), init_unet(config, 0))
    variables = {**drawn, "batch_stats": jax.tree.map(np.abs, drawn["batch_stats"])}
    base, direction = rng.normal(size=(2, 1, 4, 4, 1))
    return lambda z: UNet(config).apply(variables, base + direction * z, 7.0)


def with_devices(count: int, script: str, *arguments: Any) -> None:
    """Run a script in a process with a number of host devices; warnings are errors."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
