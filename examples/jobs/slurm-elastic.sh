#!/bin/bash
# Two to four machines, of which each may be lost: sbatch slurm-elastic.sh
#SBATCH --job-name=train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --no-kill

# One agent of torchrun on each machine. If a machine is lost, the agents of the others start their
# processes again, which go on from the last checkpoint; that of a machine that is back joins them.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # torch 2.13: else all restarts fail
export OMP_NUM_THREADS=4
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --no-kill torchrun \
    --nnodes=2:4 --nproc-per-node=8 --max-restarts=20 \
    --rdzv-backend=c10d --rdzv-endpoint="$first:29400" --rdzv-id="$SLURM_JOB_ID" \
    -m fnloop fit recipe.py --resume --folder "$SCRATCH/runs/a"
