"""`dal-jax script`: a job script for a cluster, from the command line of a local run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dal_jax.cli import _options as options
from dal_jax.cli._output import dumps
from dal_jax.images import write_text
from dal_jax.runs import job_script

Scheduler = Annotated[
    Literal["slurm", "pbs"], typer.Argument(metavar="slurm|pbs", help="Whose script is wanted.")
]
Command = Annotated[
    list[str],
    typer.Argument(
        metavar="-- COMMAND...", help="What follows dal-jax: -- test --spec FILE --out DIR."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write the script there instead of printing it."),
]
Gpus = Annotated[
    int | None,
    typer.Option(help="GPUs of a node, a multiple of its processes; default: CPUs alone."),
]
Queue = Annotated[
    str | None, typer.Option("--partition", "--queue", help="Partition (Slurm) or queue (PBS).")
]
Setup = Annotated[
    list[str],
    typer.Option(
        "--setup", metavar="LINE", help="Shell to run first, as it is; may be repeated, in order."
    ),
]


def script(
    scheduler: Scheduler,
    command: Command,
    out: Out = None,
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    processes_per_node: Annotated[int, typer.Option(help="Processes on each machine.")] = 1,
    gpus_per_node: Gpus = None,
    cpus_per_process: Annotated[int, typer.Option(help="Cores of a process.")] = 1,
    time: Annotated[str, typer.Option(help="Limit: HH:MM:SS or D-HH:MM:SS.")] = "24:00:00",
    memory: Annotated[str | None, typer.Option(help="Memory of a machine, as in 64G.")] = None,
    partition: Queue = None,
    account: Annotated[str | None, typer.Option(help="Account to be charged.")] = None,
    name: Annotated[str, typer.Option(help="Name of the job.")] = "dal-jax",
    setup: Setup = [],  # noqa: B006 (typer copies it)
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Writes a script for sbatch or qsub that runs a dal-jax command (--seed has no effect)."""
    text = job_script(
        scheduler,
        ["dal-jax", *command],
        nodes=nodes,
        processes_per_node=processes_per_node,
        gpus_per_node=gpus_per_node,
        cpus_per_process=cpus_per_process,
        time=time,
        memory=memory,
        queue=partition,
        account=account,
        name=name,
        setup=setup,
    )
    if out is not None:
        write_text(out, text)
    if json:
        typer.echo(dumps({"scheduler": scheduler, "out": out, "script": text}))
    elif out is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(f"{'sbatch' if scheduler == 'slurm' else 'qsub'} {out}")
