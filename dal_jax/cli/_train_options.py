"""Options of `dal-jax train`."""

from pathlib import Path
from typing import Annotated

import typer

from dal_jax.localizers import DETECTOR_FORM, FORM

Images = Annotated[
    list[Path],
    typer.Option(
        "--images",
        metavar="PATH",
        help="Normal images: a folder, an image or a .npy stack (N, H, W, C); may be repeated.",
    ),
]
Directory = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for the checkpoint, the training state and the loss log.",
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        metavar="S",
        help="Side of the views in pixels. With --images, larger images are cut into adjacent "
        "S x S views, without the remainder at the right and lower edges; by default images stay "
        "whole. With --data, 32 by default.",
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        "--localizer",
        metavar=f"{FORM}|{DETECTOR_FORM}",
        help="Localizer: dal, mdps, glad or autoencoder, with a preset (mdps:pl, "
        "mdps:faithful, mdps:mvtec/tile, ...) and changes of its fields (mdps:pl,start=150). A "
        "detector of your own, a function of a Python module or an ONNX file, is not trained: "
        "noise, references and threshold are learned for it.",
    ),
]
Textures = Annotated[
    Path | None,
    typer.Option(
        "--textures",
        metavar="DIR",
        help="Images of other subjects from which synthetic anomalies are made; by default parts "
        "of the training images serve. glad only.",
    ),
]
ExtractorWords = Annotated[
    str | None,
    typer.Option(
        "--extractor",
        metavar="KIND:FILE[,FIELD=VALUE...]",
        help="Weights (.npz, .safetensors) of a network, resnet or vit, whose features are "
        "compared; by default those of the model's own encoder. Copied to DIR. mdps and glad only.",
    ),
]
Channels = Annotated[
    str | None,
    typer.Option(
        "--channels",
        help="Widths of the network from the finest level to the coarsest; 32,64,128,256 for dal.",
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(
        "--activation",
        help="Activation: relu, leaky_relu, relu6, hard_tanh, pl-silu:K or pl-gelu:K.",
    ),
]
Start = Annotated[
    int | None, typer.Option("--start", help="Level to which images are noised; 460 for dal.")
]
ReverseSteps = Annotated[
    int | None,
    typer.Option(
        "--reverse-steps", help="Number of reverse steps from that level; 5 by default. dal only."
    ),
]
Eta = Annotated[
    float | None,
    typer.Option(
        "--eta", help="Share of fresh noise in a step, 0 to 1; 1 by default. dal and mdps only."
    ),
]
FilterSize = Annotated[
    int | None,
    typer.Option(
        "--filter-size",
        help="Side of the score's averaging filter in pixels; 3 by default. dal and autoencoder "
        "only.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume", help="Resume an interrupted training in DIR, or start anew."
    ),
]
