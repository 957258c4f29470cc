#!/bin/sh
# Two nodes that train together. Not tried: no cluster could be had. It uses Slurm's and torchrun's own conventions alone.
#
#   sbatch docs/examples/slurm.sh
#
# Submit it in a checkout on a file system that all nodes share, with its environment in .venv (make setup) and its data there
# (python -m pipeline download). On GPUs: device: cuda, and --gpus-per-node=N with --nproc-per-node=N.
#SBATCH --job-name=pipeline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@60
#SBATCH --requeue

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun .venv/bin/python -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --nproc-per-node=1 --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29500" \
  -m pipeline train
