"""The whole chain on one data set: a trained model is calibrated and tests the images."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax import Localizer, TestOptions
from dal_jax.cli._calibrate import stages
from dal_jax.images import DataSet
from dal_jax.inspection import (
    Calibrated,
    CalibrateOptions,
    Inspected,
    InspectOptions,
    Profile,
    Reader,
    assemble_images,
    calibrate,
    load_profile,
    open_model,
    rows_of,
    runner,
    test_samples,
    to_test,
)
from experiments._experiment import Context

ALPHA = 0.05


class Chain(NamedTuple):
    """What the chain gave on one data set."""

    data: DataSet
    profile: Profile
    localizer: Localizer
    calibrated: Calibrated
    images: Callable[[], Iterator[Inspected]]  # the tested images, one at a time


def run_chain(
    root: Path,
    home: Path,
    directory: Path,
    context: Context,
    bar: Any,
    name: str,
    wanted: CalibrateOptions,
    options: TestOptions,
    keep: Callable[[DataSet, Profile], DataSet] | None = None,
) -> Chain:
    """Calibrates a model and tests the images of its data set.

    Args:
        root: of the data set.
        home: of the model, with its profile.
        directory: for the runs; continued if they are there.
        context: processes and devices.
        bar: of tqdm, for the progress.
        name: that it shows.
        wanted: how much to calibrate.
        options: of the tests, but for the region.
        keep: chooses some of the images; None: all.

    Returns:
        What was found.

    Raises:
        InputError: files that do not fit.
        RunError: the disk is full, or another process was lost.
    """
    profile = load_profile(home)
    data = profile.source.open(root)
    localizer = open_model(home, profile)
    if keep is not None:
        data = keep(data, profile)
    options = replace(options, region=profile.region, randomization=profile.randomization)
    say = stages(bar, f"{name}, ")
    run = runner(localizer, profile, options, context.host, context.devices, say)
    calibrated = calibrate(data, profile, run, directory / "calibration", wanted)
    reader = Reader(data, profile.fitted, profile.seen())
    laws = calibrated.calibration.deciding
    tested = test_samples(
        directory / "test",
        localizer,
        profile,
        reader,
        to_test(data, profile),
        replace(options, level=ALPHA, recalibrations=laws),
        host=context.host,
        devices=context.devices,
        batch_size=context.batch_size,
        progress=lambda done, total: say("test", done, total),
    )
    rows = rows_of(tested, calibrated.calibration, InspectOptions(ALPHA))
    return Chain(
        data,
        profile,
        localizer,
        calibrated,
        lambda: assemble_images(directory / "test", reader, profile, tested, rows),
    )
