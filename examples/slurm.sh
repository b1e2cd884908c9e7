#!/bin/bash
# A run on several nodes under Slurm: edit the lines marked (1) to (4), then `sbatch slurm.sh`.
# Submitted again, it goes on with what is not finished.
#SBATCH --job-name=dal-jax
# (1) One process a node, with all of its GPUs. Without GPUs drop that line.
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
# (2) As your cluster wants it; --account, --mem and --constraint go here, too.
#SBATCH --partition=gpu
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

# From here on the first failure ends the job.
set -e
# (3) What makes `dal-jax` available: modules, an environment.
source env/bin/activate
# (4) What is to be run.
command=(dal-jax test --spec run.toml --out run)

# By itself JAX gives each process one GPU; here each has an equal share of its node's.
gpus_per_process=$((${SLURM_GPUS_ON_NODE:-0} / ${SLURM_NTASKS_PER_NODE:-1}))
export gpus_per_process
process='
if [ "$gpus_per_process" -gt 1 ]; then
  first=$((SLURM_LOCALID * gpus_per_process))
  export JAX_LOCAL_DEVICE_IDS=$(seq -s , $first $((first + gpus_per_process - 1)))
fi
exec "$@"'

# Shortly before the time is up the job goes back into the queue, at most 50 times.
back_into_queue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
    scontrol requeue "$SLURM_JOB_ID" || true
  fi
}
trap back_into_queue USR1

srun --ntasks="$SLURM_NTASKS" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 \
  bash -c "$process" bash "${command[@]}" &
step=$!
status=0; wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do  # the signal ended the wait, not the step
  status=0; wait "$step" || status=$?
done
exit "$status"
