#!/usr/bin/env bash
#SBATCH --job-name=prefopt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=SIGUSR1@120
# One task a GPU; tasks and nodes are trainer.devices and trainer.num_nodes. From the project's folder, with the
# environment active:
#   sbatch scripts/cluster/slurm.sh fit --run_dir /shared/runs/NAME --ckpt_path last -c ...
# 120 s before its time is up the job saves its state and puts itself back into the queue: a step and a checkpoint
# must fit into them. With `--ckpt_path last` it then goes on from there, as it does after a preemption.
set -euo pipefail
exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m pl_prefopt "$@"
