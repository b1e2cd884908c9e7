"""`dal-jax test FOLDER`: tests of every image of a data set, with tables and pictures."""

import sys
from pathlib import Path

import typer
from tqdm import tqdm

from dal_jax import TestOptions
from dal_jax._errors import InputError
from dal_jax._files import dumps
from dal_jax.inspection import Inspection, inspect_folder
from dal_jax.runs import Host


def test_folder(
    model: Path,
    folder: Path,
    out: Path | None,
    alpha: float,
    decide_by: str | None,
    test_options: TestOptions,
    host: Host,
    devices: int | None,
    batch_size: int | None,
    overlays: bool,
    json: bool,
) -> None:
    """Test the images of a folder with a progress bar, and print the counts.

    Args:
        model: Directory of a model trained with --data.
        folder: Data set of the same layout, or any folder of images.
        out: Directory of the run; None is refused.
        alpha: Level for all views of an image together.
        decide_by: Method whose p-value decides; None for the one that the calibration names.
        test_options: Options of the tests; the model's region and randomization replace theirs.
        host: This process among those that share the run.
        devices: Number of devices to use; None for all.
        batch_size: Number of tests that run at the same time; None to fill the devices.
        overlays: Whether to write pictures of the images.
        json: Whether to print one JSON object.

    Raises:
        InputError: An argument does not fit, or a condition that all images share is violated.
        RunError: The disk is full, or another process was lost.
    """
    if out is None:
        raise InputError("--out: got none, expected a directory for the results of a folder")
    with tqdm(unit="view", file=sys.stderr, disable=host.index > 0 or None) as bar:

        def follow(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = inspect_folder(
            folder,
            model,
            out,
            test_options,
            alpha=alpha,
            decide_by=decide_by,
            overlays=overlays,
            host=host,
            devices=devices,
            batch_size=batch_size,
            progress=follow,
        )
    if host.index == 0:
        _say(found, json)


test_folder.__test__ = False  # type: ignore[attr-defined]


def _say(found: Inspection, json: bool) -> None:
    for one in found.views:
        for told in filter(None, (one.message, one.warning)):
            print(f"{one.name}: {told}", file=sys.stderr)
    options, counted = found.options, found.tally
    if json:
        shown = {name: getattr(counted, name) for name in ("views", "regions", "decisions")}
        shown |= {"discovered": found.discovered, "discoveries": options.discoveries}
        typer.echo(dumps({"out": found.directory, **shown}))
        return
    name = {"by": "Benjamini-Yekutieli", "bh": "Benjamini-Hochberg"}[options.discoveries]
    typer.echo(
        f"{counted.words} (at {options.alpha:g} by the {options.decide_by} p-value); "
        f"{found.discovered} at a false discovery rate of {options.alpha:g} ({name}); "
        f"written to {found.directory}"
    )
