"""`dal-jax calibrate`: how far the p-values of a model can be trusted on real images."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from dal_jax import TestOptions
from dal_jax._dal_test import region_of
from dal_jax.cli import _options as options
from dal_jax.cli._output import dumps
from dal_jax.inspection import (
    Calibrated,
    CalibrateOptions,
    keep,
    load_profile,
    open_model,
    runner,
)
from dal_jax.inspection import (
    calibrate as run_calibration,
)
from dal_jax.inspection._calibration import view_p
from dal_jax.report import calibration_picture, overlay
from dal_jax.runs import join_hosts, leave_hosts

# Wider laws weigh the far tails more, and conformal p-values are ranks: both need p well known.
PRECISION = 1e-6

Model = Annotated[
    Path, typer.Option("--model", metavar="DIR", help="Model trained with --data; kept there.")
]
Data = Annotated[Path, typer.Option("--data", metavar="FOLDER", help="The data set it is from.")]
Control = Annotated[
    int, typer.Option("--control", metavar="N", help="Images drawn from the noise model; 0: none.")
]
Lengths = Annotated[
    bool, typer.Option("--lengths/--no-lengths", help="Also other correlation lengths.")
]


def calibrate(
    model: Model,
    data: Data,
    control: Control = 200,
    lengths: Lengths = True,
    devices: options.Devices = None,
    cache: options.Cache = None,
    coordinator: options.Coordinator = None,
    num_processes: options.NumProcesses = None,
    process_id: options.ProcessId = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Tests the normal images that training kept aside and says how often they are called.

    The recalibrations that it fits go to calibration.json in the model's folder, where test finds
    them. The same command goes on after an interruption.
    """
    options.keep_compilations(cache)
    profile = load_profile(model)
    localizer = open_model(model, profile)
    host = join_hosts(coordinator, num_processes, process_id)
    source = profile.source.open(data)
    with tqdm(unit="view", file=sys.stderr, disable=host.index > 0 or None) as bar:
        how = TestOptions(
            region=profile.region, precision=PRECISION, randomization=profile.randomization
        )
        run = runner(localizer, profile, how, host, devices, stages(bar))
        wanted = CalibrateOptions(control, lengths, seed)
        found = run_calibration(source, profile, run, model / "calibration", wanted)
    if host.index == 0:
        keep(model, found)
        _pictures(found, model / "calibration")
        typer.echo(dumps(_fields(found, model)) if json else _summary(found))
    leave_hosts()


def _pictures(found: Calibrated, folder: Path) -> None:
    """The whole in one picture; the normal views with the smallest p-values: look at them."""
    held = found.calibration
    calibration_picture(
        folder / "calibration.png",
        held.selective.p,
        held.naive,
        held.num_groups,
        found.fit,
        found.rates,
    )
    for number, (record, view) in enumerate(found.smallest, 1):
        region = region_of(record["region"], view.shape[:2])
        called = region & bool(view_p(record).p <= 0.05)
        limits = (-3.0, 3.0) if view.min() < 0 else None  # standard deviations of the view
        overlay(view, region, called, folder / "smallest" / f"{number:02d}.png", limits=limits)


def stages(bar: Any, before: str = "") -> Callable[[str, int, int], None]:
    """Shows which of several runs is under way, and how far it is.

    Args:
        bar: of tqdm.
        before: put before the name of the run.

    Returns:
        A function of name, tasks done and all tasks.
    """

    def follow(what: str, done: int, total: int) -> None:
        bar.set_description(before + what, refresh=False)
        if bar.total != total or done < bar.n:
            bar.reset(total)
        bar.update(done - bar.n)

    return follow


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
