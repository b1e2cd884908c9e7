"""The whole chain on one data set: a trained model is calibrated and tests the images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax import Localizer, TestOptions
from dal_jax.images import DataSet
from dal_jax.inspection import (
    Calibrated,
    CalibrateOptions,
    Inspection,
    Profile,
    calibrate_folder,
    inspect_folder,
    load_profile,
    open_model,
    stage_progress,
)
from experiments._experiment import Context

ALPHA = 0.05


class Chain(NamedTuple):
    """Results of the chain on one data set."""

    profile: Profile
    localizer: Localizer
    calibrated: Calibrated
    inspection: Inspection


def run_chain(
    root: Path,
    home: Path,
    directory: Path,
    context: Context,
    bar: Any,
    name: str,
    wanted: CalibrateOptions,
    options: TestOptions,
    select: Callable[[DataSet, Profile], DataSet] | None = None,
    detector: str | None = None,
) -> Chain:
    """Calibrates a model and tests the images of its data set.

    Args:
        root: of the data set.
        home: of the model, with its profile; nothing is written there.
        directory: for the runs; continued if they are there.
        context: processes and devices.
        bar: of tqdm, for the progress.
        name: shown beside the progress.
        wanted: what is tested besides the held-out images.
        options: of the tests; region and randomization are the profile's.
        select: chooses some of the images; None: all.
        detector: name of the model's detector, if that is code.

    Returns:
        The results.

    Raises:
        InputError: files that do not fit.
        RunError: the disk is full, or another process was lost.
    """
    shared: dict[str, Any] = {
        "select": select,
        "localizer": detector,
        "host": context.host,
        "devices": context.devices,
        "progress": stage_progress(bar, f"{name}, "),
    }
    calibrated = calibrate_folder(root, home, wanted, options, out=directory, **shared)
    inspection = inspect_folder(
        root,
        home,
        directory / "test",
        options,
        alpha=ALPHA,
        decide_by="selective",
        calibration=calibrated.calibration,
        overlays=False,
        batch_size=context.batch_size,
        **shared,
    )
    profile = load_profile(home)
    return Chain(profile, open_model(home, profile, detector), calibrated, inspection)
