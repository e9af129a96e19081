#!/usr/bin/env bash
# ResNet-152 on ImageNet on 8 nodes of 8 GPUs. From the top of the checkout:
#   sbatch slurm/resnet152_64gpu.sh
#   sbatch --nodes=4 slurm/resnet152_64gpu.sh                 the same run, half the GPUs
#   sbatch slurm/resnet152_64gpu.sh --data.root=/scratch/imagenet --run.name=other
# Five minutes before the time limit the job saves and requeues itself, to resume later.
# docs/slurm.md has the rest.
#SBATCH --job-name=resnet152_64gpu
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=8
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
exec python -m launch.slurm train --config configs/resnet152_64gpu.yaml "$@"
