#!/usr/bin/env bash
# dist_test.sh CONFIG CHECKPOINT GPUS [test.py options]; NNODES, NODE_RANK, MASTER_ADDR, PORT for several nodes
set -eu
config=$1 checkpoint=$2 gpus=$3
shift 3
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" --nproc_per_node="$gpus" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
