"""Options of `dal-jax train`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dal_jax.localizers import FORM

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
Clip = Annotated[float, typer.Option("--clip", help="Largest norm of the gradient.")]
CheckpointEvery = Annotated[
    int, typer.Option("--checkpoint-every", help="Number of updates between stored states.")
]
LogEvery = Annotated[
    int, typer.Option("--log-every", help="Number of updates between entries of the loss log.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on with a run found in DIR, or start over.")
]
