#!/usr/bin/env bash
# Trains over several real hosts on this one machine: ssh, torchrun, Slurm; pulls plugs. Needs root and Debian's
# openssh-server, pdsh, iproute2, slurm-wlm and munge; says so and ends with 0 where they are missing.
#   bash tests/multinode/run.sh [ARGUMENTS OF PYTEST]        e.g. bash tests/multinode/run.sh -k slurm
#   FMRI_SCALE_KILLS=20 bash tests/multinode/run.sh -k lost_machines    twenty power cuts instead of two
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../launch/env.sh"
cd "$root"

reason="$(python -c 'from tests.multinode.cluster import missing; print(missing())')"
if [ -n "$reason" ]; then
    echo "skipped: $reason"
    exit 0
fi
# a folder of its own: pytest forgets old ones of its common folder, which a run may still use
FMRI_SCALE_MULTINODE=1 OMP_NUM_THREADS=1 exec python -m pytest -v --durations=0 -p no:cacheprovider \
    --basetemp "${BASETEMP:-$(mktemp -d)/multinode}" tests/multinode "$@"
