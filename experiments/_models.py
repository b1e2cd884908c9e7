"""Models of the experiments, each trained once and kept."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from dal_jax import DalConfig, InputError, Localizer
from dal_jax.diffusion import ReverseConfig, TrainConfig
from dal_jax.inspection import learn_constants, threshold_of, train_with_bar
from dal_jax.localizers import THRESHOLD, localizer_preset, make_localizer, read_checkpoint
from dal_jax.models import UNetConfig
from dal_jax.runs import fingerprint
from experiments._simulation import Simulation

DAL = "dal"
FLAG_SHARE = 0.02


@dataclass(frozen=True)
class Model:
    """A diffusion model and its training; for larger images it is trained on squares of them.

    Raises:
        InputError: A value does not fit.
    """

    size: int  # side of a training image, pixels
    noise: str = "iid:1"  # of the training images
    channels: tuple[int, ...] = (32, 64, 128, 256)
    activation: str = "relu"
    images: int = 20_000
    steps: int = 2_000
    batch_size: int = 64
    seed: int = 0
    localizer: str = DAL  # others, as `localizer_preset` takes them, have networks of their own

    def __post_init__(self) -> None:
        _ = self.config

    @property
    def config(self) -> Any:
        """Network and localizer; the DAL localizer has the paper's reverse process."""
        if self.localizer != DAL:
            return localizer_preset(self.localizer).config.for_images((self.size, self.size, 1))
        unet = UNetConfig(1, tuple(self.channels), activation=self.activation)
        return DalConfig(unet=unet, image_size=self.size)

    @property
    def name(self) -> str:
        """Name of the model's folder, different for every model."""
        kind = self.activation if self.localizer == DAL else self.config.kind
        words = f"{kind}-{self.size}-{self.noise}-{fingerprint(asdict(self))[:8]}"
        return re.sub(r"[^A-Za-z0-9.-]+", "_", words)


@dataclass(frozen=True)
class Use:
    """Use of a trained network as a localizer; settings other than those of training."""

    size: int  # side of the tested images, pixels
    threshold: float | None = THRESHOLD  # None: flags `FLAG_SHARE` of the pixels of normal images
    reverse: ReverseConfig = field(default_factory=ReverseConfig)
    activation: str = ""  # in place of the trained one


def scale_channels(channels: Sequence[int], width: float) -> tuple[int, ...]:
    """Return the channels of a network of another width.

    Args:
        channels: Channels at width 1.
        width: Factor.

    Returns:
        The channels.

    Raises:
        InputError: They are not whole numbers.
    """
    out = [channel * width for channel in channels]
    if not all(channel >= 1 and channel == int(channel) for channel in out):
        raise InputError(f"widths holds {width:g}, expected whole numbers of channels, got {out}")
    return tuple(map(int, out))


def variables_of(model: Model, folder: Path) -> Any:
    """Train a model, continue its training, or load it if it is trained.

    Args:
        model: The model.
        folder: Folder of all models.

    Returns:
        {"params": ..., "batch_stats": ...}.

    Raises:
        InputError: The folder cannot be used.
        CheckpointError: The checkpoint in it is damaged.
    """
    home = folder / model.name
    if not (home / "config.json").is_file():  # written last
        images = Simulation(model.size, model.noise, seed=model.seed).training_images(model.images)
        plan = TrainConfig(steps=model.steps, batch_size=model.batch_size, seed=model.seed)

        def finish(variables: Any) -> Any:
            return learn_constants(variables, model.config, images, model.seed)

        train_with_bar(images, model.config, plan, home, finish=finish)
    return _checkpoint(home)[0]


@lru_cache(maxsize=4)  # conditions of one network follow one another
def _checkpoint(home: Path) -> Any:
    return read_checkpoint(home)


def localizer_of(model: Model, use: Use, folder: Path) -> Localizer:
    """Return the localizer of a trained network and its use.

    Args:
        model: The network.
        use: Its use; only the DAL localizer takes reverse process and activation from it.
        folder: Folder of all models.

    Returns:
        The localizer, with draws that each tested image replaces by its own.
    """
    variables = variables_of(model, folder)
    config = _checkpoint(folder / model.name)[1].for_images((use.size, use.size, 1))
    if model.localizer == DAL:
        unet = replace(config.unet, activation=use.activation or model.activation)
        config = replace(config, unet=unet, reverse=use.reverse)
    if use.threshold is not None:
        return make_localizer(variables, config, use.threshold)
    localizer = make_localizer(variables, config)
    images = Simulation(use.size, model.noise, seed=model.seed + 1).training_images(64)
    return localizer.with_threshold(threshold_of(localizer, images, FLAG_SHARE))
