import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.diffusion import Batch, DalConfig, NoisePrediction, TrainConfig, train
from dal_jax.localizers import AutoencoderLocalizerConfig
from dal_jax.models import (
    Autoencoder,
    AutoencoderConfig,
    Reconstruction,
    UNetConfig,
    autoencode,
    autoencoder_shapes,
    init_autoencoder,
    mean_pool,
    upsample,
)

SMALL = AutoencoderConfig(2, (3, 4), 2)
TRAINED = AutoencoderLocalizerConfig(AutoencoderConfig(1, (4, 6), 2), image_size=4)
SETTINGS = TrainConfig(steps=9, batch_size=8, log_every=3, checkpoint_every=4)
IMAGES = np.random.default_rng(0).standard_normal((20, 4, 4, 1))


@pytest.mark.slow
def test_equals_its_description():
    rng = np.random.default_rng(1)
    drawn = init_autoencoder(SMALL, 0)
    variables = jax.tree.map(lambda a: a + 0.2 * rng.normal(size=a.shape), drawn)
    x = rng.standard_normal((2, 8, 4, 2))

    def convolution(name, y):
        layer = variables["params"][name]
        y = jax.lax.conv_general_dilated(
            y, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + layer["bias"]

    @jax.jit
    def expected(y):
        for name in ("down1", "down2"):
            y = mean_pool(jnp.maximum(convolution(name, y), 0.0))
        y = convolution("code", y)
        for name in ("up2", "up1"):
            y = jnp.maximum(convolution(name, upsample(y)), 0.0)
        return convolution("out", y)

    found = jax.jit(autoencode, static_argnums=1)(variables, SMALL, x)
    np.testing.assert_allclose(found, expected(x), atol=1e-13)  # rounding
    plain = jax.jit(Autoencoder(SMALL).apply)({"params": variables["params"]}, jnp.asarray(x))
    np.testing.assert_array_equal(plain, found)
    narrow = jax.jit(autoencode, static_argnums=1)(variables, SMALL, x.astype(np.float32))
    assert narrow.dtype == np.float32


def test_nothing_passes_beside_the_code():
    variables = init_autoencoder(SMALL, 0)
    jax.tree.map(lambda a: a.fill(0.0), variables["params"]["code"])
    x = np.random.default_rng(2).standard_normal((2, 8, 8, 2))
    found = jax.jit(autoencode, static_argnums=1)(variables, SMALL, x)
    np.testing.assert_array_equal(found[0], found[1])


def test_variables_are_float32_and_repeatable():
    first, again = init_autoencoder(SMALL, 7), init_autoencoder(SMALL, 7)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first["batch_stats"] == {}
    assert all(a.dtype == np.float32 for a in jax.tree.leaves(first))
    shapes = jax.tree.map(lambda a: a.shape, autoencoder_shapes(SMALL))
    assert jax.tree.map(lambda a: a.shape, first) == shapes
    assert shapes["params"]["code"]["kernel"] == (3, 3, 4, 2)


@pytest.mark.slow
def test_loss_by_hand():
    objective = Reconstruction(TRAINED.network)
    variables = objective.init(0)
    batch = jnp.asarray(IMAGES[:5], np.float32)
    prepared = objective.prepare(jax.random.key(0), Batch(batch))
    loss, stats = jax.jit(objective.loss, static_argnums=3)(
        variables["params"], {}, prepared, np.float32
    )
    made = jax.jit(autoencode, static_argnums=1)(variables, TRAINED.network, IMAGES[:5])
    assert loss.dtype == np.float32 and stats == {}
    assert float(loss) == pytest.approx(
        float(np.mean((made - IMAGES[:5]) ** 2)), rel=1e-5
    )  # float32


class Killed(Exception):
    pass


def trained(folder, settings=SETTINGS, kill_at=None, objective=None):
    def progress(done, total, loss):
        if kill_at is not None and done >= kill_at:
            raise Killed

    objective = objective or Reconstruction(TRAINED.network)
    return train(IMAGES, TRAINED, settings, folder, progress, objective=objective)


@pytest.mark.slow
def test_training_learns_and_resumes_to_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole")
    assert (tmp_path / "whole" / "config.json").is_file()
    with pytest.raises(Killed):
        trained(tmp_path / "cut", kill_at=6)
    assert not (tmp_path / "cut" / "config.json").exists()
    resumed = trained(tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    with pytest.raises(InputError, match="another objective"):
        trained(tmp_path / "cut", objective=NoisePrediction(UNetConfig(1, (4, 6), 8), _SCHEDULE))
    settings = replace(SETTINGS, steps=150, learning_rate=1e-2, log_every=50)
    losses = []
    objective = Reconstruction(TRAINED.network)
    train(
        *(IMAGES * 0.1 + 1.0, TRAINED, settings, None, lambda *r: losses.append(r[2])),
        objective=objective,
    )
    # The mean square is 1.01 at first; the constant part is learned at once.
    assert losses[-1] < 0.1 * losses[0]


_SCHEDULE = DalConfig().schedule


@dataclass(frozen=True)
class FromAfar(NoisePrediction):
    """Another way to make what the network sees, as an objective of one's own would have it."""

    shift: float = 0.5

    def prepare(self, key, batch):
        """Shifts the images, so that the target differs from the noise."""
        x, level, noise = super().prepare(key, batch)
        return x + jnp.float32(self.shift), level, noise


@pytest.mark.slow
def test_objectives_of_the_noise_predictor():
    config = DalConfig(UNetConfig(1, (4, 6), 8), image_size=4)
    settings = TrainConfig(steps=3, batch_size=8, log_every=1)
    parts = (config.unet, config.schedule)
    runs = {
        name: train(IMAGES, config, settings, objective=objective)
        for name, objective in (
            ("default", None),
            ("same", NoisePrediction(*parts)),
            ("other", FromAfar(*parts)),
        )
    }
    jax.tree.map(np.testing.assert_array_equal, runs["default"], runs["same"])
    kernels = [runs[k]["params"]["down1"]["conv"]["kernel"] for k in ("default", "other")]
    assert (kernels[0] != kernels[1]).any()


@pytest.mark.slow
def test_records_of_training_from_before_are_continued(tmp_path):
    config = DalConfig(UNetConfig(1, (4, 6), 8), image_size=4)
    settings = TrainConfig(steps=2, batch_size=8, log_every=1)
    train(IMAGES, config, settings, tmp_path)
    record = json.loads((tmp_path / "training.json").read_text())
    # What there was before other norms and attention.
    assert set(record["config"]["unet"]) == {"in_channels", "channels", "time_dim", "activation"}
    assert "objective" not in record


@pytest.mark.parametrize(
    "bad", [{"channels": ()}, {"channels": (0,)}, {"latent": 0}, {"in_channels": 0}]
)
def test_bad_configuration_is_refused(bad):
    with pytest.raises(InputError, match=f"{next(iter(bad))}: got"):
        AutoencoderConfig(**bad)


@pytest.mark.parametrize("shape", [(1, 6, 8, 2), (1, 8, 8, 1), (8, 2)])
def test_image_that_does_not_fit_is_refused(shape):
    with pytest.raises(InputError, match="image: got"):
        SMALL.check_image(shape)
