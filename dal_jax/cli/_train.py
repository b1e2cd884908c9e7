"""`dal-jax train`: a localizer, learned from normal images."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from tqdm import tqdm

from dal_jax._errors import InputError
from dal_jax.cli import _data as data_options
from dal_jax.cli import _options as options
from dal_jax.cli._output import dumps
from dal_jax.diffusion import TrainConfig
from dal_jax.diffusion import train as run_training
from dal_jax.diffusion._train import Progress
from dal_jax.images import Preparation, image_files, read_images
from dal_jax.inspection import Learned, LearnOptions, learn, learn_views
from dal_jax.localizers import ExtractorFile, PerceptualConfig, localizer_preset
from dal_jax.localizers._presets import FORM, split_settings

Images = Annotated[
    list[Path],
    typer.Option(
        "--images",
        metavar="PATH",
        help="Normal images: a folder, an image or a .npy stack (N, H, W, C); may be repeated.",
    ),
]
Directory = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Checkpoint, training state and loss log.")
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        metavar="S",
        help="Side of the views that the model sees; larger images are cut into S x S views side "
        "by side, what is left at the right and lower edge is not used. Default: whole images.",
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        "--localizer",
        metavar=FORM,
        help="dal, mdps, glad or autoencoder, with a preset (mdps:pl, mdps:faithful, "
        "mdps:mvtec/tile, ...) and changes of its fields (mdps:pl,start=150).",
    ),
]
Textures = Annotated[
    Path | None,
    typer.Option(
        "--textures",
        metavar="DIR",
        help="glad: images of other things, to make anomalies of; by default of the images' own "
        "parts.",
    ),
]
ExtractorWords = Annotated[
    str | None,
    typer.Option(
        "--extractor",
        metavar="KIND:FILE[,FIELD=VALUE...]",
        help="mdps, glad: weights (.npz, .safetensors) of a network, resnet or vit, whose features "
        "are compared; by default those of the model's own encoder. Copied to DIR.",
    ),
]
Channels = Annotated[
    str | None,
    typer.Option(
        "--channels",
        help="Widths of the network from the first level to the bottom; of dal 32,64,128,256.",
    ),
]
Activation = Annotated[
    str | None,
    typer.Option("--activation", help="relu, leaky_relu, relu6, hard_tanh, pl-silu:K, pl-gelu:K."),
]
Start = Annotated[
    int | None, typer.Option("--start", help="Level at which images are noised; of dal 460.")
]
ReverseSteps = Annotated[
    int | None, typer.Option("--reverse-steps", help="dal: steps back from that level, 5.")
]
Eta = Annotated[
    float | None,
    typer.Option("--eta", help="dal, mdps: share of fresh noise in a step, 0 to 1; of both 1."),
]
FilterSize = Annotated[
    int | None,
    typer.Option("--filter-size", help="dal, autoencoder: side of the score's filter, 3."),
]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Updates of the weights; 2000, or the preset's.")
]
Batch = Annotated[
    int | None, typer.Option("--batch", help="Images in an update; 64, or the preset's.")
]
Rate = Annotated[
    float | None, typer.Option("--lr", help="Learning rate of Adam; 0.001, or the preset's.")
]
Dtype = Annotated[
    Literal["float32", "bfloat16"], typer.Option("--dtype", help="Type of the activations.")
]
Ema = Annotated[
    float | None, typer.Option("--ema", help="Decay of averaged weights; default: not averaged.")
]
NoiseKind = Annotated[
    str, typer.Option("--noise", help="--data: kind of noise model, or auto for the best fit.")
]
References = Annotated[
    int, typer.Option("--references", metavar="K", help="--data: normal views to compare with.")
]
Region = Annotated[
    Literal["all", "peak"],
    typer.Option(
        "--region",
        help="--data: test all flagged pixels, or those connected with the highest score.",
    ),
]
FlagShare = Annotated[
    float,
    typer.Option("--flag-share", help="--data: share of normal pixels that the threshold flags."),
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on with a run found in DIR, or start over.")
]


def train(
    out: Directory,
    images: Images = [],  # noqa: B006 (typer copies it)
    localizer: Kind = "dal",
    data: data_options.Data = None,
    layout: data_options.Layout = "auto",
    category: data_options.Category = None,
    contrast: data_options.Contrast = None,
    slices: data_options.Slices = None,
    groups: data_options.Groups = None,
    view: data_options.View = "resize",
    intensity: data_options.Intensity = "log",
    background: data_options.Background = "quadratic",
    scale: data_options.Scale = "view",
    reduce: data_options.Reduce = 1,
    border: data_options.Border = 0,
    overlap: data_options.Overlap = 0,
    colour: data_options.Colour = False,
    foreground: data_options.Foreground = "none",
    noise: NoiseKind = "auto",
    references: References = 20,
    flag_share: FlagShare = 0.02,
    region: Region = "peak",
    size: Size = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Rate = None,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    ema: Ema = None,
    dtype: Dtype = "float32",
    channels: Channels = None,
    activation: Activation = None,
    start: Start = None,
    reverse_steps: ReverseSteps = None,
    eta: Eta = None,
    filter_size: FilterSize = None,
    textures: Textures = None,
    extractor: ExtractorWords = None,
    checkpoint_every: Annotated[int, typer.Option(help="Updates between stored states.")] = 500,
    log_every: Annotated[int, typer.Option(help="Updates between entries of the loss log.")] = 50,
    resume: Resume = True,
    seed: options.Seed = 0,
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
    flags = {
        "channels": None if channels is None else list(parse_channels(channels)),
        "activation": activation,
        "start": start,
        "reverse_steps": reverse_steps,
        "eta": eta,
        "filter_size": filter_size,
    }
    config, training = localizer_preset(localizer, _changes(localizer, flags))
    wanted = {"steps": steps, "batch_size": batch, "learning_rate": lr}
    settings = TrainConfig(
        **{**training, **{name: value for name, value in wanted.items() if value is not None}},
        grad_clip=clip,
        ema_decay=ema,
        dtype=dtype,
        seed=seed,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
    )
    features = None if extractor is None else parse_extractor(extractor)
    if features is not None and not isinstance(config, PerceptualConfig):
        raise InputError(f"--extractor: got {extractor!r}, expected none with {config.kind}")
    if data is not None:
        preparation = Preparation(
            32 if size is None else size,
            view,
            intensity,
            background,
            scale,
            border,
            not colour,
            overlap,
            reduce,
            foreground,
        )
        source = data_options.source_of(layout, category, contrast, slices, groups)
        chosen = LearnOptions(
            noise=noise,
            references=references,
            flag_share=flag_share,
            region=region,
            seed=seed,
        )
        learned = learn(
            data,
            source,
            preparation,
            config,
            settings,
            chosen,
            out,
            partial(train_with_bar, resume=resume),
            textures,
            features,
        )
        _say_learned(learned, out, json)
        return
    chosen = LearnOptions(flag_share=flag_share, seed=seed)
    views = cut_views(read_images(images), size)
    others = None if textures is None else _textures(textures, size)
    with_bar = partial(train_with_bar, resume=resume)
    told = learn_views(views, config, settings, chosen, out, with_bar, others, features)
    loss, seconds = told.trained
    fields = {
        "checkpoint": out,
        "num_images": len(views),
        "steps": settings.steps,
        "loss": loss,
        "seconds": seconds,
        "threshold": told.threshold,
        "config": told.config.to_dict(),
    }
    if json:
        typer.echo(dumps(fields))
    else:
        typer.echo(
            f"{settings.steps} steps on {len(views)} views, loss {loss:.4g}, {seconds:.0f} s: {out}"
        )
        typer.echo(f"--threshold {told.threshold:.3g} flags {flag_share:.1%} of these pixels")


def _textures(source: Path, size: int | None) -> np.ndarray:
    files = image_files(source, "textures", deep=True)
    return cut_views(read_images(files), size)


def _say_learned(learned: Learned, out: Path, json: bool) -> None:
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
        "references": len(profile.references),
        "threshold": profile.threshold,
    }
    if json:
        typer.echo(dumps(fields))
        return
    told = ", ".join(f"{count} to {role}" for role, count in roles.items())
    typer.echo(f"{learned.num_views} views trained on; objects: {told}")
    if learned.left_out:
        typer.echo(f"{len(learned.left_out)} objects left out: they are among the test images")
    typer.echo(f"noise {profile.noise_kind}, threshold {profile.threshold:.3g}: {out}")


def train_with_bar(
    views: np.ndarray, config: Any, settings: TrainConfig, out: Path, resume: bool, **parts: Any
) -> tuple[float, float]:
    """Trains with a progress bar that shows the loss, on standard error.

    Args:
        views: (N, H, W, C).
        config: of the localizer.
        settings: how to train.
        out: folder for checkpoint, state and log.
        resume: go on with the run found there.
        **parts: further arguments of `dal_jax.diffusion.train`.

    Returns:
        The last mean loss (NaN if the run was finished already), and the seconds taken.
    """
    begun, losses = time.perf_counter(), [float("nan")]
    with tqdm(total=settings.steps, unit="step", desc="training") as bar:
        run_training(views, config, settings, out, _follow(bar, losses), resume, **parts)
    return losses[-1], time.perf_counter() - begun


def _follow(bar: tqdm, losses: list[float]) -> Progress:
    def follow(step: int, total: int, loss: float) -> None:
        losses.append(loss)
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        bar.update(step - bar.n)

    return follow


# Fields that options of their own stand for.
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
    """Fields of a configuration that options were given for, with their values."""
    kind = localizer.partition(":")[0].partition(",")[0]
    given = {name: value for name, value in flags.items() if value is not None}
    known = _FLAGS.get(kind, {})  # an unknown kind is refused where the rest is read
    for name, value in given.items():
        if known and name not in known:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option}: got {value}, expected none with {kind}")
    return {known[name]: value for name, value in given.items() if known}


def parse_extractor(text: str) -> ExtractorFile:
    """Reads words such as "resnet:weights.npz,blocks=[3,4]".

    Args:
        text: KIND:FILE[,FIELD=VALUE...], values as in TOML.

    Returns:
        The file, its kind and settings.

    Raises:
        InputError: another form.
    """
    head, settings = split_settings(text)
    kind, colon, path = head.partition(":")
    if not colon or not path:
        raise InputError(f"--extractor: got {text!r}, expected KIND:FILE as in resnet:weights.npz")
    return ExtractorFile(Path(path), kind, settings)


def parse_channels(text: str) -> tuple[int, ...]:
    """Reads widths such as "32,64,128".

    Args:
        text: whole numbers with commas between them.

    Returns:
        The numbers.

    Raises:
        InputError: it is something else.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"--channels: got {text!r}, expected numbers as in 32,64,128") from None


def cut_views(images: np.ndarray, size: int | None) -> np.ndarray:
    """Cuts images into square views side by side.

    Args:
        images: (N, H, W, C).
        size: side of a view, or None for whole images.

    Returns:
        (N * rows * columns, size, size, C).

    Raises:
        InputError: the images are smaller than a view.
    """
    if size is None:
        return images
    count, height, width, channels = images.shape
    rows, columns = (n // size if size > 0 else 0 for n in (height, width))
    if rows * columns == 0:
        raise InputError(f"--size: got {size}, the images are only {height} x {width}")
    blocks = images[:, : rows * size, : columns * size].reshape(
        count, rows, size, columns, size, channels
    )
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size, size, channels)
