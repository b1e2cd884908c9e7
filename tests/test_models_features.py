from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_unet
from helpers import published_test as dal_test
from jax import lax
from scipy import special

from dal_jax import CheckpointError, InputError, NotPiecewiseAffineError, Status, from_score
from dal_jax.affine import affine_piece
from dal_jax.models import (
    ResNetExtractor,
    UNet,
    UNetConfig,
    UNetEncoder,
    ViTExtractor,
    import_state_dict,
    init_unet,
    load_extractor,
)

CONFIG = UNetConfig(2, (3, 4, 5), 6)
ENCODER = UNetEncoder(CONFIG, (8, 4), level=20.0, depths=(1, 2, 3))


def images(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def captured(config, variables, x, level):
    """What the blocks of the network itself make on the way down."""
    wide = jax.tree.map(np.float64, variables)
    apply = jax.jit(lambda v, x: UNet(config).apply(v, x, level, capture_intermediates=True))
    _, found = apply(wide, x)
    names = [*(f"down{i}" for i in range(1, len(config.channels))), "bot1"]
    return [found["intermediates"][name]["__call__"][0] for name in names]


def on_a_line(extractor, params, shape):
    base, direction = images(9, 2, *shape)
    return lambda z: extractor(params, base + direction * z)


def assert_piecewise_affine(f):
    pieces = jax.vmap(jax.jit(lambda z: affine_piece(f, z)))(np.array([-0.7, 0.1, 1.3]))
    assert not np.any(pieces.status)
    for k, z in enumerate((-0.7, 0.1, 1.3)):
        assert pieces.lo[k] < z < pieces.hi[k]
        for value, there in zip(pieces.value, jax.jit(f)(z), strict=True):
            np.testing.assert_allclose(value[k], there, atol=1e-12)  # rounding


def refused(f):
    return jax.jit(lambda z: affine_piece(f, z)).lower(0.3)


@pytest.mark.slow
def test_encoder_gives_the_maps_of_the_network(tmp_path):
    arrays = reference_unet.random_state_dict(np.random.default_rng(0), 2, (3, 4, 5), 6)
    np.savez(tmp_path / "w.npz", **arrays)
    variables = import_state_dict(tmp_path / "w.npz", CONFIG)  # with batch norms that do something
    x = images(1, 3, 8, 4, 2)
    found = jax.jit(ENCODER)(variables, x)
    expected = captured(CONFIG, variables, x, 20.0)
    assert [m.shape for m in found] == [(3, 8, 4, 3), (3, 4, 2, 4), (3, 2, 1, 5)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)  # rounding through three layers
    middle = jax.jit(replace(ENCODER, depths=(2,)))(variables, x)
    np.testing.assert_allclose(middle[0], expected[1], atol=1e-12)
    assert {m.dtype for m in jax.jit(ENCODER)(variables, x.astype(np.float32))} == {np.dtype("f4")}


def test_encoder_takes_each_image_alone():
    variables, x = init_unet(CONFIG, 0), images(2, 3, 8, 4, 2)
    together = jax.jit(ENCODER)(variables, x)
    alone = jax.jit(jax.vmap(lambda y: ENCODER(variables, y[None])))(x)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other[:, 0], atol=1e-13)  # rounding


def test_encoder_is_piecewise_affine_where_it_says_so():
    assert ENCODER.piecewise_linear and ENCODER.input_range is None
    assert_piecewise_affine(on_a_line(ENCODER, init_unet(CONFIG, 0), (1, 8, 4, 2)))
    for smooth in ({"activation": "silu"}, {"norm": "group"}, {"attention": (1,)}):
        config = replace(CONFIG, **smooth)
        encoder = replace(ENCODER, unet=config)
        assert not encoder.piecewise_linear
        with pytest.raises(NotPiecewiseAffineError):
            refused(on_a_line(encoder, init_unet(config, 0), (1, 8, 4, 2)))


def test_equal_encoders_are_equal():
    again = UNetEncoder(CONFIG, [8, 4], 20.0, [1, 2, 3])  # type: ignore[arg-type]
    assert again == ENCODER
    assert hash(again) == hash(ENCODER)


@pytest.mark.parametrize(
    "bad",
    [
        {"depths": ()},
        {"depths": (0, 1)},
        {"depths": (1, 4)},
        {"depths": (2, 1)},
        {"depths": (1, 1)},
        {"level": -1.0},
        {"level": float("nan")},
    ],
)
def test_bad_encoder_is_refused(bad):
    with pytest.raises(InputError, match=f"{next(iter(bad))}: got"):
        replace(ENCODER, **bad)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8, 8, 2), (8, 4, 2), (1, 8, 4, 3)])
def test_image_that_does_not_fit_the_encoder_is_refused(shape):
    with pytest.raises(InputError, match="image: got"):
        ENCODER(init_unet(CONFIG, 0), jnp.ones(shape))


RESNET = ResNetExtractor(
    *(2, 3, (4, 6), (1, 2), (), 3, 1, True, (1, 2)), None, (0.1, -0.2), (0.5, 2.0)
)
BOTTLENECK = replace(RESNET, inner=(2, 3), stem_stride=2, stem_pool=False, depths=(2,))
VIT = ViTExtractor(1, (8, 4), 2, 6, 3, 5, (1, 3), (-1.0, 1.0), (0.5,), (0.25,))
SETTINGS = ("in_channels", "depths", "input_range", "mean", "deviation")
OWN = {
    "resnet": ("stem", "widths", "blocks", "inner", "stem_kernel", "stem_stride", "stem_pool"),
    "vit": ("sides", "patch", "width", "heads", "hidden"),
}


def settings_of(extractor):
    own = OWN["vit" if extractor == VIT else "resnet"]
    return {name: getattr(extractor, name) for name in (*SETTINGS, *own)}


def resnet_arrays(extractor, seed=0):
    """Arrays under the names of the usual PyTorch module, written from its description."""
    rng, arrays = np.random.default_rng(seed), {}

    def convolution(name, norm, inputs, outputs, side):
        scale = 1.0 / np.sqrt(inputs * side**2)
        arrays[f"{name}.weight"] = scale * rng.normal(size=(outputs, inputs, side, side))
        arrays[f"{norm}.weight"] = rng.uniform(0.5, 1.5, outputs)
        arrays[f"{norm}.bias"] = rng.normal(size=outputs)
        arrays[f"{norm}.running_mean"] = rng.normal(size=outputs)
        arrays[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, outputs)
        arrays[f"{norm}.num_batches_tracked"] = np.array(3)

    e, inputs = extractor, extractor.stem
    convolution("conv1", "bn1", e.in_channels, e.stem, e.stem_kernel)
    for stage, (width, count) in enumerate(zip(e.widths, e.blocks, strict=True)):
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            layers = [(inputs, width, 3), (width, width, 3)]
            if e.inner:
                inner = e.inner[stage]
                layers = [(inputs, inner, 1), (inner, inner, 3), (inner, width, 1)]
            for k, layer in enumerate(layers, 1):
                convolution(f"{name}.conv{k}", f"{name}.bn{k}", *layer)
            if inputs != width or (stage and not block):
                convolution(f"{name}.downsample.0", f"{name}.downsample.1", inputs, width, 1)
            inputs = width
    arrays["fc.weight"], arrays["fc.bias"] = rng.normal(size=(7, inputs)), rng.normal(size=7)
    return {name: np.asarray(a, np.float32) for name, a in arrays.items()}


def resnet_maps(arrays, extractor, x):
    """The maps of all stages, channels first."""
    w, e = {name: a.astype(np.float64) for name, a in arrays.items()}, extractor

    def convolution(name, norm, y, stride):
        kernel = jnp.asarray(w[f"{name}.weight"])
        pad = kernel.shape[-1] // 2
        names = ("NCHW", "OIHW", "NCHW")
        y = lax.conv_general_dilated(
            y, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=names
        )
        scale, bias, mean, var = (
            w[f"{norm}.{k}"][:, None, None]
            for k in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(var + 1e-5) * scale + bias

    mean, deviation = (np.asarray(v)[:, None, None] for v in (e.mean, e.deviation))
    y = (jnp.moveaxis(x, -1, 1) - mean) / deviation
    y = jnp.maximum(convolution("conv1", "bn1", y, e.stem_stride), 0.0)
    if e.stem_pool:
        around = ((0, 0), (0, 0), (1, 1), (1, 1))
        window = ((1, 1, 3, 3), (1, 1, 2, 2), around)
        y = lax.reduce_window(y, -np.inf, lax.max, *window)
    maps = []
    for stage, count in enumerate(e.blocks):
        for block in range(count):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            strides = (1, stride, 1) if e.inner else (stride, 1)
            z = y
            for k, step in enumerate(strides, 1):
                z = convolution(f"{name}.conv{k}", f"{name}.bn{k}", z, step)
                z = z if k == len(strides) else jnp.maximum(z, 0.0)
            if f"{name}.downsample.0.weight" in w:
                y = convolution(f"{name}.downsample.0", f"{name}.downsample.1", y, stride)
            y = jnp.maximum(y + z, 0.0)
        maps.append(y)
    return [jnp.moveaxis(maps[d - 1], 1, -1) for d in e.depths]


def vit_arrays(extractor, seed=0):
    rng, e = np.random.default_rng(seed), extractor
    arrays = {
        "cls_token": rng.normal(size=(1, 1, e.width)),
        "pos_embed": rng.normal(size=(1, 1 + e.grid[0] * e.grid[1], e.width)),
        "patch_embed.proj.weight": rng.normal(size=(e.width, e.in_channels, e.patch, e.patch)),
        "patch_embed.proj.bias": rng.normal(size=e.width),
        "head.weight": rng.normal(size=(9, e.width)),
        "blocks.3.norm1.bias": rng.normal(size=e.width),  # of a block that is not used
    }
    norms, linear = ["norm"], {}
    for k in range(3):
        norms += [f"blocks.{k}.norm1", f"blocks.{k}.norm2"]
        linear |= {
            f"blocks.{k}.attn.qkv": (3 * e.width, e.width),
            f"blocks.{k}.attn.proj": (e.width, e.width),
            f"blocks.{k}.mlp.fc1": (e.hidden, e.width),
            f"blocks.{k}.mlp.fc2": (e.width, e.hidden),
        }
    for name in norms:
        arrays[f"{name}.weight"] = rng.uniform(0.5, 1.5, e.width)
        arrays[f"{name}.bias"] = rng.normal(size=e.width)
    for name, shape in linear.items():
        arrays[f"{name}.weight"] = rng.normal(size=shape) / np.sqrt(shape[1])
        arrays[f"{name}.bias"] = rng.normal(size=shape[0])
    return {name: np.asarray(a, np.float32) for name, a in arrays.items()}


def vit_maps(arrays, extractor, x):
    """The maps of one image (H, W, C), in plain numpy."""
    w, e = {name: a.astype(np.float64) for name, a in arrays.items()}, extractor
    x = (x - np.asarray(e.mean)) / np.asarray(e.deviation)

    def norm(name, y):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        return y * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name, y):
        return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    rows = [w["cls_token"][0, 0]]
    for i in range(e.grid[0]):
        for j in range(e.grid[1]):
            patch = x[i * e.patch : (i + 1) * e.patch, j * e.patch : (j + 1) * e.patch]
            kernel = np.moveaxis(w["patch_embed.proj.weight"], 1, -1)
            rows.append((kernel * patch).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
    tokens, maps, size = np.stack(rows) + w["pos_embed"][0], [], e.width // e.heads
    for k in range(3):
        made = linear(f"blocks.{k}.attn.qkv", norm(f"blocks.{k}.norm1", tokens))
        query, key, value = np.split(made, 3, axis=1)
        mixed = []
        for head in range(e.heads):
            part = slice(head * size, (head + 1) * size)
            weights = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
            mixed.append(weights / weights.sum(1, keepdims=True) @ value[:, part])
        tokens = tokens + linear(f"blocks.{k}.attn.proj", np.concatenate(mixed, 1))
        wide = linear(f"blocks.{k}.mlp.fc1", norm(f"blocks.{k}.norm2", tokens))
        tokens = tokens + linear(f"blocks.{k}.mlp.fc2", wide * special.ndtr(wide))
        if k + 1 in e.depths:
            maps.append(norm("norm", tokens)[1:].reshape(*e.grid, e.width))
    return maps


def arrays_of(extractor):
    return vit_arrays(extractor) if extractor == VIT else resnet_arrays(extractor)


def loaded(folder, extractor, arrays, suffix=".npz"):
    path = folder / f"w{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        pytest.importorskip("safetensors.numpy").save_file(arrays, path)
    kind = "vit" if extractor == VIT else "resnet"
    found, params = load_extractor(path, kind, **settings_of(extractor))
    assert found == extractor and hash(found) == hash(extractor)
    return params


@pytest.mark.parametrize("extractor", [RESNET, BOTTLENECK], ids=["plain", "bottleneck"])
def test_resnet_equals_its_description(tmp_path, extractor):
    arrays = resnet_arrays(extractor)
    params = loaded(tmp_path, extractor, arrays)
    x = images(1, 2, 8, 12, 2)
    found = jax.jit(extractor)(params, x)
    expected = jax.jit(lambda x: resnet_maps(arrays, extractor, x))(x)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == np.float64
        np.testing.assert_allclose(one, other, atol=1e-12 * np.abs(other).max())  # rounding


def test_vit_equals_its_description(tmp_path):
    arrays = vit_arrays(VIT)
    params = loaded(tmp_path, VIT, arrays)
    x = images(1, 2, 8, 4, 1)
    found = jax.jit(VIT)(params, x)
    for k in range(2):
        for one, other in zip(found, vit_maps(arrays, VIT, np.asarray(x[k])), strict=True):
            assert one.shape[1:] == other.shape == (4, 2, 6)
            np.testing.assert_allclose(one[k], other, atol=1e-12 * np.abs(other).max())  # rounding


@pytest.mark.parametrize("extractor", [RESNET, VIT], ids=["resnet", "vit"])
def test_round_trip_of_both_formats(tmp_path, extractor):
    arrays = arrays_of(extractor)
    first, again = (loaded(tmp_path, extractor, arrays, s) for s in (".npz", ".safetensors"))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all(type(a) is np.ndarray and a.dtype == np.float32 for a in jax.tree.leaves(first))
    shapes = jax.tree.map(lambda a: a.shape, extractor.shapes())
    assert jax.tree.map(lambda a: a.shape, first) == shapes


@pytest.mark.parametrize("extractor", [RESNET, VIT], ids=["resnet", "vit"])
def test_arrays_that_do_not_fit_are_named(tmp_path, extractor):
    arrays = arrays_of(extractor)

    def refusal(changed):
        with pytest.raises(CheckpointError) as caught:
            loaded(tmp_path, extractor, changed)
        message = str(caught.value)
        assert message.startswith("weights: w.npz") and "\n" not in message
        return message

    name = "pos_embed" if extractor == VIT else "layer2.1.conv1.weight"
    shape = arrays[name].shape
    wrong = np.zeros((*shape[:-1], 5), np.float32)
    message = refusal({**arrays, name: wrong})
    assert f"{name} has shape {wrong.shape}, expected {shape}" in message
    missing = {k: a for k, a in arrays.items() if k != name}
    assert f"has no array {name}, expected shape {shape}" in refusal(missing)
    broken = arrays[name].copy()
    broken.flat[3] = np.nan
    assert f"{name} has values that are not finite" in refusal({**arrays, name: broken})
    extra = refusal({**arrays, "blocks.0.odd": np.zeros(3)})
    assert "unexpected array blocks.0.odd of shape (3,)" in extra


@pytest.mark.slow
def test_an_image_of_one_channel_is_repeated_and_another_size_resized(tmp_path):
    params = loaded(tmp_path, RESNET, resnet_arrays(RESNET))
    x = images(2, 1, 8, 8, 1)
    run = jax.jit(RESNET)
    jax.tree.map(
        np.testing.assert_array_equal, run(params, x), run(params, jnp.concatenate([x, x], -1))
    )
    params = loaded(tmp_path, VIT, vit_arrays(VIT))
    x = images(3, 1, 16, 8, 1)
    small = jax.image.resize(x, (1, 8, 4, 1), "bilinear")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),  # rounding
        jax.jit(VIT)(params, x),
        jax.jit(VIT)(params, small),
    )
    with pytest.raises(InputError, match="image: got shape"):
        RESNET(params, images(0, 1, 8, 8, 3))


@pytest.mark.slow
def test_resnet_is_piecewise_affine_and_vit_is_not(tmp_path):
    assert RESNET.piecewise_linear and not VIT.piecewise_linear
    assert RESNET.input_range is None and VIT.input_range == (-1.0, 1.0)
    params = loaded(tmp_path, RESNET, resnet_arrays(RESNET))
    assert_piecewise_affine(on_a_line(RESNET, params, (1, 8, 8, 2)))
    params = loaded(tmp_path, VIT, vit_arrays(VIT))
    with pytest.raises(NotPiecewiseAffineError):
        refused(on_a_line(VIT, params, (1, 8, 4, 1)))


def resnet_score(params, draws, x):
    """How far the features of a pixel's neighbourhood are from zero."""
    (features,) = replace(RESNET, stem_pool=False, depths=(1,))(params, x[None])
    return jnp.mean(jnp.abs(features[0]), -1)


def vit_score(params, draws, x):
    """The same, at the size of the image."""
    maps = VIT(params, x[None])
    return jnp.repeat(jnp.repeat(jnp.mean(jnp.abs(maps[0][0]), -1), 2, 0), 2, 1)


@pytest.mark.slow
def test_engines_take_scores_made_of_features(tmp_path):
    params = loaded(tmp_path, RESNET, resnet_arrays(RESNET))
    x, x_ref = np.random.default_rng(4).standard_normal((2, 4, 4, 2))
    threshold = float(np.quantile(from_score(resnet_score, (4, 4, 2), 1.0, params).score(x), 0.7))
    localizer = from_score(resnet_score, (4, 4, 2), threshold, params)
    exact = dal_test(localizer, x, x_ref, "iid:1", engine="sweep", precision=0)
    adaptive = dal_test(localizer, x, x_ref, "iid:1")
    assert exact.status == adaptive.status == Status.OK
    assert abs(exact.p_value - adaptive.p_value) < 2e-3  # the adaptive engine's precision
    params = loaded(tmp_path, VIT, vit_arrays(VIT))
    x, x_ref = np.random.default_rng(4).standard_normal((2, 8, 4, 1))
    threshold = float(np.quantile(from_score(vit_score, (8, 4, 1), 1.0, params).score(x), 0.8))
    found = dal_test(from_score(vit_score, (8, 4, 1), threshold, params), x, x_ref, "iid:1")
    assert found.status == Status.OK and 0.0 <= found.p_value <= 1.0


@pytest.mark.parametrize(
    ("extractor", "bad"),
    [
        (RESNET, {"stem": 0}),
        (RESNET, {"widths": ()}),
        (RESNET, {"blocks": (1,)}),
        (RESNET, {"inner": (1, 0)}),
        (RESNET, {"stem_kernel": 2}),
        (RESNET, {"stem_stride": 0}),
        (RESNET, {"depths": (3,)}),
        (RESNET, {"mean": (0.1,)}),
        (RESNET, {"deviation": (1.0, 0.0)}),
        (RESNET, {"input_range": (1.0, 0.0)}),
        (VIT, {"patch": 0}),
        (VIT, {"sides": (8, 5)}),
        (VIT, {"heads": 4}),
        (VIT, {"depths": (0,)}),
        (VIT, {"in_channels": 0}),
    ],
)
def test_bad_extractor_is_refused(extractor, bad):
    with pytest.raises(InputError, match=f"{next(iter(bad))}: got"):
        replace(extractor, **bad)


def test_unknown_kind_and_setting_are_refused(tmp_path):
    with pytest.raises(InputError, match="extractor: unknown kind 'vgg', expected resnet, vit"):
        load_extractor(tmp_path / "w.npz", "vgg")
    with pytest.raises(InputError, match="extractor 'vit': unknown key 'colour', expected in"):
        load_extractor(tmp_path / "w.npz", "vit", colour=3)
    with pytest.raises(InputError, match="extractor 'vit': depths: got 3, expected a list"):
        load_extractor(tmp_path / "w.npz", "vit", depths=3)
    with pytest.raises(CheckpointError, match="no such file"):
        load_extractor(tmp_path / "w.npz", "resnet")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w"])
def test_other_formats_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(CheckpointError) as caught:
        load_extractor(tmp_path / name, "resnet")
    assert str(caught.value) == f"weights: got {name}, expected .npz or .safetensors"
