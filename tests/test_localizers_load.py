"""Checkpoints of every kind of localizer: what was saved is what is loaded."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dal_jax import CheckpointError
from dal_jax.diffusion import DalConfig, load_checkpoint, save_checkpoint
from dal_jax.localizers import (
    AutoencoderLocalizerConfig,
    GladConfig,
    MdpsConfig,
    autoencoder_localizer,
    dal_localizer,
    glad_localizer,
    load_localizer,
    mdps_localizer,
    read_checkpoint,
)
from dal_jax.models import AutoencoderConfig, UNetConfig, init_autoencoder, init_unet

UNET = UNetConfig(1, (4, 8), 8)
NETWORK = AutoencoderConfig(1, (4, 8))
CASES = {
    "dal": (DalConfig(UNET, image_size=8), dal_localizer),
    "mdps": (MdpsConfig(UNET, image_size=8, start=40), mdps_localizer),
    "glad": (GladConfig(UNET, image_size=8, start=120), glad_localizer),
    "autoencoder": (AutoencoderLocalizerConfig(NETWORK, image_size=8), autoencoder_localizer),
}


def variables_of(kind):
    return init_autoencoder(NETWORK, 3) if kind == "autoencoder" else init_unet(UNET, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_a_loaded_localizer_is_the_saved_one(kind, tmp_path):
    config, make = CASES[kind]
    variables = variables_of(kind)
    save_checkpoint(tmp_path, variables, config)
    loaded = load_localizer(tmp_path, threshold=0.5, draws=4)
    made = make(variables, config, 0.5, 4)
    assert loaded.score_fn == made.score_fn  # equal functions share compiled programs
    assert loaded.threshold == made.threshold == 0.5
    image = np.random.default_rng(0).normal(size=(8, 8, 1))
    np.testing.assert_array_equal(loaded.score(image), made.score(image))
    np.testing.assert_array_equal(loaded.reconstruct(image), made.reconstruct(image))


@pytest.mark.parametrize("kind", CASES)
def test_kinds_are_told_apart(kind, tmp_path):
    config, _ = CASES[kind]
    save_checkpoint(tmp_path, variables_of(kind), config)
    if kind != "dal":
        with pytest.raises(CheckpointError, match=f"localizer '{kind}', expected dal"):
            load_checkpoint(tmp_path)
    record = tmp_path / "config.json"
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({**facts, "localizer": "unheard"}))
    with pytest.raises(CheckpointError, match="'unheard', expected dal, mdps, glad, autoencoder"):
        load_localizer(tmp_path)


def test_a_checkpoint_from_before_there_were_kinds_is_dal(tmp_path):
    config, _ = CASES["dal"]
    save_checkpoint(tmp_path, variables_of("dal"), config)
    record = tmp_path / "config.json"
    facts = json.loads(record.read_text())
    del facts["localizer"]
    record.write_text(json.dumps(facts))
    assert load_checkpoint(tmp_path)[1] == config


@pytest.mark.parametrize("kind", ["mdps", "glad"])
def test_the_variant_was_named_preset_in_older_checkpoints(kind, tmp_path):
    config = replace(CASES[kind][0], variant="faithful")
    save_checkpoint(tmp_path, variables_of(kind), config)
    record = tmp_path / "config.json"
    facts = json.loads(record.read_text())
    facts["config"]["preset"] = facts["config"].pop("variant")
    record.write_text(json.dumps(facts))
    assert read_checkpoint(tmp_path)[1] == config
