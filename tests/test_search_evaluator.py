import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import num_compilations
from jax import lax
from search_cases import dense_localizer, jumping_localizer, pooled_localizer

from dal_jax import InputError, from_score
from dal_jax._compat import exact_arithmetic, split_known
from dal_jax.search import Evaluator, Functions

LOCALIZERS = {
    "pooled": pooled_localizer(1, side=6),
    "two channels": pooled_localizer(2, channels=2),
    "dense": dense_localizer(3),
    "jumping": jumping_localizer(4),
}
# Two computations of one score differ by this many roundings at most, of numbers of its size.
ROUNDINGS = 16


def evaluator(localizer, **options):
    functions = Functions(localizer.score_fn, localizer.reconstruct_fn, localizer.image_shape)
    return Evaluator(functions, localizer.params, localizer.draws, **options)


def pictures(localizer, count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *localizer.image_shape))


def scores(evaluate, images, dtype="float64", draws=None):
    return np.asarray(evaluate(images, draws, dtype).score)[: len(images)]


@pytest.mark.parametrize("name", LOCALIZERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_image_does_not_feel_its_batch(name, dtype):
    localizer = LOCALIZERS[name]
    evaluate = evaluator(localizer)
    capacity = evaluate.capacity(dtype)
    images = pictures(localizer, capacity)
    full = scores(evaluate, images, dtype)
    assert full.dtype == dtype
    # Sums of some dozen terms in another order, of scores of about 10. One image that leaked into
    # another would show at its own size: those beside are a thousand times as large, or NaN.
    same = partial(np.testing.assert_allclose, rtol=0, atol=ROUNDINGS * 10 * np.finfo(dtype).eps)
    rng = np.random.default_rng(1)
    for count in (1, 2, capacity // 2, capacity - 1, capacity):
        # Some of them, at other places, beside zeros or beside others.
        chosen = rng.permutation(capacity)[:count]
        same(scores(evaluate, images[chosen], dtype), full[chosen])
        others = pictures(localizer, capacity, seed=2) * 1e3
        places = rng.permutation(capacity)[:count]
        others[places] = images[chosen]
        same(scores(evaluate, others, dtype)[places], full[chosen])
    broken = np.full_like(images, np.nan)
    broken[3] = images[3]
    same(scores(evaluate, broken, dtype)[3], full[3])


@pytest.mark.parametrize("name", LOCALIZERS)
def test_scores_and_reconstructions_are_those_of_the_localizer(name):
    localizer = LOCALIZERS[name]
    evaluate, images = evaluator(localizer), pictures(localizer, 5)
    assert evaluate(images, None, "float32").reconstruction is None
    narrow, wide = (scores(evaluate, images, dtype) for dtype in ("float32", "float64"))
    found = evaluate(images, None, "float64", reconstruct=True)
    np.testing.assert_array_equal(np.asarray(found.score)[:5], wide)
    reconstructions = np.asarray(found.reconstruction)
    for number, image in enumerate(images):
        score, reconstruction = localizer.evaluate(image)
        # Sums of a few dozen terms of about 1, in other orders.
        np.testing.assert_allclose(wide[number], score, rtol=0, atol=1e-13)
        np.testing.assert_allclose(narrow[number], score, rtol=0, atol=1e-4)
        assert np.abs(narrow[number] - score).max() > 1e-9  # it is float32
        np.testing.assert_allclose(
            reconstructions[number], reconstruction, rtol=0, atol=1e-13, equal_nan=True
        )


def test_images_with_draws_of_their_own():
    localizer = LOCALIZERS["pooled"]
    images = pictures(localizer, 6)
    draws = pictures(localizer, 6, seed=7)
    evaluate = evaluator(localizer, own_draws=True)
    found = scores(evaluate, images, draws=draws)
    for number in range(6):
        own = localizer.with_draws(draws[number])
        np.testing.assert_allclose(found[number], own.score(images[number]), rtol=0, atol=1e-13)
    order = np.array([4, 0, 5])
    again = scores(evaluate, images[order], draws=draws[order])
    np.testing.assert_allclose(again, found[order], rtol=0, atol=ROUNDINGS * 1e-15)
    apart = {"two": draws, "one": draws[:, :1]}  # draws may be any pytree

    def score(params, own, x):
        return jnp.abs(x + own["two"] * own["one"]).sum(-1) * params

    shape = localizer.image_shape
    one = {name: array[0] for name, array in apart.items()}
    tree = Evaluator(Functions(score, score_as_image, shape), np.ones(()), one, own_draws=True)
    found = scores(tree, images, draws=apart)
    np.testing.assert_allclose(found, np.abs(images + draws * draws[:, :1]).sum(-1), atol=1e-13)


def score_as_image(params, draws, x):
    return x


def test_a_second_evaluator_of_a_kind_compiles_nothing():
    first, second = dense_localizer(21, side=7), dense_localizer(22, side=7)
    for dtype in ("float64", "float32"):
        scores(evaluator(first), pictures(first, 3), dtype)
    before = num_compilations()
    other = evaluator(second)
    found = {
        (dtype, count): scores(other, pictures(second, count), dtype)
        for dtype in ("float64", "float32")
        for count in (1, 4, other.capacity(dtype))
    }
    assert num_compilations() == before
    expected = second.score(pictures(second, 4)[2])
    # Rounding in float32, of scores of about 10.
    for dtype, tolerance in (("float64", 1e-13), ("float32", 1e-4)):
        np.testing.assert_allclose(found[dtype, 4][2], expected, rtol=0, atol=tolerance)


def test_what_does_not_fit_is_refused():
    localizer = LOCALIZERS["dense"]
    with pytest.raises(InputError, match="devices is empty"):
        evaluator(localizer, devices=[])
    flat = from_score(lambda params, draws, x: x.sum(), (3, 3, 1), 0.5)
    with pytest.raises(InputError, match=r"localizer has scores \(\), expected \(3, 3\)"):
        evaluator(flat).capacity("float32")


@pytest.mark.parametrize(
    ("side", "capacity", "block"),
    [(5, 32, 32), (18, 30, 6), (80, 32, 1), (300, 11, 1), (800, 1, 1)],
)
def test_a_processor_computes_blocks_that_stay_in_its_caches(side, capacity, block):
    localizer = from_score(lambda params, draws, x: x.sum(-1) + params, (side, side, 1), 0.5, 1.0)
    evaluate = evaluator(localizer)
    assert evaluate.capacity("float32") == capacity
    for count in {1, block, min(block + 1, capacity), capacity}:
        images = pictures(localizer, count)
        found = np.asarray(evaluate(images, (), "float32").score)
        np.testing.assert_array_equal(found[:count], images[..., 0].astype(np.float32) + 1)
        computed = -(-count // block) * block
        assert (found[count:computed] == 1).all()  # padding of the last block
        assert not found[computed:].any()  # blocks of padding alone are not computed


DEVICES = """
import json, sys
sys.path.insert(0, sys.argv[1])
import jax
import numpy as np
from test_search_evaluator import LOCALIZERS, evaluator, pictures, scores
found = {"devices": len(jax.local_devices())}
for name in ("pooled", "dense"):
    localizer = LOCALIZERS[name]
    for dtype in ("float64", "float32"):
        for devices in ({}, {"devices": jax.local_devices()[-1:]}):
            evaluate = evaluator(localizer, **devices)
            capacity = evaluate.capacity(dtype)
            images = pictures(localizer, 300)
            parts = [scores(evaluate, images[k : k + capacity], dtype)
                     for k in range(0, 300, capacity)]
            found[f"{name} {dtype} {len(devices)}"] = np.concatenate(parts).tolist()
            found[f"capacity {name} {dtype} {len(devices)}"] = capacity
print(json.dumps(found))
"""


@pytest.mark.slow
def test_eight_devices_give_the_scores_of_one():
    here = str(Path(__file__).parent)
    found = []
    for count in (1, 8):
        flags = f"--xla_force_host_platform_device_count={count}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        run = subprocess.run(
            [sys.executable, "-c", DEVICES, here],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert run.returncode == 0, run.stderr
        found.append(json.loads(run.stdout.splitlines()[-1]))
    one, eight = found
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    for key, value in one.items():
        if key.startswith("capacity"):
            assert eight[key] == value * (8 if key.endswith("0") else 1)
        else:
            limit = ROUNDINGS * 10 * np.finfo(key.split()[1]).eps
            np.testing.assert_allclose(eight[key], value, rtol=0, atol=limit, err_msg=key)


def looping(fixed, moving):
    """A loop, of whose body some depends on `fixed` alone."""

    def step(carry, row):
        return jnp.tanh(carry * jnp.sin(row) + jnp.exp(fixed["offset"])), carry.sum()

    return lax.scan(step, moving, fixed["rows"])


@jax.custom_jvp
def clipped(v):
    return jnp.maximum(v, 0)


clipped.defjvp(lambda primals, tangents: (clipped(primals[0]), tangents[0]))


def custom(fixed, moving):
    return clipped(moving * clipped(fixed["offset"])), jax.nn.silu(moving)


@jax.jit
def inner(a, b):
    return a @ jnp.outer(b, b), jnp.cos(b)


def jitted(fixed, moving):
    product, alone = inner(fixed["rows"], moving)
    return {"product": product, "alone": alone, "known": inner(fixed["rows"], fixed["offset"])}


def branching(fixed, moving):
    one = lax.cond(moving.sum() > 0, lambda v: v * fixed["offset"], lambda v: v - 1, moving)
    two = lax.cond(fixed["offset"].sum() > 0, jnp.sin, jnp.cos, moving)
    three = lax.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * fixed["offset"]), (0, moving)
    )
    return one, two, three[1]


def remembered(fixed, moving):
    return jax.checkpoint(lambda v: jnp.sin(v * jnp.cos(fixed["offset"])))(moving)


def known_only(fixed, moving):
    return fixed["rows"] * 2, jnp.full_like(moving, jnp.nan), 3.0, moving


@pytest.mark.parametrize("f", [looping, custom, jitted, branching, remembered, known_only])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_function_split_at_what_is_known(f, compiled):
    rng = np.random.default_rng(0)
    fixed = {"rows": rng.normal(size=(4, 5)), "offset": rng.normal(size=5)}
    with exact_arithmetic():
        prepare, apply = split_known(f, fixed, rng.normal(size=5))
        if compiled:
            prepare, apply = jax.jit(prepare), jax.jit(apply)
        known = prepare(fixed)
        for seed in range(3):
            moving = np.random.default_rng(seed).normal(size=5)
            found, expected = apply(known, moving), f(fixed, moving)
            assert jax.tree.structure(found) == jax.tree.structure(expected)
            # The compiler may round a fused product once instead of twice.
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14),
                found,
                expected,
            )


def test_what_is_known_is_computed_once():
    fixed = {"rows": np.ones((4, 5)), "offset": np.ones(5)}
    moving = np.ones(5)
    prepare, apply = split_known(looping, fixed, moving)
    rest = str(jax.make_jaxpr(apply)(prepare(fixed), moving))
    assert "tanh" in rest
    assert "sin" not in rest
    assert "exp" not in rest
