#!/usr/bin/env bash
# Prepares a data set on one node, without a GPU. From the top of the checkout:
#   sbatch slurm/prepare.sh demo --out data/demo
#SBATCH --job-name=prepare
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"
exec python -m launch.slurm prepare "$@"
