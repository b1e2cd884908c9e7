"""`dal-jax experiment`: experiments of the paper, from the repository's folder `experiments`."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dal_jax._config import fit_fields, nearest, read_toml
from dal_jax._errors import InputError
from dal_jax._files import dumps
from dal_jax.cli import _options as options
from dal_jax.cli._repository import import_beside
from dal_jax.runs import join_hosts, leave_hosts

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the experiment, or list for all names.")
]
Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        help="Preset: quick (minutes on 2 cores), paper (all settings) or, for some experiments, "
        "standard (in between).",
    ),
]
Spec = Annotated[
    Path | None,
    typer.Option(
        "--spec", metavar="FILE.toml", help="File of changed settings; it may name a preset."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Folder for tables, figures and runs; by default results/NAME."
    ),
]
Models = Annotated[
    Path,
    typer.Option(
        "--models", metavar="DIR", help="Folder of the trained models of all experiments."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of all random numbers; by default that of the preset."),
]


def experiment(
    name: Name,
    preset: Preset = "",
    spec: Spec = None,
    out: Out = None,
    models: Models = Path("results/models"),
    devices: options.Devices = None,
    batch_size: options.BatchSize = None,
    cache: options.Cache = None,
    coordinator: options.Coordinator = None,
    num_processes: options.NumProcesses = None,
    process_id: options.ProcessId = None,
    seed: Seed = None,
    json: options.Json = False,
) -> None:
    """Runs one of the paper's experiments: tables as CSV and npz, figures as PDF and PNG.

    Finished tests are kept: after an interruption, the same command resumes. Processes that are
    started together share the tests.
    """
    experiments = import_beside("experiments", "experiment")
    if name == "list":
        for known in experiments.NAMES:
            typer.echo(f"{known:<18}{experiments.find(known).title}")
        return
    found = experiments.find(name)
    settings = _settings(found, preset, spec, seed)
    options.keep_compilations(cache)
    module = importlib.import_module("experiments._experiment")
    directory = Path("results") / name if out is None else out
    host = join_hosts(coordinator, num_processes, process_id)
    context = module.Context(directory, models, host, devices, batch_size)
    summary = module.run_experiment(name, found, settings, context)
    if host.index == 0:
        typer.echo(dumps({"experiment": name, "out": directory}) if json else summary)
        print(f"written to {directory}", file=sys.stderr)
    leave_hosts()


def _settings(found: Any, preset: str, spec: Path | None, seed: int | None) -> Any:
    entries = {} if spec is None else read_toml(spec, "--spec")
    chosen = preset or entries.pop("preset", "quick")
    entries.pop("preset", None)
    known = list(found.presets)
    if chosen not in known:
        raise InputError(f"preset: unknown {chosen!r}, {nearest(str(chosen), known)}")
    settings = found.presets[chosen]
    changes = fit_fields(type(settings), entries, f"--spec {str(spec)!r}")
    if seed is not None:
        changes["seed"] = seed
    settings = replace(settings, **changes)
    if settings.seed < 0:
        raise InputError(f"--seed: got {settings.seed}, expected 0 or more")
    return settings
