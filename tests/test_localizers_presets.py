"""Localizers by name, and their extractors in files."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from dal_jax import CheckpointError, InputError
from dal_jax.diffusion import DalConfig, TrainConfig, save_checkpoint, train
from dal_jax.inspection import LearnOptions, learn_views
from dal_jax.localizers import (
    CONFIGS,
    ExtractorFile,
    GladConfig,
    MdpsConfig,
    as_kind,
    load_localizer,
    localizer_preset,
    preset_names,
    save_extractor,
)
from dal_jax.models import ResNetExtractor, UNetConfig, init_unet

UNET = UNetConfig(1, (4, 8), 8)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_preset_is_a_configuration(kind):
    for name in preset_names(kind):
        found = localizer_preset(f"{kind}:{name}")
        assert type(found.config) is CONFIGS[kind]
        TrainConfig(**found.training)
        assert type(found.config).from_dict(found.config.to_dict()) == found.config
    assert localizer_preset(kind).config == localizer_preset(f"{kind}:{preset_names(kind)[0]}")[0]


def test_published_settings_by_category():
    bottle = localizer_preset("mdps:mvtec/bottle").config
    # w = 100 and 50 for the norm over a batch of 8 images of 256 x 256 x 3.
    values = 8 * 256 * 256 * 3
    assert bottle.weight * np.sqrt(values) == pytest.approx(100, rel=1e-4)
    assert bottle.first_weight * np.sqrt(values) == pytest.approx(50, rel=1e-4)
    assert (bottle.start, bottle.mask_fraction, bottle.pixel_weight) == (200, 0.12, 7)
    assert localizer_preset("mdps:mvtec/tile").config.passes == 1
    screw = localizer_preset("glad:mvtec/screw")
    assert (screw.config.tau, screw.config.stop_level, screw.config.reverse.steps) == (
        0.32,
        350,
        25,
    )
    assert screw.training == {"batch_size": 32, "steps": 3000}
    sizes = {k: len([n for n in preset_names(k) if "/" in n]) for k in ("mdps", "glad")}
    assert sizes == {"mdps": 18, "glad": 40}


def test_fields_are_changed_by_name():
    text = "mdps:faithful, start=150,unet.channels=[4, 8],unet.attention=[], unet.activation=silu"
    found = localizer_preset(text, {"eta": 0.5, "unet.norm": "none"}).config
    assert (found.variant, found.start, found.eta) == ("faithful", 150, 0.5)
    assert (found.unet.channels, found.unet.norm) == ((4, 8), "none")
    # The data file's own tables are not changed.
    assert localizer_preset("mdps:faithful").config.unet.channels == (16, 32, 64)
    assert localizer_preset("glad:pl,stop_distance=inf").config.tau == np.inf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("padim", "localizer: unknown kind 'padim', expected dal, mdps, glad, autoencoder"),
        ("glad:best", "localizer: unknown preset 'best' of glad, expected pl, faithful, "),
        ("mdps:pl,sigma=1", "localizer 'mdps:pl,sigma=1': unknown key 'sigma', expected unet, "),
        ("mdps:pl,start=now", "localizer 'mdps:pl,start=now': start: got 'now', expected a whole"),
        ("mdps:pl,spacing.x=1", "localizer 'mdps:pl,spacing.x=1': spacing: got {'x': 1}, expected"),
        ("dal,unet.activation=3", "localizer 'dal,unet.activation=3': unet: activation: got 3"),
        ("dal,training.foo=3", "localizer 'dal,training.foo=3': training: unknown key 'foo', "),
        ("dal,training=3", "localizer 'dal,training=3': training: got 3, expected a table"),
        ("dal,filter_size=2", "localizer 'dal,filter_size=2': filter_size: got 2, expected an odd"),
    ],
)
def test_bad_names_are_refused_in_one_line(text, expected):
    with pytest.raises(InputError) as error:
        localizer_preset(text)
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_presets_of_an_unknown_kind_are_refused():
    with pytest.raises(InputError, match="localizer: unknown kind 'padim', expected dal, mdps"):
        preset_names("padim")


@pytest.mark.slow
def test_another_use_of_a_network(tmp_path):
    config = DalConfig(UNET, image_size=8)
    save_checkpoint(tmp_path, init_unet(UNET, 0), config)
    found = load_localizer(tmp_path, localizer="glad:pl,start=300")
    assert found.score_fn.config.kind == "glad" and found.score_fn.config.unet == UNET
    x = np.random.default_rng(0).normal(size=(8, 8, 1))
    assert (found.score(x) != load_localizer(tmp_path).score(x)).any()
    glad = GladConfig(UNET, image_size=8)
    assert as_kind(glad, "dal").image_shape == (8, 8, 1)
    with pytest.raises(InputError, match="got 'autoencoder', expected one with the network of dal"):
        load_localizer(tmp_path, localizer="autoencoder")
    smooth = replace(config, unet=replace(UNET, activation="silu"))
    with pytest.raises(InputError, match=r"unet: got .*, expected a piecewise-linear network"):
        as_kind(smooth, "mdps:pl")


@pytest.fixture
def resnet(tmp_path):
    """A small extractor, and the file of its weights."""
    settings = {"in_channels": 1, "stem": 4, "widths": (4,), "blocks": (1,), "depths": (1,)}
    settings |= {"mean": (0.0,), "deviation": (1.0,), "stem_kernel": 3}
    extractor = ResNetExtractor(**settings)
    rng = np.random.default_rng(1)
    arrays = {}

    for path, leaf in jax.tree_util.tree_flatten_with_path(extractor.shapes())[0]:
        keys = tuple(entry.key for entry in path)
        value = np.abs(rng.normal(size=leaf.shape)).astype(np.float32)  # variances are positive
        arrays[extractor.source_name(keys[1:])] = (
            value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        )
    file = tmp_path / "weights.npz"
    np.savez(file, **arrays)
    return ExtractorFile(file, "resnet", settings)


@pytest.mark.slow
def test_an_extractor_goes_with_the_checkpoint(resnet, tmp_path):
    config = MdpsConfig(UNET, image_size=8, start=40)
    home = tmp_path / "model"
    save_checkpoint(home, init_unet(UNET, 0), config)
    own = load_localizer(home)
    save_extractor(home, resnet)
    weights = resnet.path.rename(tmp_path / "elsewhere.npz")  # the copy is enough
    found = load_localizer(home)
    assert found.score_fn.extractor == ResNetExtractor(**resnet.settings)
    x = np.random.default_rng(0).normal(size=(8, 8, 1))
    assert (found.score(x) != own.score(x)).any()
    copy = home / "extractor.npz"
    copy.write_bytes(copy.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"extractor\.npz': is not the file of"):
        load_localizer(home)
    save_extractor(home, resnet._replace(path=weights))
    facts = json.loads((home / "extractor.json").read_text())
    for damaged in ({**facts, "settings": [1]}, {**facts, "kind": "vgg"}):
        (home / "extractor.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match=r"extractor\.json': damaged"):
            load_localizer(home)
    (home / "extractor.json").write_text(json.dumps({**facts, "file": "x"}))
    with pytest.raises(CheckpointError, match=r"extractor '.*/model/x': no such file"):
        load_localizer(home)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write '.*extractor\.npz'"):
        save_extractor(tmp_path / "file", resnet._replace(path=weights))


@pytest.mark.slow
def test_training_without_an_extractor_drops_the_one_that_is_there(resnet, tmp_path):
    home, views = tmp_path / "model", np.random.default_rng(0).normal(size=(4, 8, 8, 1))
    config, settings = DalConfig(UNET, image_size=8), TrainConfig(steps=2, batch_size=2)
    save_extractor(home, resnet)
    learn_views(views, config, settings, LearnOptions(), home, train)
    again = load_localizer(home, localizer="mdps:pl")
    assert again.score_fn.extractor == again.score_fn.config.encoder


def test_misshapen_weights_are_refused(resnet, tmp_path):
    with np.load(resnet.path) as held:
        arrays = dict(held)
    name = next(key for key, value in arrays.items() if value.ndim == 4)
    np.savez(resnet.path, **{**arrays, name: arrays[name][:-1]})
    with pytest.raises(CheckpointError) as error:
        save_extractor(tmp_path / "model", resnet)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()
