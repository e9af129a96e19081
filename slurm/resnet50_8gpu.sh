#!/usr/bin/env bash
# ResNet-50 on ImageNet on one node of 8 GPUs. From the top of the checkout:
#   sbatch slurm/resnet50_8gpu.sh [--data.root=DIR and other settings]
# Five minutes before the time limit the job saves and requeues itself, to resume later.
#SBATCH --job-name=resnet50_8gpu
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"
exec python -m launch.slurm train --config configs/resnet50.yaml "$@"
