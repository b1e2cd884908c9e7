"""The lines of a job script, for each scheduler."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from dal_jax.runs._hosts import COORDINATOR, NUM_PROCESSES, PROCESS_ID

# A task longer than the time limit never finishes: after so many rounds somebody has to look.
MAX_REQUEUES = 50
WARNING_SECONDS = 120  # before the time limit, to go back into the queue in good order


class Job(NamedTuple):
    """What a script asks for, checked."""

    command: Sequence[str]
    nodes: int
    processes_per_node: int
    gpus_per_node: int  # 0: none
    cpus_per_process: int
    time: str  # HH:MM:SS
    memory: str | None  # of a node, a number and K, M, G or T
    queue: str | None
    account: str | None
    name: str
    setup: Sequence[str]

    @property
    def processes(self) -> int:
        """How many there are on all nodes."""
        return self.nodes * self.processes_per_node

    @property
    def gpus_per_process(self) -> int:
        """GPUs of which a process has the only use."""
        return self.gpus_per_node // self.processes_per_node


def _words(command: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in command)


def _setup(job: Job) -> list[str]:
    return ["", "# From here on the first failure ends the job.", "set -e", *job.setup]


def slurm_lines(job: Job) -> list[str]:
    """The script for sbatch."""
    facts = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.processes_per_node,
        "cpus-per-task": job.cpus_per_process,
        "gpus-per-node": job.gpus_per_node or None,
        "mem": job.memory,
        "time": job.time,
        "partition": job.queue,
        "account": job.account,
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": f"B:USR1@{WARNING_SECONDS}",
    }
    step = (
        f"srun --ntasks={job.processes} --cpus-per-task={job.cpus_per_process} --kill-on-bad-exit=1"
    )
    own_gpus: list[str] = []
    if job.processes > 1 and job.gpus_per_process > 1:
        own_gpus = [
            "",
            f"# By itself JAX gives each process one GPU; here it has {job.gpus_per_process}.",
            "own_gpus='",
            *_device_ids("SLURM_LOCALID", job.gpus_per_process),
            'exec "$@"\'',
        ]
        step += ' bash -c "$own_gpus" bash'
    return [
        "#!/bin/bash",
        "# Submit with sbatch. Submitted again, it goes on with what is not finished.",
        *(f"#SBATCH --{key}={value}" for key, value in facts.items() if value is not None),
        "#SBATCH --requeue",
        *_setup(job),
        *own_gpus,
        "",
        f"# Shortly before the time is up, back into the queue, at most {MAX_REQUEUES} times.",
        "back_into_queue() {",
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_REQUEUES} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID" || true',
        "  fi",
        "}",
        "trap back_into_queue USR1",
        "",
        f"command=({_words(job.command)})",
        f'{step} "${{command[@]}}" &',
        "step=$!",
        'status=0; wait "$step" || status=$?',
        'while kill -0 "$step" 2>/dev/null; do  # the signal ended the wait, not the step',
        '  status=0; wait "$step" || status=$?',
        "done",
        'exit "$status"',
    ]


def pbs_lines(job: Job) -> list[str]:
    """The script for qsub of OpenPBS and PBS Professional."""
    chunk = {
        "select": job.nodes,
        "ncpus": job.processes_per_node * job.cpus_per_process,
        "mpiprocs": job.processes_per_node,
        "ngpus": job.gpus_per_node or None,
        "mem": f"{job.memory.lower()}b" if job.memory else None,
    }
    options = [
        f"-N {job.name}",
        "-l " + ":".join(f"{key}={value}" for key, value in chunk.items() if value is not None),
        "-l place=scatter",
        f"-l walltime={job.time}",
        f"-q {job.queue}" if job.queue else "",
        f"-A {job.account}" if job.account else "",
        "-j oe",
        "-r y",
    ]
    return [
        "#!/bin/bash",
        "# Submit with qsub. Submitted again, it goes on with what is not finished.",
        *(f"#PBS {option}" for option in options if option),
        *_setup(job),
        'cd "$PBS_O_WORKDIR"',
        "",
        f"command=({_words(job.command)})",
        *(_mpirun(job) if job.processes > 1 else ['exec "${command[@]}"']),
    ]


def _mpirun(job: Job) -> list[str]:
    """Starts the processes; what they need goes along as words, since not every MPI hands on
    variables to other nodes.
    """
    own_gpus: list[str] = []
    if job.gpus_per_process:
        own_gpus = [
            "local_id=${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-"
            f"$(({PROCESS_ID} % {job.processes_per_node}))}}}}",
            *_device_ids("local_id", job.gpus_per_process),
        ]
    return [
        'command[0]=$(command -v "${command[0]}")  # the other nodes have not run the lines above',
        "",
        "# Process 0 is on the first node; the port follows from the number of the job.",
        "number=${PBS_JOBID%%[!0-9]*}",
        'coordinator="$(head -n 1 "$PBS_NODEFILE"):$((61440 + 10#$number % 4096))"',
        "",
        "# What each process does: take its number from the MPI that started it.",
        "process='",
        'cd "$1"',
        f'export {COORDINATOR}="$2"',
        f"export {NUM_PROCESSES}={job.processes}",
        f"export {PROCESS_ID}=${{OMPI_COMM_WORLD_RANK:-${{PMIX_RANK:-$PMI_RANK}}}}",
        *own_gpus,
        "shift 2",
        'exec "$@"\'',
        "",
        "# Several threads each: no process is to be bound to a single core.",
        "export OMPI_MCA_hwloc_base_binding_policy=none",
        "export PRTE_MCA_hwloc_default_binding_policy=none I_MPI_PIN=off",
        f'exec mpirun -n {job.processes} bash -c "$process" bash \\',
        '  "$PWD" "$coordinator" "${command[@]}"',
    ]


def _device_ids(local_id: str, count: int) -> list[str]:
    if count == 1:
        return [f"export JAX_LOCAL_DEVICE_IDS=${local_id}"]
    return [
        f"first=$(({local_id} * {count}))",
        f"export JAX_LOCAL_DEVICE_IDS=$(seq -s , $first $((first + {count - 1})))",
    ]
