"""Localizers by name, from their configuration and from checkpoints."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax._config import build, nearest, read_toml, set_field, split_settings
from dal_jax._errors import CheckpointError, InputError
from dal_jax._files import atomic_path, file_digest, file_errors, read_json, write_text
from dal_jax._typing import PyTree
from dal_jax.diffusion import DalConfig, TrainConfig, load_checkpoint
from dal_jax.localizers._autoencoder import AutoencoderLocalizerConfig, autoencoder_localizer
from dal_jax.localizers._dal import dal_localizer
from dal_jax.localizers._detectors import (
    DetectorConfig,
    is_detector,
    load_detector,
    parse_detector,
)
from dal_jax.localizers._glad import GladConfig, glad_localizer
from dal_jax.localizers._localizer import THRESHOLD, Localizer
from dal_jax.localizers._mdps import MdpsConfig, mdps_localizer
from dal_jax.localizers._perceptual import PerceptualConfig
from dal_jax.models import load_extractor

CONFIGS: dict[str, Any] = {
    config.kind: config
    for config in (DalConfig, MdpsConfig, GladConfig, AutoencoderLocalizerConfig)
}
FORM = "KIND[:PRESET][,FIELD=VALUE...]"
DETECTOR_FORM = "MODULE:FUNCTION|onnx:FILE[,FIELD=VALUE...]"


class Preset(NamedTuple):
    """Settings that a name stands for.

    Example:
        >>> localizer_preset("glad:pl,start=300").config.start
        300
    """

    config: Any  # of the localizer: `DalConfig`, `MdpsConfig`, ...
    training: dict[str, Any]  # fields of `TrainConfig` that go with it


def localizer_preset(text: str, changes: Mapping[str, Any] | None = None) -> Preset:
    """Read the settings of a localizer from its name.

    Args:
        text: Name of the form "KIND[:PRESET][,FIELD=VALUE...]". KIND is "dal", "mdps", "glad" or
            "autoencoder"; PRESET is one of `preset_names`, or the kind's default; FIELD is one of
            the configuration, "unet.channels" for one of its parts; VALUE is as in TOML, with
            strings also without quotes.
        changes: Further fields and their values.

    Returns:
        The configuration, and the training settings that go with it.

    Raises:
        InputError: The kind, preset or field is unknown, or a value does not fit.

    Example:
        >>> localizer_preset("mdps:pl,start=150,unet.channels=[8,16]").config.start
        150
    """
    head, given = split_settings(text)
    kind, _, name = head.partition(":")
    fields = _resolve(kind, name or _file(kind)["default"])
    for key, value in {**given, **(changes or {})}.items():
        set_field(fields, key, value)
    name = f"localizer {text!r}"
    training = fields.pop("training", {})
    build(TrainConfig, training, f"{name}: training")
    return Preset(build(CONFIGS[kind], fields, name), training)


def detector_named(text: str | None) -> DetectorConfig | None:
    """Return the detector that a text names, if it names one and no kind of localizer.

    Args:
        text: Text of `parse_detector` or of `localizer_preset`, or None.

    Returns:
        The configuration, or None for a kind of this package.

    Raises:
        InputError: As in `parse_detector`.

    Example:
        >>> detector_named("mdps:pl") is None, detector_named("wafers:score").is_code
        (True, True)
    """
    if text is None:
        return None
    kind, colon, _ = split_settings(text)[0].partition(":")
    return parse_detector(text) if colon and kind not in CONFIGS else None


def as_kind(config: Any, text: str) -> Any:
    """Return the configuration of another kind of localizer for the same trained network.

    Args:
        config: Configuration of the localizer that the network was trained for.
        text: Name of the kind, as in `localizer_preset`; its network, schedule and image size are
            ignored, and constants that the kind learns are not learned.

    Returns:
        The configuration of that kind, with the network's.

    Raises:
        InputError: The kind has another network, or the preset does not fit this one.

    Example:
        >>> trained = localizer_preset("dal,image_size=16").config
        >>> config = as_kind(trained, "mdps:pl")
        >>> config.kind, config.image_size, config.unet == trained.unet
        ('mdps', (16, 16), True)
    """
    wanted = localizer_preset(text).config
    if wanted.network_field != config.network_field:
        raise InputError(f"localizer: got {text!r}, expected one with the network of {config.kind}")
    parts = (config.network_field, "schedule", "image_size")
    kept = [name for name in parts if hasattr(config, name)]  # an autoencoder has no schedule
    return replace(wanted, **{name: getattr(config, name) for name in kept})


def preset_names(kind: str) -> tuple[str, ...]:
    """Return the names of the presets of a kind of localizer.

    Args:
        kind: Kind of localizer: "dal", "mdps", "glad" or "autoencoder".

    Returns:
        Names; those of published settings have the form "DATA/CATEGORY".

    Raises:
        InputError: Unknown kind.

    Example:
        >>> preset_names("dal")
        ('paper', 'small')
    """
    return tuple(_file(kind)["presets"])


@lru_cache
def _file(kind: str) -> dict[str, Any]:
    if kind not in CONFIGS:
        raise InputError(f"localizer: unknown kind {kind!r}, {nearest(kind, list(CONFIGS))}")
    return read_toml(Path(__file__).parent / "presets" / f"{kind}.toml", "presets")


def _resolve(kind: str, name: str) -> dict[str, Any]:
    """Return the fields of a preset, on top of those of its base."""
    presets = _file(kind)["presets"]
    if name not in presets:
        hint = nearest(name, list(presets))
        raise InputError(f"localizer: unknown preset {name!r} of {kind}, {hint}")
    own = dict(presets[name])
    fields = _resolve(kind, own.pop("base")) if "base" in own else {}
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(fields.get(key), dict)
        fields[key] = {**fields[key], **value} if both else value
    return {k: dict(v) if isinstance(v, dict) else v for k, v in fields.items()}


# Functions (variables, configuration, threshold, draws) -> localizer.
_MAKERS: dict[str, Any] = {
    "dal": dal_localizer,
    "mdps": mdps_localizer,
    "glad": glad_localizer,
    "autoencoder": autoencoder_localizer,
}
_EXTRACTOR = "extractor.json"


def make_localizer(
    variables: PyTree, config: Any, threshold: float = THRESHOLD, draws: Any = None, **parts: Any
) -> Localizer:
    """Make a localizer of the kind of its configuration.

    Args:
        variables: Variables of the network.
        config: `DalConfig`, `MdpsConfig`, `GladConfig` or `AutoencoderLocalizerConfig`.
        threshold: Threshold, positive, in units of the score.
        draws: Array of the localizer's shape, or a seed; None is seed 0.
        **parts: Further arguments of `mdps_localizer` or `glad_localizer`.

    Returns:
        The localizer.

    Raises:
        InputError: An argument does not fit.

    Example:
        >>> from dal_jax.localizers import AutoencoderLocalizerConfig
        >>> from dal_jax.models import AutoencoderConfig, init_autoencoder
        >>> network = AutoencoderConfig(channels=(4,))
        >>> config = AutoencoderLocalizerConfig(network, image_size=4)
        >>> make_localizer(init_autoencoder(network, 0), config).image_shape
        (4, 4, 1)
    """
    return _MAKERS[config.kind](variables, config, threshold, draws, **parts)


def load_localizer(
    directory: str | Path,
    threshold: float = THRESHOLD,
    draws: Any = None,
    localizer: str | None = None,
) -> Localizer:
    """Make a localizer from a checkpoint.

    Args:
        directory: Folder that `train`, `save_checkpoint` or `import-weights` wrote.
        threshold: Threshold, positive, in units of the score.
        draws: Array of the localizer's shape, or a seed, fixed before the image is seen; None is
            seed 0.
        localizer: Another use of the same network, named as in `localizer_preset`, such as
            "mdps:pl"; None stands for the one that it was trained for. The name of a stored
            detector that is code, which is imported only if it is given here.

    Returns:
        The localizer, with the extractor that `save_extractor` stored there; or the detector that
        `save_detector` stored.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        InputError: The draws have another shape, the threshold is not positive, or the network
            cannot be used in this way.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from dal_jax.diffusion import DalConfig, save_checkpoint
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = DalConfig(UNetConfig(channels=(2,)), image_size=4)
        >>> with TemporaryDirectory() as folder:
        ...     save_checkpoint(folder, init_unet(config.unet, seed=0), config)
        ...     load_localizer(folder, threshold=0.5).image_shape
        (4, 4, 1)
    """
    if is_detector(directory):
        return load_detector(directory, threshold, draws, localizer)
    variables, config = read_checkpoint(directory)
    config = config if localizer is None else as_kind(config, localizer)
    parts = _load_extractor(Path(directory)) if isinstance(config, PerceptualConfig) else {}
    return make_localizer(variables, config, threshold, draws, **parts)


def read_checkpoint(directory: str | Path) -> tuple[PyTree, Any]:
    """Read the checkpoint of a localizer of any kind.

    Args:
        directory: Directory of the checkpoint.

    Returns:
        The variables of the network, and the configuration of the localizer.

    Raises:
        CheckpointError: As in `dal_jax.diffusion.load_checkpoint`.

    Example:
        >>> variables, config = read_checkpoint("model")  # doctest: +SKIP
    """
    return load_checkpoint(directory, list(CONFIGS.values()))


class ExtractorFile(NamedTuple):
    """File of the user with the weights of a feature extractor; see `load_extractor`.

    Example:
        >>> file = ExtractorFile(Path("resnet18.npz"), "resnet", {"depths": (1, 2)})
        >>> file.kind, file.settings["depths"]
        ('resnet', (1, 2))
    """

    path: Path  # .npz or .safetensors
    kind: str  # "resnet" or "vit"
    settings: Mapping[str, Any]  # fields of the extractor

    def load(self) -> dict[str, Any]:
        """Read the weights.

        Returns:
            {"extractor": ..., "features": ...}, arguments of `make_localizer`.

        Raises:
            InputError: Unknown kind or settings.
            CheckpointError: The weights do not fit.
        """
        extractor, features = load_extractor(self.path, self.kind, **self.settings)
        return {"extractor": extractor, "features": features}


def save_extractor(directory: str | Path, extractor: ExtractorFile | None) -> None:
    """Copy an extractor's weights beside a checkpoint, for `load_localizer`.

    Args:
        directory: Folder of the model, created if it does not exist.
        extractor: Extractor whose weights fit; None discards the stored one.

    Raises:
        InputError, CheckpointError: The weights do not fit; nothing is written then.

    Example:
        >>> file = ExtractorFile(Path("resnet18.npz"), "resnet", {"depths": (1, 2)})
        >>> save_extractor("model", file)  # doctest: +SKIP
    """
    folder = Path(directory)
    if extractor is None:
        (folder / _EXTRACTOR).unlink(missing_ok=True)
        return
    extractor.load()
    copy = folder / f"extractor{extractor.path.suffix}"
    with atomic_path(copy) as temporary:
        shutil.copyfile(extractor.path, temporary)
    facts = {
        "file": copy.name,
        "sha256": file_digest(copy),
        "kind": extractor.kind,
        "settings": dict(extractor.settings),
    }
    write_text(folder / _EXTRACTOR, json.dumps(facts, indent=1) + "\n")


def _load_extractor(directory: Path) -> dict[str, Any]:
    record = directory / _EXTRACTOR
    if not record.is_file():
        return {}
    with file_errors(record, "extractor", CheckpointError):
        facts = read_json(record, "extractor", CheckpointError)
        path = directory / Path(facts["file"]).name
        if file_digest(path) != facts["sha256"]:
            raise CheckpointError(f"extractor {str(path)!r}: is not the file of {record.name}")
        return ExtractorFile(path, facts["kind"], facts["settings"]).load()
