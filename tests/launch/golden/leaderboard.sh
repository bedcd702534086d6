#!/bin/bash
#SBATCH --job-name=harness-leaderboard
#SBATCH --time=00:10:00
#SBATCH --mem=4G
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --output=runs/tiles/leaderboard.txt
#SBATCH --dependency=afterany:12:13

# Written by `harness submit`; the rest is the script that it was made from.
set -- runs/tiles

cd "$SLURM_SUBMIT_DIR" || exit 2

# ---- modules, virtual environment or container: as in sweep.sh ------------------------------------------------------
HARNESS=(harness)
# ---------------------------------------------------------------------------------------------------------------------

exec "${HARNESS[@]}" leaderboard "$@"
