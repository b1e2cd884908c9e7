#!/bin/bash
# A run on several nodes under OpenPBS or PBS Professional, started by the mpirun of Open MPI, MPICH
# or Intel MPI: edit the lines marked (1) to (4), then `qsub pbs.sh`.
# Submitted again, it goes on with what is not finished.
#PBS -N dal-jax
# (1) Two processes a node, each with half of its GPUs. Without GPUs drop `:ngpus=4`, and set
# gpus_per_process to 0.
#PBS -l select=4:ncpus=16:mpiprocs=2:ngpus=4
#PBS -l place=scatter
# (2) As your cluster wants it; -A for the account goes here, too.
#PBS -q gpu
#PBS -l walltime=12:00:00
#PBS -j oe
#PBS -r y

# From here on the first failure ends the job.
set -e
# (1) again
processes_per_node=2 gpus_per_process=2
# (3) What makes `dal-jax` and mpirun available: modules, an environment.
module load openmpi
source env/bin/activate
cd "$PBS_O_WORKDIR"
# (4) What is to be run.
command=(dal-jax test --spec run.toml --out run)

command[0]=$(command -v "${command[0]}")  # the other nodes have not run the lines above
num_processes=$(wc -l < "$PBS_NODEFILE")  # PBS lists a node once for each of its processes

# Process 0 is on the first node; the port follows from the number of the job.
number=${PBS_JOBID%%[!0-9]*}
coordinator="$(head -n 1 "$PBS_NODEFILE"):$((61440 + 10#$number % 4096))"

# Each process takes its number from the MPI that started it.
process='
cd "$1"
export DAL_JAX_COORDINATOR="$2"
export DAL_JAX_NUM_PROCESSES="$3"
export DAL_JAX_PROCESS_ID=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-$PMI_RANK}}
local_id=${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-$((DAL_JAX_PROCESS_ID % $4))}}
if [ "$5" -gt 0 ]; then
  first=$((local_id * $5))
  export JAX_LOCAL_DEVICE_IDS=$(seq -s , $first $((first + $5 - 1)))
fi
shift 5
exec "$@"'

# Each process has several threads: none is to be bound to a single core.
export OMPI_MCA_hwloc_base_binding_policy=none
export PRTE_MCA_hwloc_default_binding_policy=none I_MPI_PIN=off
exec mpirun -n "$num_processes" bash -c "$process" bash \
  "$PWD" "$coordinator" "$num_processes" "$processes_per_node" "$gpus_per_process" "${command[@]}"
