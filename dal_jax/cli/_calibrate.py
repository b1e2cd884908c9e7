"""`dal-jax calibrate`: check and recalibration of a model's p-values on real normal images."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from dal_jax._files import dumps
from dal_jax.cli import _options as options
from dal_jax.inspection import Calibrated, CalibrateOptions, calibrate_folder, stage_progress
from dal_jax.runs import join_hosts, leave_hosts

Model = Annotated[
    Path,
    typer.Option(
        "--model",
        metavar="DIR",
        help="Model trained with --data, whose folder takes the calibration.",
    ),
]
Data = Annotated[
    Path, typer.Option("--data", metavar="FOLDER", help="Data set that the model was trained on.")
]
Add = Annotated[
    list[Path],
    typer.Option(
        "--add",
        metavar="FOLDER",
        help="Further normal images, such as those of a later day, which join those that training "
        "held out; may be repeated. Give all such folders each time.",
    ),
]
Control = Annotated[
    int,
    typer.Option(
        "--control", metavar="N", help="Number of control images, drawn from the noise model."
    ),
]
Lengths = Annotated[
    bool,
    typer.Option(
        "--lengths/--no-lengths",
        help="Repeat the tests with two other correlation lengths of the noise: two more tests of "
        "each view.",
    ),
]


def calibrate(
    model: Model,
    data: Data,
    add: Add = [],  # noqa: B006 (typer copies it)
    control: Control = 200,
    lengths: Lengths = False,
    localizer: options.Detector = None,
    devices: options.Devices = None,
    cache: options.Cache = None,
    coordinator: options.Coordinator = None,
    num_processes: options.NumProcesses = None,
    process_id: options.ProcessId = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Tests the normal images that training set aside and reports how often they are significant.

    Fits recalibrations of the p-values and writes them to calibration.json in the model's folder,
    from which test reads them. After an interruption, the same command resumes.
    """
    options.keep_compilations(cache)
    host = join_hosts(coordinator, num_processes, process_id)
    with tqdm(unit="view", file=sys.stderr, disable=host.index > 0 or None) as bar:
        found = calibrate_folder(
            data,
            model,
            CalibrateOptions(control, lengths, seed),
            localizer=localizer,
            add=add,
            host=host,
            devices=devices,
            progress=stage_progress(bar),
        )
    if host.index == 0:
        typer.echo(dumps(_fields(found, model)) if json else _summary(found))
    leave_hosts()


def _fields(found: Calibrated, model: Path) -> dict[str, Any]:
    return {
        "model": model,
        "verdict": found.verdict,
        "rates": [rate._asdict() for rate in found.rates],
        "control_rates": [rate._asdict() for rate in found.control_rates],
        "sensitivity": found.sensitivity,
    }


def _summary(found: Calibrated) -> str:
    lines = [
        *found.verdict,
        "",
        f"{'false calls':<18}{'at 0.01':>22}{'at 0.05':>22}{'at 0.10':>22}",
    ]
    for method in dict.fromkeys(rate.method for rate in found.rates):
        own = [rate for rate in found.rates if rate.method == method]
        cells = [f"{r.rate:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in own]
        lines.append(f"{method:<18}" + "".join(f"{cell:>22}" for cell in cells))
    if found.rates:
        lines += ["", "heavy_tails has little power: defects are called as seldom."]
    return "\n".join(lines)
