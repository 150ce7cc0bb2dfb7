#!/usr/bin/env bash
# Starts a command in one process a GPU, on this machine or on several. The same line goes to each machine,
# with another NODE:
#   NODES=2 NODE=0 HEAD=10.0.0.1 scripts/cluster/torchrun.sh fit --run_dir /shared/runs/NAME -c ...
# NODES: machines; NODE: this one's number, from 0; HEAD: number 0's address; GPUS: of each machine.
set -euo pipefail
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${GPUS:-8}" \
  --master-addr "${HEAD:-127.0.0.1}" --master-port "${PORT:-29500}" \
  -m pl_prefopt "$@"
