#!/usr/bin/env bash
#SBATCH --job-name=prefopt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# One task a GPU; tasks and nodes are trainer.devices and trainer.num_nodes. From the project's folder, with the
# environment active:
#   sbatch scripts/cluster/slurm.sh fit --run_dir /shared/runs/NAME --ckpt_path last -c ...
# With `--ckpt_path last` a job that was put back into the queue goes on from its last checkpoint.
set -euo pipefail
exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m pl_prefopt "$@"
