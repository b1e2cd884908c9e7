"""`dal-jax plan`: the smallest difference that a model finds, by simulation."""

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from dal_jax._files import dumps
from dal_jax.cli import _options as options
from dal_jax.cli._output import need_figures
from dal_jax.inspection import Plan, PlanOptions, PlanRow, plan_inspection, stage_progress

Model = Annotated[
    Path,
    typer.Option(
        "--model",
        metavar="DIR",
        help="Model trained with --data, with its calibration if there is one.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for plan.csv, power.csv, plan.png and plan.json, and for the tests.",
    ),
]


@options.with_fields(PlanOptions, "plan_options", {})
def plan(
    model: Model,
    out: Out,
    plan_options: PlanOptions = PlanOptions(),  # noqa: B008 (a constant)
    localizer: options.Detector = None,
    devices: options.Devices = None,
    cache: options.Cache = None,
    json: options.Json = False,
) -> None:
    """Simulates the smallest mean difference that a model finds with a given power.

    Raises a square in images drawn from the model's noise, and applies the model's detector and
    test. Every combination of sizes, noise factors, references and randomizations is simulated.
    After an interruption, the same command resumes.
    """
    need_figures(out)
    options.keep_compilations(cache)
    with tqdm(unit="test", file=sys.stderr, disable=None) as bar:
        found = plan_inspection(
            model,
            out,
            plan_options,
            localizer=localizer,
            devices=devices,
            progress=stage_progress(bar),
        )
    typer.echo(dumps(_fields(found, out)) if json else _summary(found))


def _fields(found: Plan, out: Path) -> dict[str, Any]:
    return {
        "out": out,
        "decide_by": found.decide_by,
        "rows": [row._asdict() for row in found.rows],
        "sentences": found.sentences,
    }


def _summary(found: Plan) -> str:
    chosen = found.options
    level = f"{chosen.alpha:g}" + (f" / {chosen.views}" if chosen.views != 1 else "")
    lines = [
        f"Smallest mean difference found with probability {chosen.power:g} at {level} by the "
        f"{found.decide_by} p-value, in {found.rows[0].units}:",
        "",
        f"{'size':>7}{'noise':>7}{'K':>5}{'gamma':>7}{'difference':>14}{'95% interval':>18}"
        f"{'fixed region':>14}{'tests':>7}{'not OK':>8}{'undecided':>11}",
    ]
    return "\n".join([*lines, *map(_line, found.rows), "", *found.sentences])


def _line(row: PlanRow) -> str:
    difference = f"{row.difference:.3g}" if row.is_found else f"none to {row.largest:.3g}"
    high = f"{row.high:.3g}]" if math.isfinite(row.high) else "...)"
    return (
        f"{f'{row.size}x{row.size}':>7}{row.noise_factor:>7g}{row.references:>5}"
        f"{row.randomization:>7g}{difference:>14}{f'[{row.low:.3g}, {high}':>18}"
        f"{row.fixed_region:>14.3g}{row.tests:>7}{row.not_ok:>8}{row.undecided:>11}"
    )
