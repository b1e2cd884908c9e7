"""`dal-jax report`: one HTML page of a tested folder, which can be passed on."""

from pathlib import Path
from typing import Annotated

import typer

from dal_jax._files import dumps
from dal_jax.cli import _options as options
from dal_jax.inspection import NUM_PICTURES, Page, page

Directory = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="Folder of results, given as --out to dal-jax test.",
        show_default=False,
    ),
]
Model = Annotated[
    Path | None,
    typer.Option(
        "--model", metavar="DIR", help="Folder of the model, to show its settings and calibration."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE.html", help="Path of the page; by default DIR/report.html."
    ),
]
Pictures = Annotated[
    int,
    typer.Option(
        "--pictures", metavar="N", help="Number of images shown, in the order of their p-values."
    ),
]


def report(
    directory: Directory,
    model: Model = None,
    out: Out = None,
    pictures: Pictures = NUM_PICTURES,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Writes one self-contained HTML page of a tested folder (--seed has no effect).

    The page holds decisions, calibration, pictures, a table, settings and fingerprints, and loads
    no other file.
    """
    made = page(directory, out, model=model, num_pictures=pictures)
    typer.echo(dumps(made._asdict()) if json else _summary(made))


def _summary(made: Page) -> str:
    shown = f"{made.num_pictures} pictures"
    if made.num_left_out:
        shown += f" ({made.num_left_out} images only in the table)"
    trust = "with calibration" if made.calibrated else "WITHOUT calibration"
    return (
        f"{made.counts}; {shown}, {trust}; written to {made.path} ({made.num_bytes / 1e6:.1f} MB)"
    )
