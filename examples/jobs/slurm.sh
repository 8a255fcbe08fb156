#!/bin/bash
# Four machines with eight processes each: sbatch slurm.sh
#SBATCH --job-name=train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append

# 120 s before the time is over, srun's processes are sent SIGTERM: all ranks finish the same step,
# and save it. The file that is put into the queue again goes on from there.
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

srun --kill-on-bad-exit=1 python -m fnloop fit recipe.py --resume --folder "$SCRATCH/runs/a"
code=$?
if [ "$code" -ge 128 ]; then  # ended by a signal; an error of the program is left alone
    [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
