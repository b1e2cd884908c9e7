"""Options for reading and preparing a folder of images."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dal_jax._errors import InputError
from dal_jax.inspection import Source

Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Data set: see --layout."),
]
Layout = Annotated[
    str,
    typer.Option(
        "--layout",
        help="auto, mvtec, btad, visa, mpdd, folder, brats2021, brats2023, nifti, dicom, arrays.",
    ),
]
Category = Annotated[str | None, typer.Option("--category", help="Of a set that holds several.")]
Contrast = Annotated[str | None, typer.Option("--contrast", help="Of volumes, as in t2w.")]
Slices = Annotated[
    str | None, typer.Option("--slices", metavar="A:B[:STEP]", help="Of volumes, axial.")
]
Groups = Annotated[
    str | None,
    typer.Option(
        "--groups",
        help="What tells the physical object: regex:PATTERN, csv:FILE:COLUMN, runs:N or gap:N; "
        "by default each file (each patient) is one.",
    ),
]
View = Annotated[
    Literal["resize", "crop", "tile"],
    typer.Option("--view", help="The whole image, its middle, or tiles side by side."),
]
Intensity = Annotated[Literal["log", "raw"], typer.Option("--intensity", help="Of the pixels.")]
Background = Annotated[
    Literal["quadratic", "none"], typer.Option("--background", help="Taken off each view.")
]
Scale = Annotated[
    Literal["view", "train", "none"],
    typer.Option("--scale", help="Divide by the view's deviation, the training views', or not."),
]
Reduce = Annotated[int, typer.Option("--reduce", help="Pixels averaged into one, each way.")]
Border = Annotated[int, typer.Option("--border", help="Pixels left out at each edge.")]
Overlap = Annotated[int, typer.Option("--overlap", help="Pixels that neighbouring tiles share.")]
Colour = Annotated[bool, typer.Option("--colour/--grey", help="Keep the channels, or average.")]
Foreground = Annotated[
    Literal["none", "otsu", "nonzero"],
    typer.Option(
        "--foreground",
        help="Pixels that count: those that are bright (otsu) or not 0 (nonzero) in 95% of the "
        "training images, the same in every tested image, whose own pixels have no say; the others "
        "are set to 0. With --view resize or crop.",
    ),
]

# Parameters whose options have no effect without `Data`.
NAMES = (
    *("layout", "category", "contrast", "slices", "groups"),
    *("view", "intensity", "background", "scale", "reduce", "border", "overlap"),
    *("colour", "foreground"),
)


def source_of(
    layout: str, category: str | None, contrast: str | None, slices: str | None, groups: str | None
) -> Source:
    """Return the source that the options of a data set describe.

    Args:
        layout: Layout of the folder.
        category: Category in a data set of several, or None.
        contrast: Contrast of volumes, or None.
        slices: Slices as "A:B" or "A:B:STEP", or None.
        groups: Rule that names the physical object, or None.

    Returns:
        The source.

    Raises:
        InputError: The slices have another form.
    """
    parts: tuple[int, ...] | None = None
    if slices is not None:
        words = slices.split(":")
        if len(words) not in (2, 3) or not all(word.isdecimal() for word in words):
            raise InputError(f"--slices: got {slices!r}, expected A:B or A:B:STEP")
        parts = tuple(int(word) for word in words)
    return Source(layout, category, contrast, parts, groups)
