"""Options for reading and preparing a folder of images."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dal_jax._errors import InputError
from dal_jax.inspection import Source

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Folder of a data set; --layout lists the supported layouts.",
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        "--layout",
        help="Layout of the data set: auto, mvtec, btad, visa, mpdd, folder, brats2021, "
        "brats2023, nifti, dicom or arrays.",
    ),
]
Category = Annotated[
    str | None, typer.Option("--category", help="Category, in a data set of several.")
]
Contrast = Annotated[
    str | None, typer.Option("--contrast", help="Contrast of volumes, such as t2w.")
]
Slices = Annotated[
    str | None,
    typer.Option("--slices", metavar="A:B[:STEP]", help="Range of the axial slices of volumes."),
]
Groups = Annotated[
    str | None,
    typer.Option(
        "--groups",
        help="Rule that assigns images to physical objects: regex:PATTERN, csv:FILE:COLUMN, "
        "runs:N or gap:N; by default each file (each patient) is an object.",
    ),
]
View = Annotated[
    Literal["resize", "crop", "tile"],
    typer.Option(
        "--view", help="Take the whole image (resize), its middle (crop) or adjacent tiles (tile)."
    ),
]
Intensity = Annotated[
    Literal["log", "raw"],
    typer.Option(
        "--intensity", help="Take the logarithm of the pixels, or leave them as they are."
    ),
]
Background = Annotated[
    Literal["quadratic", "none"],
    typer.Option("--background", help="Background to subtract from each view."),
]
Scale = Annotated[
    Literal["view", "train", "none"],
    typer.Option(
        "--scale",
        help="Divide by the standard deviation of the view, by that of the training views, or not.",
    ),
]
Reduce = Annotated[
    int, typer.Option("--reduce", help="Number of pixels averaged into one, along each axis.")
]
Border = Annotated[int, typer.Option("--border", help="Number of pixels left out at each edge.")]
Overlap = Annotated[
    int, typer.Option("--overlap", help="Number of pixels that adjacent tiles share.")
]
Colour = Annotated[
    bool,
    typer.Option("--colour/--grey", help="Keep the channels of colour images, or average them."),
]
Foreground = Annotated[
    Literal["none", "otsu", "nonzero"],
    typer.Option(
        "--foreground",
        help="Foreground that may be flagged: pixels that are bright (otsu) or not 0 (nonzero) in "
        "95% of the training images. It does not depend on the tested image; all other pixels are "
        "set to 0. With --view resize or crop only.",
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
