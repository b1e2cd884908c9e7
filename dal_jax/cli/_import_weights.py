"""`dal-jax import-weights`: conversion of a PyTorch network's weights into a checkpoint."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dal_jax._files import dumps
from dal_jax.cli import _options as options
from dal_jax.diffusion import DalConfig, save_checkpoint
from dal_jax.models import import_state_dict, infer_unet_config

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="State dict of a PyTorch network: .npz, .safetensors or .pt (weights only).",
    ),
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the checkpoint.")]
Arch = Annotated[Literal["dal-unet"], typer.Option("--arch", help="Architecture of the weights.")]
Size = Annotated[int, typer.Option("--size", metavar="S", help="Side of the images in pixels.")]
Activation = Annotated[
    str,
    typer.Option("--activation", help="Activation of the network, which the file does not name."),
]


def import_weights(
    file: File,
    directory: Directory,
    arch: Arch = "dal-unet",
    size: Size = 32,
    activation: Activation = "relu",
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Writes a checkpoint that every other verb accepts (--seed has no effect here)."""
    unet = infer_unet_config(file, activation)
    config = DalConfig(unet=unet, image_size=(size, size))
    save_checkpoint(directory, import_state_dict(file, unet), config)
    if json:
        typer.echo(dumps({"checkpoint": directory, "arch": arch, "config": config.to_dict()}))
    else:
        typer.echo(f"{arch} with channels {unet.channels} for {size}x{size} images: {directory}")
