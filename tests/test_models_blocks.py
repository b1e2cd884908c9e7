import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.diffusion import DalConfig, TrainConfig, load_checkpoint, train
from dal_jax.models import UNet, UNetConfig, _convolve, _fold, denoiser, init_unet, unet_shapes
from dal_jax.models._blocks import attend, attend_pixels, group_count, group_norm, layer_norm

KINDS = {
    "none": UNetConfig(1, (3, 4, 5), 6, norm="none"),
    "group": UNetConfig(2, (8, 12), 6, "silu", norm="group"),
    "attention": UNetConfig(1, (4, 6, 64), 6, norm="group", attention=(0, 2)),
    "attention beside batch norm": UNetConfig(1, (4, 6), 6, attention=(1,)),
}


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def stirred(config, seed=0):
    """Variables with scales, biases and statistics that do something."""
    rng = np.random.default_rng(seed)
    found = jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape), init_unet(config, seed))
    return {**found, "batch_stats": jax.tree.map(np.abs, found["batch_stats"])}


def test_group_norm_by_hand():
    x, scale, bias = drawn(0, 2, 3, 5, 8) * 2.0 + 1.0, drawn(1, 8), drawn(2, 8)
    found = jax.jit(group_norm)(x, {"scale": scale, "bias": bias})
    for image in range(2):
        for first in (0, 4):  # two groups of four channels
            group = x[image, :, :, first : first + 4]
            expected = (group - group.mean()) / np.sqrt(group.var() + 1e-5)
            expected = expected * scale[first : first + 4] + bias[first : first + 4]
            np.testing.assert_allclose(
                found[image, :, :, first : first + 4], expected, atol=1e-13
            )  # rounding


def test_layer_norm_by_hand():
    x, scale, bias = drawn(0, 2, 3, 6), drawn(1, 6), drawn(2, 6)
    found = jax.jit(layer_norm, static_argnums=2)(x, {"scale": scale, "bias": bias}, 1e-3)
    variance = x.var(-1, keepdims=True) + 1e-3
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(variance) * scale + bias
    np.testing.assert_allclose(found, expected, atol=1e-13)  # rounding


def test_norms_in_bfloat16_take_their_statistics_in_float32():
    x = jnp.asarray(drawn(0, 1, 8, 8, 4) + 100.0, jnp.bfloat16)
    ones = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    found = jax.jit(group_norm)(x, ones)
    assert found.dtype == jnp.bfloat16
    # Statistics in bfloat16 would be off by as much as the spread itself: eight bits of 100.
    expected = jax.jit(group_norm)(x.astype(np.float64), ones)
    np.testing.assert_allclose(found.astype(np.float64), expected, atol=0.02)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2), (12, 3), (64, 16), (256, 32)]
)
def test_groups_hold_four_channels_or_more(channels, groups):
    assert group_count(channels) == groups


def attention_params(channels):
    return {
        "qkv": {"kernel": drawn(3, channels, 3 * channels), "bias": drawn(4, 3 * channels)},
        "proj": {"kernel": drawn(5, channels, channels), "bias": drawn(6, channels)},
    }


def test_attention_by_hand():
    x, params = drawn(0, 2, 5, 6), attention_params(6)
    found = jax.jit(attend, static_argnums=2)(x, params, 2)
    for image in range(2):
        made = x[image] @ params["qkv"]["kernel"] + params["qkv"]["bias"]
        mixed = []
        for head in range(2):
            query, key, value = (made[:, 6 * k + 3 * head : 6 * k + 3 * head + 3] for k in range(3))
            weights = np.exp(query @ key.T / np.sqrt(3.0))
            mixed.append(weights / weights.sum(1, keepdims=True) @ value)
        expected = np.concatenate(mixed, 1) @ params["proj"]["kernel"] + params["proj"]["bias"]
        np.testing.assert_allclose(found[image], expected, atol=1e-12)  # rounding


def test_attention_of_pixels_does_not_know_where_they_are():
    params = {**attention_params(4), "norm": {"scale": drawn(7, 4), "bias": drawn(8, 4)}}
    x, order = drawn(0, 1, 3, 2, 4), np.random.default_rng(1).permutation(6)
    shuffled = x.reshape(1, 6, 4)[:, order].reshape(x.shape)
    apply = jax.jit(attend_pixels)
    found = np.asarray(apply(x, params)).reshape(6, 4)[order]
    np.testing.assert_allclose(apply(shuffled, params).reshape(6, 4), found, atol=1e-12)  # rounding
    nothing = jax.tree.map(np.zeros_like, params)
    np.testing.assert_array_equal(apply(x, nothing), x)  # added to the map


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cpu"), [*((kind, True) for kind in KINDS), ("attention", False)])
def test_denoiser_is_the_network(monkeypatch, kind, cpu):
    for module in (_convolve, _fold):
        monkeypatch.setattr(module, "on_cpu", lambda: cpu)
    config, variables = KINDS[kind], stirred(KINDS[kind])
    x, levels = drawn(1, 2, 8, 4, config.in_channels), np.array([3.0, 70.0])
    found = jax.jit(denoiser(variables, config, (8, 4), np.float64))(x, levels)
    expected = jax.jit(UNet(config).apply)(variables, jnp.asarray(x), levels)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-12 * scale)  # rounding


@pytest.mark.parametrize("kind", KINDS)
def test_variables_of_every_kind(kind):
    config = KINDS[kind]
    shapes = unet_shapes(config)
    assert set(shapes) == {"params", "batch_stats"}
    assert bool(shapes["batch_stats"]) == (config.norm == "batch")
    held = {name for name, block in shapes["params"].items() if "attention" in block}
    names = {0: {"down1", "up1"}, 1: {"down2", "up2"}, len(config.channels) - 1: {"bot1"}}
    assert held == set().union(*(names[depth] for depth in config.attention))
    first = init_unet(config, 3)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), first) == jax.tree.map(
        lambda a: (a.shape, a.dtype), shapes
    )


@pytest.mark.slow
def test_group_norm_keeps_images_of_a_batch_apart():
    config, variables = KINDS["attention"], stirred(KINDS["attention"])
    x = jnp.asarray(drawn(1, 3, 8, 4, 1))
    network = jax.jit(lambda x: UNet(config).apply(variables, x, 5.0, train=True))
    np.testing.assert_allclose(network(x)[1:2], network(x[1:2]), atol=1e-12)  # rounding


@pytest.mark.slow
def test_training_and_checkpoint_without_batch_statistics(tmp_path):
    config = DalConfig(KINDS["attention"], image_size=4)
    images = 0.1 * drawn(0, 12, 4, 4, 1)
    settings = TrainConfig(steps=3, batch_size=4, log_every=1, ema_decay=0.5)
    variables = train(images, config, settings, tmp_path)
    assert variables["batch_stats"] == {}
    loaded, found = load_checkpoint(tmp_path)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_configurations_from_before_are_read():
    old = {"in_channels": 1, "channels": [4, 6], "time_dim": 8, "activation": "relu"}
    config = DalConfig.from_dict({"unet": old, "image_size": [4, 4]})
    assert config.unet == UNetConfig(1, (4, 6), 8)
    new = DalConfig(KINDS["attention"], image_size=8)
    assert DalConfig.from_dict(json.loads(json.dumps(new.to_dict()))) == new


def test_piecewise_linear_or_not():
    assert UNetConfig().piecewise_linear
    assert UNetConfig(activation="pl-silu:9", norm="none").piecewise_linear
    assert not any(KINDS[kind].piecewise_linear for kind in KINDS if kind != "none")
    assert not UNetConfig(activation="gelu").piecewise_linear


@pytest.mark.parametrize(
    "bad",
    [{"norm": "layer"}, {"norm": None}, {"attention": (4,)}, {"attention": (-1,)}],
)
def test_bad_configuration_is_refused(bad):
    with pytest.raises(InputError, match=f"{next(iter(bad))}: got"):
        UNetConfig(**bad)
