#!/bin/bash
#SBATCH --job-name=harness
#SBATCH --time=04:00:00
#SBATCH --nodes=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --ntasks-per-node=1
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# Written by `harness submit`; the rest is the script that it was made from.
set -- grid.yaml

cd "$SLURM_SUBMIT_DIR" || exit 2  # sbatch runs a copy of this file that lies elsewhere

# ---- modules, virtual environment or container: yours to edit -------------------------------------------------------
# module load cuda
# source .venv/bin/activate
HARNESS=(harness)  # or: HARNESS=(apptainer exec --nv harness.sif harness)
# ---------------------------------------------------------------------------------------------------------------------

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not take it from the job by itself
id=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
out=${OUT:-runs}
log=${LOGS:-slurm-logs}/$id-start${SLURM_RESTART_COUNT:-0}-%N.log
shard=()
if [ -n "${SHARDS:-}" ]; then
  shard=(--shard "$((${SHARD_OFFSET:-0} + SLURM_ARRAY_TASK_ID))/$SHARDS")
elif [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  if [ $((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN + 1)) != "$SLURM_ARRAY_TASK_COUNT" ]; then
    echo "error: an array with gaps does not tell how many shards there are; add --export=ALL,SHARDS=COUNT" >&2
    exit 2
  fi
  shard=(--shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT")
fi

mkdir -p "$(dirname "$log")"
echo "$(date -Is) job $id, start ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST: $log"
if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then  # each node looks for this file: on a disk of its own it is not
  export HARNESS_SEEN=$out/.seen-$id
  mkdir -p "$out" && touch "$HARNESS_SEEN"
fi
# One supervisor a node. Before the time limit and before a preemption SLURM sends it USR1 or TERM: it has checkpoints
# written and exits with 130.
srun --mpi=none --output="$log" --open-mode=append "${HARNESS[@]}" run --grid "$@" --out "$out" "${shard[@]}"
code=$?
echo "$(date -Is) job $id ended with $code"
rm -f "${HARNESS_SEEN:-}"

state=$(squeue --noheader --jobs="$id" --format=%T)  # not $SLURM_JOB_ID, which for one element names the whole array
case $code in
  130 | 138 | 143) # told to stop (138, 143: before it was ready for signals); not to be requeued if by scancel
    if [ "$state" = RUNNING ]; then
      echo "requeued: it goes on from its checkpoints"
      scontrol requeue "$id" && sleep 60  # in which SLURM ends this script
    fi
    ;;
  2) cat "${log/\%N/$SLURMD_NODENAME}" ;; # what is wrong with the input
esac
if [ -z "${SLURM_ARRAY_JOB_ID:-}" ]; then
  "${HARNESS[@]}" leaderboard "$1" --out "$out" | tee "leaderboard-$id.txt"
fi
exit "$code"
