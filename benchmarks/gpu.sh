#!/usr/bin/env bash
# What one GPU can tell in under ten minutes: the training step, every kernel, and whether the kernels are right.
#
#   benchmarks/gpu.sh OUT [PUBLISHED]
#
# OUT is a folder for the tables; PUBLISHED a clone of the published NeuroSTORM, to be timed in the same process (it
# needs monai, einops and mamba_ssm with its CUDA scan). Needs torch, triton, numpy and pytest, and no installation of
# this package. Each part has a limit of its own and runs whatever became of the one before; what failed is named at the
# end. The whole grid of shapes, with the torch baselines: python benchmarks/kernels.py, some twenty minutes.
set -uo pipefail
out=${1:?"usage: benchmarks/gpu.sh OUT [PUBLISHED]"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
published=()
[ $# -gt 1 ] && published=(--published "$(cd "$2" && pwd)")
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=()

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    echo "== $name: $*"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.log"
    local status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || failed+=("$name (exit status $status)")
}

part step 180 python benchmarks/step.py --steps 20 --out "$out" "${published[@]}"
part kernels 180 python benchmarks/kernels.py --batch 8 --out "$out"
part tests 210 python -m pytest -q -m gpu -p no:cacheprovider tests/kernels/test_gpu.py

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
