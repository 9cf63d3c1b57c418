#!/usr/bin/env bash
# Pretrain with torchrun: on one machine, or on several without ssh (Kubernetes, a cloud's own starter). Run the same
# command on every machine, each with its NODE_RANK:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 JOB=first bash launch/torchrun.sh configs/run/base.yaml run_dir=/shared/run
#   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 JOB=first bash launch/torchrun.sh configs/run/base.yaml run_dir=/shared/run
#
#   NODES=1 NODE_RANK=0   number of machines, and which one this is
#   MASTER_ADDR=HOST      the machine with NODE_RANK 0, as the others reach it
#   JOB=NAME              the same on all machines, new for every start: the port is made of it
#   MASTER_PORT=N         the port itself; default: made of JOB
#   RANKS=N               processes on this machine; default: one for each GPU, 1 without GPUs
#   GRACE, PREFLIGHT      as in launch/multinode.sh
#
# Restarting is the starter's business: exit code 75 means "stopped by a signal, start again", others as in
# launch/local.sh. What ranks other than each machine's first print is in RUN/logs/output/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

nodes="${NODES:-1}" node_rank="${NODE_RANK:-0}"
ranks="${RANKS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
job_option=()
if [ "$nodes" -gt 1 ]; then
    : "${MASTER_ADDR:?name the machine with NODE_RANK=0}"
    : "${JOB:?give this start a name, the same on all machines (the port is made of it)}"
    job_option=(--job "$JOB.$node_rank")
fi

# every machine resolves the same configuration; sets: job run_dir config env_file port
plan="$(python -m fmri_scale.training.supervise plan --ranks-per-node "$ranks" "${job_option[@]}" "$@")"
eval "$plan"
if [ "$nodes" -gt 1 ]; then
    here=()
    [ "$node_rank" != 0 ] || here=(--here)
    port="${MASTER_PORT:-$(python -m fmri_scale.training.supervise port "$JOB" "${here[@]}")}"
fi

torch=(torchrun --nnodes "$nodes" --node-rank "$node_rank" --nproc-per-node "$ranks"
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-$port}")
supervise=(python -m fmri_scale.training.supervise run --env-file "$env_file")

if [ "${PREFLIGHT:-1}" = 1 ]; then
    "${supervise[@]}" --grace 10 -- "${torch[@]}" -m fmri_scale doctor "$config"
fi

record=()
[ "$node_rank" = 0 ] || record=(--secondary)
exec "${supervise[@]}" --run-dir "$run_dir" --grace "${GRACE:-120}" "${record[@]}" -- "${torch[@]}" \
    --log-dir "$run_dir/logs/output" --redirects 3 --tee 3 --local-ranks-filter 0 "$root/fmri_scale/train.py" "$config"
