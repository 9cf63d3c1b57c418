#!/usr/bin/env bash
# Make a corpus on many nodes under Slurm, from the repository's root:
#
#   sbatch --nodes 4 --cpus-per-task 32 --time 12:00:00 launch/build_slurm.sh \
#       derivatives/fmriprep --out /shared/corpus --dataset hcp
#
# Everything after the script is given to `fmri-shards build` (or, with FMRI_SHARDS_COMMAND=append, to append). Inputs,
# corpus and repository must lie where all nodes see them. One task a node runs a Dask worker process for each core; the
# first node runs the scheduler and the build too. A job that ends before the corpus is whole is simply submitted again:
# only what is missing is made. Its bytes are those that any other number of nodes would make.
#
#   WORKERS=N              Dask workers a node; default: --cpus-per-task
#   FMRI_SHARDS_COMMAND    build (default) or append
#
# Without this script, from a login node that may start long processes, dask-jobqueue asks for jobs itself, as
# ~/.config/dask/jobqueue.yaml says, for example:
#
#   jobqueue: {slurm: {queue: normal, cores: 1, processes: 1, memory: 2GB, walltime: "12:00:00"}}
#
#   fmri-shards build derivatives/fmriprep --out /shared/corpus --scheduler slurm --workers 128
#
#SBATCH --job-name=fmri_shards
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --output=%x-%j.out
set -euo pipefail

# Slurm runs a copy of this file from its spool: the repository is where sbatch was called
root="$SLURM_SUBMIT_DIR"
[ -f "$root/launch/env.sh" ] || {
    echo "submit from the repository's root: $root has no launch/env.sh" >&2
    exit 2
}
source "$root/launch/env.sh"

scheduler="$root/fmri_shards-$SLURM_JOB_ID.json" # where the nodes find the scheduler
export DASK_LOGGING__DISTRIBUTED=error
dask scheduler --scheduler-file "$scheduler" --port 0 --no-dashboard &
scheduler_pid=$!
srun --kill-on-bad-exit=0 dask worker --scheduler-file "$scheduler" --nworkers "${WORKERS:-$SLURM_CPUS_PER_TASK}" \
    --nthreads 1 --no-dashboard --death-timeout 300 &
workers_pid=$!

stop() {
    for pid in "$workers_pid" "$scheduler_pid"; do # workers take leave of their scheduler
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -f "$scheduler"
}
trap stop EXIT

until [ -s "$scheduler" ]; do
    kill -0 "$scheduler_pid" || exit 2
    sleep 0.2
done

# in the background, so that a signal from Slurm is passed on at once and only whole shards are left
fmri-shards "${FMRI_SHARDS_COMMAND:-build}" "$@" --scheduler "$scheduler" &
build_pid=$!
trap 'kill -TERM "$build_pid" 2>/dev/null || true' TERM INT
code=0
wait "$build_pid" || code=$?
while kill -0 "$build_pid" 2>/dev/null; do # a signal ended the first wait, not the build
    code=0
    wait "$build_pid" || code=$?
done
exit "$code"
