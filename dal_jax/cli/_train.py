"""`dal-jax train`: training of a localizer on normal images."""

import math
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer

from dal_jax._config import split_settings
from dal_jax._errors import InputError
from dal_jax._files import dumps
from dal_jax.cli import _data as data_options
from dal_jax.cli import _options as options
from dal_jax.cli import _train_options as words
from dal_jax.diffusion import TrainConfig
from dal_jax.images import Preparation, image_files, read_images
from dal_jax.inspection import (
    Learned,
    LearnedViews,
    LearnOptions,
    Source,
    learn,
    learn_views,
    train_with_bar,
)
from dal_jax.localizers import (
    ExtractorFile,
    PerceptualConfig,
    detector_named,
    localizer_preset,
)

# Options of a network.
_OF_TRAINING = (
    *(field.name for field in fields(TrainConfig) if field.name != "seed"),
    *("devices", "channels", "activation", "start", "reverse_steps", "eta", "filter_size"),
    *("textures", "extractor", "resume"),
)
# Options of a profile, which only training on a data set makes.
_OF_DATA = ("noise", "references", "deal_references", "region", "randomization")


@options.with_fields(LearnOptions, "learning", dict.fromkeys(_OF_DATA, "With --data only."))
@options.with_fields(TrainConfig, "training", {})
def train(
    context: typer.Context,
    out: words.Directory,
    images: words.Images = [],  # noqa: B006 (typer copies it)
    localizer: words.Kind = "dal",
    data: data_options.Data = None,
    layout: data_options.Layout = Source.layout,
    category: data_options.Category = None,
    contrast: data_options.Contrast = None,
    slices: data_options.Slices = None,
    groups: data_options.Groups = None,
    view: data_options.View = Preparation.view,
    intensity: data_options.Intensity = Preparation.intensity,
    background: data_options.Background = Preparation.background,
    scale: data_options.Scale = Preparation.scale,
    reduce: data_options.Reduce = Preparation.reduce,
    border: data_options.Border = Preparation.border,
    overlap: data_options.Overlap = Preparation.overlap,
    colour: data_options.Colour = not Preparation.grey,
    foreground: data_options.Foreground = Preparation.foreground,
    learning: LearnOptions = LearnOptions(),  # noqa: B008 (a constant)
    size: words.Size = None,
    training: TrainConfig = TrainConfig(),  # noqa: B008 (a constant)
    devices: options.Devices = None,
    channels: words.Channels = None,
    activation: words.Activation = None,
    start: words.Start = None,
    reverse_steps: words.ReverseSteps = None,
    eta: words.Eta = None,
    filter_size: words.FilterSize = None,
    textures: words.Textures = None,
    extractor: words.ExtractorWords = None,
    resume: words.Resume = True,
    json: options.Json = False,
) -> None:
    """Trains a localizer on normal images and writes a checkpoint that test accepts.

    With --data the normal training images of a data set are prepared, dealt out by physical object
    and described by a noise model, references and a threshold, which calibrate and test take from
    the checkpoint's folder.
    """
    if bool(images) == (data is not None):
        given = "both" if images else "none"
        raise InputError(f"--images, --data: got {given}, expected one of them")
    if data is None:
        options.refuse(context, (*data_options.NAMES, *_OF_DATA), "without --data")
    detector = detector_named(localizer)
    if detector is not None:
        options.refuse(context, _OF_TRAINING, f"with {detector.source}, which is not trained")
    flags = {
        "channels": None if channels is None else list(parse_channels(channels)),
        "activation": activation,
        "start": start,
        "reverse_steps": reverse_steps,
        "eta": eta,
        "filter_size": filter_size,
    }
    config: Any
    preset: dict[str, Any]
    config, preset = detector, {}
    if detector is None:
        config, preset = localizer_preset(localizer, _changes(localizer, flags))
    preset = {name: preset[name] for name in preset if not options.is_given(context, name)}
    settings = replace(training, **{**preset, "seed": learning.seed})
    features = _features(extractor, config)
    with_bar = partial(train_with_bar, resume=resume, devices=devices)
    if data is not None:
        looks = (view, intensity, background, scale, border, not colour, overlap, reduce)
        preparation = Preparation(Preparation.size if size is None else size, *looks, foreground)
        source = data_options.source_of(layout, category, contrast, slices, groups)
        rest = (settings, learning, out, with_bar, textures, features)
        learned = learn(data, source, preparation, config, *rest)
        _say_learned(learned, detector is None, out, json)
        return
    views = cut_views(read_images(images), size)
    others = None if textures is None else _textures(textures, size)
    told = learn_views(views, config, settings, learning, out, with_bar, others, features)
    _say_trained(told, len(views), settings, learning.flag_share, out, json)


def _features(words: str | None, config: Any) -> ExtractorFile | None:
    if words is None:
        return None
    if not isinstance(config, PerceptualConfig):
        raise InputError(f"--extractor: got {words!r}, expected none with {config.kind}")
    return parse_extractor(words)


def _say_trained(
    told: LearnedViews, count: int, settings: TrainConfig, share: float, out: Path, json: bool
) -> None:
    loss, seconds = told.trained or (math.nan, 0.0)
    fields = {
        "checkpoint": out,
        "num_images": count,
        "steps": settings.steps if told.trained else 0,
        "loss": loss,
        "seconds": seconds,
        "threshold": told.threshold,
        "config": told.config.to_dict() if told.trained else asdict(told.config),
    }
    if json:
        typer.echo(dumps(fields))
    else:
        if told.trained is None:
            typer.echo(f"{told.config.source} for {count} views: {out}")
            typer.echo(f"--threshold {told.threshold:.3g} flags {share:.1%} of these pixels")
            return
        typer.echo(
            f"{settings.steps} steps on {count} views, loss {loss:.4g}, {seconds:.0f} s: {out}"
        )
        typer.echo(f"--threshold {told.threshold:.3g} flags {share:.1%} of these pixels")


def _textures(source: Path, size: int | None) -> np.ndarray:
    files = image_files(source, "textures", deep=True)
    return cut_views(read_images(files), size)


def _say_learned(learned: Learned, trained: bool, out: Path, json: bool) -> None:
    profile = learned.profile
    roles = {role: len(groups) for role, groups in profile.roles.items()}
    fields = {
        "checkpoint": out,
        "num_views": learned.num_views,
        "groups": roles,
        "left_out_groups": len(learned.left_out),
        "refused_images": learned.refused,
        "noise": profile.noise_kind,
        "noise_compared": [
            {
                "kind": report.kind,
                "region_error": report.region_error,
                "log_likelihood": report.log_likelihood.value,
            }
            for report in learned.choice.reports
        ],
        "references": profile.num_references,
        "warnings": list(profile.warnings),
        "threshold": profile.threshold,
    }
    if json:
        typer.echo(dumps(fields))
        return
    told = ", ".join(f"{count} to {role}" for role, count in roles.items())
    use = "views trained on" if trained else "views of normal images"
    typer.echo(f"{learned.num_views} {use}; objects: {told}")
    if learned.left_out:
        typer.echo(f"{len(learned.left_out)} objects left out: they are among the test images")
    typer.echo(f"noise {profile.noise_kind}, threshold {profile.threshold:.3g}: {out}")


# Fields that have options of their own.
_NETWORK = {"channels": "unet.channels", "activation": "unet.activation"}
_FLAGS = {
    "dal": {
        **_NETWORK,
        "start": "reverse.start",
        "reverse_steps": "reverse.steps",
        "eta": "reverse.eta",
        "filter_size": "filter_size",
    },
    "mdps": {**_NETWORK, "start": "start", "eta": "eta"},
    "glad": {**_NETWORK, "start": "start"},
    "autoencoder": {
        "channels": "network.channels",
        "activation": "network.activation",
        "filter_size": "filter_size",
    },
}


def _changes(localizer: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration that options set, with their values."""
    kind = split_settings(localizer)[0].partition(":")[0]
    given = {name: value for name, value in flags.items() if value is not None}
    known = _FLAGS.get(kind, {})  # an unknown kind is refused when the configuration is read
    for name, value in given.items():
        if known and name not in known:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option}: got {value}, expected none with {kind}")
    return {known[name]: value for name, value in given.items() if known}


def parse_extractor(text: str) -> ExtractorFile:
    """Parse an extractor such as "resnet:weights.npz,blocks=[3,4]".

    Args:
        text: Text of the form KIND:FILE[,FIELD=VALUE...], with values as in TOML.

    Returns:
        The file, its kind and settings.

    Raises:
        InputError: The text has another form.
    """
    head, settings = split_settings(text)
    kind, colon, path = head.partition(":")
    if not colon or not path:
        raise InputError(f"--extractor: got {text!r}, expected KIND:FILE as in resnet:weights.npz")
    return ExtractorFile(Path(path), kind, settings)


def parse_channels(text: str) -> tuple[int, ...]:
    """Parse channel widths such as "32,64,128".

    Args:
        text: Whole numbers, separated by commas.

    Returns:
        The numbers.

    Raises:
        InputError: The text has another form.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"--channels: got {text!r}, expected numbers as in 32,64,128") from None


def cut_views(images: np.ndarray, size: int | None) -> np.ndarray:
    """Cut images into square views side by side.

    Args:
        images: (N, H, W, C) images.
        size: Side of a view, pixels, or None for whole images.

    Returns:
        Views (N * rows * columns, size, size, C); the images themselves for None.

    Raises:
        InputError: The images are smaller than a view.
    """
    if size is None:
        return images
    count, height, width, channels = images.shape
    rows, columns = (n // size if size > 0 else 0 for n in (height, width))
    if rows * columns == 0:
        raise InputError(f"--size: got {size}, expected 1 to {min(height, width)} for the images")
    blocks = images[:, : rows * size, : columns * size].reshape(
        count, rows, size, columns, size, channels
    )
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size, size, channels)
