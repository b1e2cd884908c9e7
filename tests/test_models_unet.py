from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_unet

from dal_jax import InputError
from dal_jax.models import (
    UNet,
    UNetConfig,
    _convolve,
    _fold,
    denoiser,
    fold_norm,
    import_state_dict,
    init_unet,
    time_code,
    unet_shapes,
)


def imported(tmp_path, config, seed=0):
    arrays = reference_unet.random_state_dict(
        np.random.default_rng(seed), config.in_channels, config.channels, config.time_dim
    )
    np.savez(tmp_path / "w.npz", **arrays)
    return arrays, import_state_dict(tmp_path / "w.npz", config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "size"),
    [
        (UNetConfig(1, (3, 4, 5), 10), (8, 8)),  # 2 x 2 at the bottom: matrices in place of maps
        (UNetConfig(3, (4, 6), 7), (6, 10)),
        (UNetConfig(2, (5,), 8), (3, 4)),
        (UNetConfig(1, (3, 4), 9), (2, 4)),  # 1 x 2 at the bottom
        (UNetConfig(1, (32, 33, 34), 10), (8, 16)),  # few products on 4 x 8 and 2 x 4 maps
    ],
)
def test_equals_numpy_reference(tmp_path, config, size):
    arrays, variables = imported(tmp_path, config)
    x = np.random.default_rng(1).standard_normal((2, *size, config.in_channels))
    expected = np.stack(
        [np.moveaxis(reference_unet.unet(arrays, np.moveaxis(y, -1, 0), 230), 0, -1) for y in x]
    )
    levels = jnp.asarray([230.0, 230.0])
    folded = jax.jit(denoiser(variables, config, size, np.float64))
    wide = jax.tree.map(np.float64, variables)
    plain = jax.jit(UNet(config).apply)(wide, jnp.asarray(x), levels)
    scale = np.abs(expected).max()
    # Rounding of sums of up to 9 x 67 products through seven layers.
    np.testing.assert_allclose(folded(jnp.asarray(x), 230.0), expected, atol=1e-13 * scale)
    np.testing.assert_allclose(plain, expected, atol=1e-13 * scale)


@pytest.mark.slow
def test_float32_and_levels_that_differ_within_a_batch(tmp_path):
    config = UNetConfig(1, (3, 4), 6)
    arrays, variables = imported(tmp_path, config)
    x = np.random.default_rng(2).standard_normal((2, 4, 4, 1)).astype(np.float32)
    y = jax.jit(denoiser(variables, config, (4, 4), np.float32))(x, np.array([3, 700], np.float32))
    assert y.dtype == np.float32
    expected = [reference_unet.unet(arrays, x[k, None, :, :, 0], t) for k, t in ((0, 3), (1, 700))]
    scale = np.abs(expected).max()
    # Float32 rounding through five layers; that of the angle 700 in the time code.
    np.testing.assert_allclose(y[..., 0], np.stack(expected)[:, 0], atol=2e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", [True, False])
def test_conditions_once_for_all_levels_on_any_platform(monkeypatch, cpu):
    for module in (_convolve, _fold):
        monkeypatch.setattr(module, "on_cpu", lambda: cpu)
    config = UNetConfig(1, (32, 33, 34), 6)
    variables = init_unet(config, 0)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 8, 8, 1)))
    denoise = denoiser(variables, config, (8, 8), np.float64)
    rows = jax.jit(denoise.conditions)(np.array([460.0, 230.0]))
    wide = jax.tree.map(np.float64, variables)
    for k, level in enumerate([460.0, 230.0]):
        found = jax.jit(denoise.given)(x, jax.tree.map(lambda rows, k=k: rows[k], rows))
        expected = jnp.asarray(jax.jit(UNet(config).apply)(wide, x, np.array([level])))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-13 * scale)  # rounding


@pytest.mark.slow
def test_under_vmap_and_one_compilation():
    config = UNetConfig(1, (3, 4), 6)
    variables = init_unet(config, 0)
    traces = []

    @jax.jit
    def predict(variables, x):
        traces.append(1)
        return denoiser(variables, config, (4, 4), x.dtype)(x[None], 10)[0]

    x = jnp.asarray(np.random.default_rng(3).standard_normal((3, 4, 4, 1)))
    batch = jax.vmap(predict, (None, 0))(variables, x)
    np.testing.assert_allclose(batch[2], predict(variables, x[2]), atol=1e-13)  # rounding
    predict(init_unet(config, 1), x[0])
    assert len(traces) == 1


@pytest.mark.slow
def test_only_linear_primitives_and_max_move_with_the_image():
    config = UNetConfig(1, (32, 33, 34), 6)
    variables = init_unet(config, 0)
    predict = denoiser(variables, config, (8, 8), np.float64)
    jaxpr = jax.make_jaxpr(lambda x: predict(x, 10.0))(jnp.ones((1, 8, 8, 1)))
    moving, seen = set(jaxpr.jaxpr.invars), set()
    for eqn in jaxpr.jaxpr.eqns:
        if any(not hasattr(v, "val") and v in moving for v in eqn.invars):
            moving.update(eqn.outvars)
            seen.add(eqn.primitive.name)
    shapes = {"reshape", "slice", "concatenate", "stack", "squeeze", "transpose", "pad"}
    linear = {"add", "mul", "reduce_sum", "dot_general", "conv_general_dilated"}
    assert seen <= shapes | linear | {"broadcast_in_dim", "max"}


def test_training_mode_uses_and_updates_statistics():
    config = UNetConfig(1, (3, 4), 6)
    variables = init_unet(config, 0)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4, 4, 1)), np.float32)
    apply = partial(UNet(config).apply, train=True, mutable=["batch_stats"])
    y, changed = jax.jit(apply)(variables, x, np.float32(5))
    assert y.dtype == np.float32
    before = variables["batch_stats"]["down1"]["norm"]["mean"]
    assert np.abs(changed["batch_stats"]["down1"]["norm"]["mean"] - before).max() > 0


@pytest.mark.slow
def test_bfloat16_keeps_levels_apart():
    config = UNetConfig(1, (3, 4), 50)
    variables = init_unet(config, 0)
    x = jnp.zeros((1, 4, 4, 1), jnp.bfloat16)
    predict = jax.jit(denoiser(variables, config, (4, 4), jnp.bfloat16))
    assert predict(x, 460).dtype == jnp.bfloat16
    # 460 and 461 are one number in bfloat16, so their codes differ only if taken in float32.
    assert (predict(x, 460) != predict(x, 461)).any()


def test_time_code_by_hand():
    code = time_code(jnp.asarray([2.0, 5.0]), 4)
    d = [1.0, 10.0, 100.0, 1000.0]
    expected = [[np.sin(t), np.cos(t / d[1]), np.sin(t / d[2]), np.cos(t / d[3])] for t in (2, 5)]
    np.testing.assert_allclose(code, expected, atol=1e-15)  # rounding


def test_initial_variables_are_float32_and_repeatable():
    config = UNetConfig(1, (3, 4), 6)
    first, again = init_unet(config, 7), init_unet(config, 7)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), first)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), unet_shapes(config))
    assert all(a.dtype == np.float32 for a in jax.tree.leaves(first))
    other = init_unet(config, 8)["params"]["out"]["kernel"]
    assert (first["params"]["out"]["kernel"] != other).any()
    wide = init_unet(UNetConfig(), 0)["params"]["bot1"]["conv"]["kernel"]
    assert abs(np.var(wide) * 9 * 128 - 1) < 0.01  # 295,000 draws: standard error 0.0026


def test_fold_keeps_no_statistics():
    config = UNetConfig(1, (3, 4), 6)
    folded = fold_norm(init_unet(config, 0), np.float32)
    assert set(folded) == {"down1", "bot1", "up1", "out"}
    assert set(folded["bot1"]) == {"kernel", "bias", "mlp_0", "mlp_2"}
    assert folded["bot1"]["kernel"].shape == (3, 3, 3, 4)


@pytest.mark.parametrize(
    "bad",
    [
        {"channels": ()},
        {"channels": (4, 0)},
        {"in_channels": 0},
        {"time_dim": 0},
        {"activation": "tanh"},
    ],
)
def test_bad_configuration_is_refused(bad):
    with pytest.raises(InputError, match=f"{next(iter(bad))}: got"):
        UNetConfig(**bad)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 6, 8, 1), (1, 8, 10, 1), (1, 8, 8, 3), (8, 1)])
def test_image_that_does_not_fit_is_refused(shape):
    config = UNetConfig(1, (3, 4, 5), 6)
    with pytest.raises(InputError, match="image: got"):
        config.check_image(shape)
    if len(shape) == 4:
        predict = denoiser(init_unet(config, 0), config, (8, 8), np.float64)
        with pytest.raises(InputError, match="image: got"):
            predict(jnp.ones(shape), 1)


@pytest.mark.slow
def test_images_of_other_sides_than_a_denoiser_is_laid_out_for_are_refused():
    config = UNetConfig(1, (3, 4), 6)
    predict = denoiser(init_unet(config, 0), config, (4, 4), np.float64)  # 2 x 2 at the bottom
    with pytest.raises(InputError, match=r"image: got shape \(1, 12, 12, 1\), expected \(B, 4, 4"):
        predict(jnp.ones((1, 12, 12, 1)), 1)


@pytest.mark.slow
def test_a_denoiser_that_pulls_has_the_same_values_and_gradients():
    config = UNetConfig(channels=(4, 8, 16), time_dim=8)
    variables = init_unet(config, 0)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 1)))
    level = jnp.asarray(7.0)
    plain, pulling = (denoiser(variables, config, (8, 8), np.float64, p) for p in (False, True))

    def both(denoise, x):
        y, pull = jax.vjp(lambda v: denoise(v, level), x)
        return y, pull(x)[0]

    (y, back), (expected, known) = (jax.jit(partial(both, d))(x) for d in (pulling, plain))
    np.testing.assert_allclose(y, expected, atol=1e-12)  # orders of summation, here and below
    np.testing.assert_allclose(back, known, atol=1e-12)
