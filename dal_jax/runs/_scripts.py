"""Job scripts that start a command once in each process of a run."""

import re
from collections.abc import Sequence
from typing import Literal

from dal_jax._errors import InputError
from dal_jax.runs._schedulers import Job, pbs_lines, slurm_lines


def job_script(
    scheduler: Literal["slurm", "pbs"],
    command: Sequence[str],
    *,
    nodes: int = 1,
    processes_per_node: int = 1,
    gpus_per_node: int | None = None,
    cpus_per_process: int = 1,
    time: str = "24:00:00",
    memory: str | None = None,
    queue: str | None = None,
    account: str | None = None,
    name: str = "dal-jax",
    setup: Sequence[str] = (),
) -> str:
    """Writes a script for sbatch or qsub that starts a command once in each process.

    The processes find one another by JAX's own detection under Slurm, and by the variables that
    `join_hosts` reads under PBS. Each has an equal share of its node's GPUs. The Slurm job goes
    back into the queue when it is preempted or its time is up; the PBS job when it is preempted.

    Args:
        scheduler: "slurm", or "pbs" for OpenPBS and PBS Professional (which need `mpirun` of Open
            MPI, MPICH or Intel MPI for more than one process).
        command: its words; quoted here.
        nodes: 1 or more.
        processes_per_node: 1 or more; must divide the GPUs, if any are asked for.
        gpus_per_node: 1 or more, or None for CPUs alone.
        cpus_per_process: cores, 1 or more.
        time: limit, HH:MM:SS or D-HH:MM:SS.
        memory: of a node, such as "64G"; None for the cluster's default.
        queue: name of the partition (Slurm) or queue (PBS); None for the default.
        account: to be charged; None for the default.
        name: of the job.
        setup: lines of shell to run before the command on the first node, as they are.

    Returns:
        The script.

    Raises:
        InputError: an argument does not fit.

    Example:
        >>> script = job_script("slurm", ["dal-jax", "test", "--spec", "run.toml"], nodes=2)
        >>> "#SBATCH --nodes=2" in script
        True

    Source: this project; options from the manuals of Slurm and OpenPBS.
    """
    if scheduler not in ("slurm", "pbs"):
        raise InputError(f"scheduler: got {scheduler!r}, expected 'slurm' or 'pbs'")
    counts = {
        "nodes": nodes,
        "processes_per_node": processes_per_node,
        "gpus_per_node": 1 if gpus_per_node is None else gpus_per_node,
        "cpus_per_process": cpus_per_process,
    }
    for what, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{what}: got {count!r}, expected a whole number of 1 or more")
    if gpus_per_node is not None and gpus_per_node % processes_per_node:
        raise InputError(
            f"gpus_per_node: got {gpus_per_node}, expected a multiple of processes_per_node "
            f"({processes_per_node})"
        )
    if not command or isinstance(command, str) or any("\0" in word for word in command):
        raise InputError(f"command: got {command!r}, expected the words of a command")
    for what, word in {"queue": queue, "account": account, "name": name}.items():
        if word is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+-]*", word):
            raise InputError(f"{what}: got {word!r}, expected letters, digits and _ . , : @ + -")
    if memory is not None and not re.fullmatch(r"[1-9][0-9]*[KMGT]", memory):
        raise InputError(f"memory: got {memory!r}, expected a number and K, M, G or T, as in 64G")
    job = Job(
        command=command,
        nodes=nodes,
        processes_per_node=processes_per_node,
        gpus_per_node=gpus_per_node or 0,
        cpus_per_process=cpus_per_process,
        time=_hours(time),
        memory=memory,
        queue=queue,
        account=account,
        name=name,
        setup=setup,
    )
    lines = slurm_lines(job) if scheduler == "slurm" else pbs_lines(job)
    return "\n".join(lines) + "\n"


def _hours(time: str) -> str:
    """A limit in the one form that both schedulers read; hours may exceed 24."""
    found = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+):([0-5][0-9]):([0-5][0-9])", time)
    if found is None or not any(int(part or 0) for part in found.groups()):
        raise InputError(f"time: got {time!r}, expected HH:MM:SS or D-HH:MM:SS, more than none")
    days, hours, minutes, seconds = found.groups()
    return f"{24 * int(days or 0) + int(hours):02d}:{minutes}:{seconds}"
