#!/bin/bash
# A grid whose runs span nodes: each trains on all of them (`processes` in the grid: devices of a node x nodes).
#
#   sbatch --nodes=2 slurm/multinode.sh grid.yaml
#
# For runs that fit a node use sweep.sh. What follows the grid file goes to `harness run`.

#SBATCH --job-name=harness-multinode
##SBATCH --partition=gpu
##SBATCH --account=project
#SBATCH --time=04:00:00
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=256G
# (Where there are no GPUs remove --gpus-per-node. The next lines can stay as they are.)
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

cd "$SLURM_SUBMIT_DIR" || exit 2  # sbatch runs a copy of this file that lies elsewhere

# ---- modules, virtual environment: yours to edit; the same on all nodes ---------------------------------------------
# module load cuda
# source .venv/bin/activate
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# ---------------------------------------------------------------------------------------------------------------------

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not take it from the job by itself
out=${OUT:-runs}
log=${LOGS:-slurm-logs}/$SLURM_JOB_ID-start${SLURM_RESTART_COUNT:-0}.log
mkdir -p "$(dirname "$log")"
echo "$(date -Is) job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST: $log"

# One supervisor, on the first node; for each run it starts torch's launcher on every node through srun, with the node's
# rank, the first node's address and a port that the job's number gives.
trap 'kill -USR1 "$pid"' USR1
harness run --grid "$@" --out "$out" --nodes "$SLURM_JOB_NUM_NODES" >>"$log" 2>&1 &
pid=$!
while wait "$pid"; code=$?; kill -0 "$pid" 2>/dev/null; do :; done
echo "$(date -Is) job $SLURM_JOB_ID ended with $code"

state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
case $code in
  130 | 138 | 143)
    if [ "$state" = RUNNING ]; then
      echo "requeued: it goes on from its checkpoints"
      scontrol requeue "$SLURM_JOB_ID" && sleep 60  # in which SLURM ends this script
    fi
    ;;
  2) cat "$log" ;; # what is wrong with the input
esac
harness leaderboard "$1" --out "$out" | tee "leaderboard-$SLURM_JOB_ID.txt"
exit "$code"
