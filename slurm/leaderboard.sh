#!/bin/bash
# The leaderboard of a sweep, when all of an array has ended, however it ended:
#
#   sbatch --dependency=afterany:JOB slurm/leaderboard.sh grid.yaml        (or a results folder, runs/NAME)

#SBATCH --job-name=harness-leaderboard
##SBATCH --partition=cpu
##SBATCH --account=project
#SBATCH --time=00:10:00
#SBATCH --mem=4G
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --output=leaderboard-%j.txt

cd "$SLURM_SUBMIT_DIR" || exit 2

# ---- modules, virtual environment or container: as in sweep.sh ------------------------------------------------------
HARNESS=(harness)
# ---------------------------------------------------------------------------------------------------------------------

exec "${HARNESS[@]}" leaderboard "$@"
