#!/usr/bin/env bash
# Pretrain on one machine.
#
#   bash launch/local.sh configs/run/quickstart.yaml data.corpus=corpus run_dir=runs/first
#   RANKS=4 bash launch/local.sh FILE... key=value...
#
#   RANKS=N          processes; default: one for each GPU, 1 without GPUs
#   LAUNCHER=...     deepspeed (default) or torchrun
#   GRACE=120        seconds to save and stop after SIGTERM, SIGUSR1 or Ctrl-C
#   RESTARTS=0       starts after a crash, without a new checkpoint between
#
# Start the same command again to continue. Exit codes: 0 done; 75 stopped by a signal, start again; 130 Ctrl-C;
# 2 something to mend, said in one line; else failed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

ranks="${RANKS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"

# one resolved configuration for all ranks, a port that no other run uses, the variables every rank wants;
# sets: job run_dir config env_file port
plan="$(python -m fmri_scale.training.supervise plan --ranks-per-node "$ranks" "$@")"
eval "$plan"

case "${LAUNCHER:-deepspeed}" in
deepspeed)
    command=(deepspeed --num_gpus "$ranks" --master_port "$port" --quiet --no_local_rank "$root/fmri_scale/train.py" "$config")
    ;;
torchrun)
    command=(torchrun --nproc-per-node "$ranks" --master-port "$port" "$root/fmri_scale/train.py" "$config")
    ;;
*)
    echo "LAUNCHER=$LAUNCHER: expected deepspeed or torchrun" >&2
    exit 2
    ;;
esac

# The supervisor owns every process that comes of the launcher: none is left behind, and no exit code is believed
# before status.json says so (DeepSpeed's launcher returns 0 when it is killed).
exec python -m fmri_scale.training.supervise run --run-dir "$run_dir" --env-file "$env_file" \
    --grace "${GRACE:-120}" --restarts "${RESTARTS:-0}" -- "${command[@]}"
