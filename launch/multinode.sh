#!/usr/bin/env bash
# Pretrain on several machines over ssh: `deepspeed --hostfile`.
#
#   HOSTFILE=hosts.txt bash launch/multinode.sh configs/run/base.yaml data.corpus=/shared/corpus run_dir=/shared/run
#
# hosts.txt has a line `name slots=RANKS` for each machine. Start it on the first of them. All machines need the
# same paths (this folder, the environment in .venv, the run folder: a shared file system), ssh to each other
# without a password, and pdsh on the first (apt-get install pdsh).
#
#   HOSTFILE=FILE    the machines
#   GRACE=120        seconds to save and stop after SIGTERM, SIGUSR1 or Ctrl-C
#   RESTARTS=0       starts after a crash, without a new checkpoint between
#   PREFLIGHT=1      0 skips `fmri-scale doctor` on all ranks before the training
#
# Everything that the ranks print is in RUN/logs/output/, a file a rank; rank 0's is shown here.
# Exit codes: 0 done; 75 stopped by a signal, start again; 130 Ctrl-C; 2 something to mend; else failed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

: "${HOSTFILE:?HOSTFILE=FILE names the machines, a line \`name slots=RANKS\` for each}"
command -v pdsh >/dev/null || {
    echo "pdsh is not installed: apt-get install pdsh (or use launch/torchrun.sh, which needs no ssh)" >&2
    exit 2
}

# One resolved configuration for all ranks (overrides would not survive pdsh's quoting), a port that no other run
# uses, and the environment of the ranks: DeepSpeed itself passes on little more than PYTHON* and NCCL*. Its file
# takes NAME=VALUE lines only, an empty line or a comment crashes it, so it is written here and checked.
# Sets: job run_dir config env_file port
ranks="$(python -c 'import sys; from fmri_scale.training.supervise import hosts
print(max(hosts.read_hostfile(sys.argv[1]).values()))' "$HOSTFILE")"
plan="$(python -m fmri_scale.training.supervise plan --ranks-per-node "$ranks" "$@")"
eval "$plan"

# The supervisor reaches the ranks of all machines at once (DeepSpeed's launcher stops them one after the other,
# and those on other machines not at all), ends the run when a machine dies, and leaves no process anywhere.
supervise=(python -m fmri_scale.training.supervise run --env-file "$env_file" --hostfile "$HOSTFILE")
launcher=(deepspeed --hostfile "$HOSTFILE" --master_port "$port" --quiet --no_local_rank)

if [ "${PREFLIGHT:-1}" = 1 ]; then
    "${supervise[@]}" --grace 10 -- "${launcher[@]}" --module fmri_scale doctor "$config"
fi

exec "${supervise[@]}" --run-dir "$run_dir" --grace "${GRACE:-120}" --restarts "${RESTARTS:-0}" \
    --follow 'logs/output/*_rank0.log' -- \
    "${launcher[@]}" --enable_each_rank_log "$run_dir/logs/output" "$root/fmri_scale/train.py" "$config"
