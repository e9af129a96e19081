#!/usr/bin/env bash
# Validates a checkpoint on 8 GPUs. From the top of the checkout:
#   sbatch slurm/evaluate.sh --checkpoint runs/resnet50/checkpoints/best.pt
#SBATCH --job-name=evaluate
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=01:00:00
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"
exec python -m launch.slurm evaluate "$@"
