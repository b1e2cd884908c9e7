"""Localizers by name: settings from data files, and changes of single fields."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

from dal_jax._errors import InputError
from dal_jax.diffusion import DalConfig, TrainConfig, build_config
from dal_jax.localizers._autoencoder import AutoencoderLocalizerConfig
from dal_jax.localizers._glad import GladConfig
from dal_jax.localizers._mdps import MdpsConfig

CONFIGS: dict[str, Any] = {
    config.kind: config
    for config in (DalConfig, MdpsConfig, GladConfig, AutoencoderLocalizerConfig)
}
FORM = "KIND[:PRESET][,FIELD=VALUE...]"
# Commas before a new field; others are inside of lists.
_COMMA = re.compile(r",(?=\s*[A-Za-z_.]+\s*=)")


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
        _put(fields, key, value)
    training = fields.pop("training", {})
    try:
        build_config(TrainConfig, training)
        return Preset(CONFIGS[kind].from_dict(fields), training)
    except InputError as error:
        raise InputError(f"localizer {text!r}: {error}") from error


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


def split_settings(text: str) -> tuple[str, dict[str, Any]]:
    """Split a name from the settings behind it, as in "name,start=150,channels=[8,16]".

    Args:
        text: Text of the form HEAD[,FIELD=VALUE...].

    Returns:
        The head, and the values by field.

    Example:
        >>> split_settings("mdps:pl,start=150,channels=[8,16]")
        ('mdps:pl', {'start': 150, 'channels': [8, 16]})
    """
    head, *rest = _COMMA.split(text)
    parts = (part.partition("=") for part in rest)
    return head, {key.strip(): _value(value.strip()) for key, _, value in parts}


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
        raise InputError(f"localizer: got {kind!r}, expected one of {', '.join(CONFIGS)}")
    folder = resources.files("dal_jax.localizers") / "presets"
    return tomllib.loads((folder / f"{kind}.toml").read_text(encoding="utf-8"))


def _resolve(kind: str, name: str) -> dict[str, Any]:
    """Return the fields of a preset, on top of those of its base."""
    presets = _file(kind)["presets"]
    if name not in presets:
        known = ", ".join(presets)
        raise InputError(f"localizer: got preset {name!r} of {kind}, expected one of {known}")
    own = dict(presets[name])
    fields = _resolve(kind, own.pop("base")) if "base" in own else {}
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(fields.get(key), dict)
        fields[key] = {**fields[key], **value} if both else value
    return {k: dict(v) if isinstance(v, dict) else v for k, v in fields.items()}


def _put(fields: dict[str, Any], key: str, value: Any) -> None:
    *parts, last = key.split(".")
    for part in parts:
        if not isinstance(fields.get(part), dict):
            fields[part] = {}
        fields = fields[part]
    fields[last] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a string without quotes
