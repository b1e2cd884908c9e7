"""The sweep: every window, exact values, chunks and parts, memory, compilation."""

import tracemalloc
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    END,
    NARROW,
    Direct,
    Mlp,
    all_nodes,
    check_swept,
    distance_to,
    mlp_pieces,
    mlp_windows,
    num_compilations,
    random_mlp,
    small_unet,
    swept_parts,
    walked_windows,
    x,
    y,
)
from jax import lax

from dal_jax import NotPiecewiseAffineError
from dal_jax.affine import Swept, _sweep, sweep
from dal_jax.affine._sweep import Nodes, insert_crossings, split_jumps


def distinct(z: np.ndarray) -> np.ndarray:
    """Nodes further apart than rounding."""
    z = np.sort(z)
    return z[np.append(True, np.diff(z) > NARROW)]


def jumping(z: Any) -> Any:
    """Continuous and jumping outputs, and one made of both."""
    h = jnp.abs(x(z)) + jnp.maximum(y(z), 0.0)
    inside = h > 2.0
    return h, inside, jnp.where(inside, h, 0.0).sum(), jnp.argmax(h)


@pytest.mark.parametrize("seed", range(4))
def test_finds_every_window_of_a_random_network(seed: int) -> None:
    net = random_mlp(seed, [24, 24, 2])
    expected = mlp_windows(net, -4.0, 4.0)
    swept = swept_parts(net, [(-4.0, 4.0)])
    nodes = distinct(all_nodes(swept))
    assert len(nodes) == len(expected) + 1 > 30
    np.testing.assert_allclose(nodes[1:-1], expected[1:, 0], rtol=END, atol=END)
    check_swept(swept, Direct(net))
    z = all_nodes(swept)
    value, *_ = mlp_pieces(net, z)
    found = np.concatenate([part.outputs[0] for part in swept])
    np.testing.assert_allclose(found, value, rtol=END, atol=END)


@pytest.mark.slow
def test_unet_sweep_and_walk_agree() -> None:
    unet = small_unet()
    walked = walked_windows(unet, -4.0, 4.0)
    swept = swept_parts(unet, [(-4.0, 4.0)])
    nodes = distinct(all_nodes(swept))
    assert len(nodes) == len(walked) + 1 > 40
    np.testing.assert_allclose(nodes[1:-1], walked[1:, 0], rtol=END, atol=10 * END)
    check_swept(swept, Direct(unet))


def test_jumps() -> None:
    swept = swept_parts(jumping, [(-3.0, 3.0)])
    check_swept(swept, Direct(jumping))
    for part in swept:
        inside, total = part.outputs[1], part.outputs[2]
        changes = (inside[1:] != inside[:-1]).any(1)
        # What jumps does so at two nodes of one place, where it has both limits.
        assert np.all(part.closed[changes]) and np.all(np.diff(part.z)[changes] == 0)
        assert np.all(np.abs(np.diff(total))[changes] > 1.0)


@pytest.mark.parametrize("part", [(-1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)])
def test_ends_of_a_part_at_a_jump_belong_to_it(part: tuple[float, float]) -> None:
    swept = swept_parts(lambda z: (z > 0, z >= 0, jnp.sign(z), z), [part])
    z = all_nodes(swept)
    columns = [np.concatenate([s.outputs[k] for s in swept]) for k in range(4)]
    right = np.arange(len(z)) >= (len(z) // 2 if part == (-1.0, 1.0) else (0, 9)[part[0] < 0])
    np.testing.assert_array_equal(columns[0], right)
    np.testing.assert_array_equal(columns[1], right)
    np.testing.assert_array_equal(columns[2], np.where(right, 1.0, -1.0))
    np.testing.assert_array_equal(columns[3], z)


@pytest.mark.slow
def test_parts_in_one_run_equal_parts_alone() -> None:
    parts = [(-3.0, -1.0), (-1.0, -0.5), (0.25, 1.0), (2.0, 3.5)]
    together = swept_parts(jumping, parts)
    check_swept(together, Direct(jumping))
    z = all_nodes(together)
    alone = [all_nodes(swept_parts(jumping, [part])) for part in parts]
    np.testing.assert_array_equal(np.unique(z), np.unique(np.concatenate(alone)))
    for (_, before), (after, _) in pairwise(parts):
        assert not np.any((z > before) & (z < after))
    for part in together:
        gaps = ~part.closed & (np.diff(part.z) > 0)
        middles = ((part.z[1:] + part.z[:-1]) / 2)[gaps]
        assert all(any(lo < z < hi for lo, hi in parts) for z in middles)


def test_no_parts() -> None:
    assert swept_parts(jumping, []) == []


@pytest.mark.parametrize("chunk", [1, 3, 20, 10_000])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def f(z: Any) -> Any:
        h = jnp.abs(random_mlp(1, [8, 8, 4])(z))
        return h, h > 0.5, jnp.argmax(h)

    prepared = sweep(lambda _, z: f(z), (), np.float64(0))
    statics = prepared.bind(())
    whole = list(prepared.run(statics, [(-4.0, 0.5), (1.0, 4.0)]))
    monkeypatch.setattr(_sweep, "MIN_CHUNK", chunk)
    split = list(prepared.run(statics, [(-4.0, 0.5), (1.0, 4.0)]))
    assert (len(split) > 5) if chunk < 10 else (len(split) <= len(whole) + 5)
    ends = [part.z[[0, -1]] for part in split]
    for (_, end), (start, _) in pairwise(ends):
        assert start == end  # chunks share their border
    np.testing.assert_allclose(
        distinct(all_nodes(split)), distinct(all_nodes(whole)), rtol=END, atol=END
    )
    check_swept(split, Direct(f))


def test_border_of_chunks_at_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of the nodes 1, 2, ..., 7 are jumps of one comparison or another, and some are borders.
    monkeypatch.setattr(_sweep, "MIN_CHUNK", 1)

    def f(z: Any) -> Any:
        kinks = jnp.abs(z - np.arange(1.0, 8.0))
        return jnp.sum(kinks), kinks >= 1.0, jnp.sum(jnp.where(kinks < 1.0, z, -1.0))

    swept = swept_parts(f, [(0.0, 8.0)])
    assert len(swept) > 4
    check_swept(swept, Direct(f))


def test_crossings_at_one_point() -> None:
    # Units that cross together share a node; units that cross at an end of the part add none.
    w = np.array([1.0, 1.0, 3.0, -2.0])

    def f(z: Any) -> Any:
        h = jnp.maximum(w * (z - 0.25), 0.0)
        return h, jnp.maximum(h - 0.0, 0.0) > 0, jnp.maximum(z - 1.0, 0.0), jnp.abs(z + 1.0)

    (swept,) = swept_parts(f, [(-1.0, 1.0)])
    np.testing.assert_array_equal(np.unique(swept.z), [-1.0, 0.25, 1.0])
    np.testing.assert_array_equal(swept.outputs[0][swept.z == 0.25], 0.0)
    check_swept([swept], Direct(f))


def test_float32_is_close() -> None:
    net = random_mlp(2, [16, 16, 2])
    narrow = Mlp(*([v.astype(np.float32) for v in values] for values in net))
    exact = distinct(all_nodes(swept_parts(net, [(-4.0, 4.0)])))
    swept = swept_parts(narrow, [(-4.0, 4.0)], np.float32)
    assert {part.outputs[0].dtype for part in swept} == {np.dtype(np.float32)}
    assert {part.z.dtype for part in swept} == {np.dtype(np.float64)}
    # Rounding of 6e-8 in values near 4, divided by slopes that are seldom below 0.1.
    assert distance_to(exact, all_nodes(swept)).max() < 2e-5
    z = all_nodes(swept)
    found = np.concatenate([part.outputs[0] for part in swept])
    np.testing.assert_allclose(found, mlp_pieces(net, z)[0], rtol=1e-5, atol=2e-5)


def test_outputs_that_are_not_computed() -> None:
    prepared = sweep(lambda v, z: (z, v["a"], 3.0, v["b"] + 1, jnp.zeros((0, 2))), OPERANDS, 0.0)
    (swept,) = prepared.run(prepared.bind(OPERANDS), [(0.0, 1.0)])
    assert [out.shape for out in swept.outputs] == [(2,), (2, 3), (2,), (2,), (2, 0, 2)]
    np.testing.assert_array_equal(swept.outputs[0], [0.0, 1.0])
    np.testing.assert_array_equal(swept.outputs[1], np.broadcast_to(OPERANDS["a"], (2, 3)))


OPERANDS = {"a": np.array([1.0, -2.0, 0.5]), "b": np.float64(2.0)}


def of_operands(v: Any, z: Any) -> Any:
    """A function of operands that enter as weights, levels and through functions of any kind."""
    h = jnp.maximum(v["a"] * z, jnp.tanh(v["b"]))
    return h, h > v["b"], lax.sort(h)


def test_second_run_compiles_nothing() -> None:
    prepared = sweep(of_operands, OPERANDS, np.float64(0))
    first = list(prepared.run(prepared.bind(OPERANDS), [(-3.0, 3.0)]))
    check_swept(first, Direct(partial(of_operands, OPERANDS)))
    before = num_compilations()
    assert before > 0
    again = list(prepared.run(prepared.bind(OPERANDS), [(-3.0, 3.0)]))
    assert num_compilations() == before
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    others = jax.tree.map(lambda v: v * 0.75, OPERANDS)
    moved = list(prepared.run(prepared.bind(others), [(-3.0, 3.0)]))
    assert num_compilations() == before
    check_swept(moved, Direct(partial(of_operands, others)))


def test_turns_of_a_loop_share_their_programs() -> None:
    def looped(length: int) -> Any:
        net = random_mlp(0, [6, 6])
        turn = jax.jit(lambda h: jnp.maximum(h, 0.0) @ net.weights[1] + net.biases[1])
        return lambda z: lax.fori_loop(0, length, lambda _, h: turn(h), z * np.ones(6))

    counts = []
    for length in (3, 9):
        before = num_compilations()
        swept_parts(looped(length), [(-1.0, 1.0)])
        counts.append(num_compilations() - before)
    assert counts[1] <= counts[0] + 2


def folded(z: Any) -> Any:
    """40 triangular waves of period 1 on [-64, 64]."""
    h = z + np.linspace(0.0, 0.01, 40)
    for fold in 32.0 / 2.0 ** np.arange(8):
        h = jnp.abs(h) - fold
    return jnp.sum(h)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sweep, "MIN_CHUNK", 8)
    prepared = sweep(lambda _, z: folded(z), (), np.float64(0))
    statics = prepared.bind(())

    def peak_and_windows(part: tuple[float, float]) -> tuple[int, int]:
        tracemalloc.start()
        windows = sum(int((~swept.closed).sum()) for swept in prepared.run(statics, [part]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, windows

    peak_and_windows((-60.0, 60.0))  # compiles
    small, few = peak_and_windows((-12.0, 12.0))
    large, many = peak_and_windows((-60.0, 60.0))
    assert many > 4 * few > 1000
    # The stack of halves waiting is a little deeper, by the logarithm of the ratio.
    assert large < 1.5 * small, (small, large)


def test_long_loops() -> None:
    # Longer than Python's own stack of calls, and with values that are used twice in every turn.
    def f(z: Any) -> Any:
        return jnp.abs(lax.fori_loop(0, 400, lambda _, c: c * 0.5 + (0.5 * c + 0.001), z))

    check_swept(swept_parts(f, [(-3.0, 3.0)]), Direct(f))


UNKNOWN = {
    "overflow": lambda z: jnp.maximum(z * 1e308 * 1e3, 0.0) > 1.0,
    "nan": lambda z: jnp.max(jnp.where(np.array([True, False]), z, jnp.nan)),
    "hidden_nan": lambda z: jnp.where(jnp.sqrt(-jnp.ones(())) * z > 0.0, z, 1.0),
    "pole": lambda z: jnp.abs(z / 0.0),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_finite_is_not_known(name: str) -> None:
    (swept,) = swept_parts(lambda z: (jnp.abs(z), UNKNOWN[name](z)), [(-1.0, 1.0)])
    assert np.all(np.isnan(swept.outputs[0]))
    assert swept.outputs[1].dtype == bool or np.all(np.isnan(swept.outputs[1]))


def test_infinities_that_stay_are_known() -> None:
    def f(z: Any) -> Any:
        masked = jnp.where(np.array([True, False, True]), jnp.abs(x(z)[:3]), -jnp.inf)
        return jnp.max(masked), jnp.where(masked > 1.0, masked, -jnp.inf).argmax()

    check_swept(swept_parts(f, [(-3.0, 3.0)]), Direct(f))


def test_refusals() -> None:
    with pytest.raises(NotPiecewiseAffineError, match=r"^tanh at .*test_affine_sweep\.py"):
        sweep(lambda _, z: jnp.tanh(z), (), np.float64(0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128, jnp.bfloat16])
def test_inserted_nodes_interpolate_every_kind_of_number(dtype: Any) -> None:
    values = {
        1: np.array([[-1.0, 2.0], [3.0, 2.0], [1.0, 2.0]]),
        2: np.array([0.0, 4.0, 8.0]).astype(dtype),
        3: np.array([-np.inf, -np.inf, 5.0]),
        4: np.array([7, 7, 9]),
    }
    nodes = Nodes(np.array([0.0, 1.0, 2.0]), np.array([False, True]), values)
    grown = insert_crossings(nodes, 1, np.zeros(()))
    np.testing.assert_array_equal(grown.z, [0.0, 0.25, 1.0, 2.0])
    np.testing.assert_array_equal(grown.closed, [False, False, True])
    np.testing.assert_array_equal(grown.values[1][1], [0.0, 2.0])
    np.testing.assert_array_equal(grown.values[2], np.array([0, 1, 4, 8]).astype(dtype))
    np.testing.assert_array_equal(grown.values[3], [-np.inf, -np.inf, -np.inf, 5.0])
    np.testing.assert_array_equal(grown.values[4], [7, 7, 7, 9])


def test_inserted_nodes_stay_in_their_interval() -> None:
    rng = np.random.default_rng(0)
    z = np.sort(rng.normal(size=200)) * 1e-3 + 1.0
    margins = np.where(np.arange(200)[:, None] % 2, 1.0, -1e-18) * rng.uniform(size=(200, 20))
    nodes = Nodes(z, np.zeros(199, bool), {1: margins})
    grown = insert_crossings(nodes, 1, np.zeros(()))
    assert len(grown.z) > 200
    assert np.all(np.diff(grown.z) >= 0)
    np.testing.assert_array_equal(grown.closed, np.diff(grown.z) == 0)


@pytest.mark.parametrize("test", _sweep.TESTS)
def test_infinite_values_compare_as_they_do_in_jax(test: str) -> None:
    value = np.array([[-np.inf, np.inf, np.nan, 1.0]] * 2)
    level = np.array([-np.inf, np.inf, 0.0, np.inf])
    nodes = Nodes(np.array([0.0, 1.0]), np.zeros(1, bool), {1: value})
    same, out = split_jumps(nodes, 1, level, test)
    assert len(same.z) == 2
    np.testing.assert_array_equal(out, getattr(lax, test)(value, np.stack([level] * 2)))


def test_what_is_yielded() -> None:
    for swept in swept_parts(jumping, [(-3.0, 3.0)]):
        assert isinstance(swept, Swept)
        assert swept.closed.shape == (len(swept.z) - 1,)
        assert all(len(out) == len(swept.z) for out in swept.outputs)
