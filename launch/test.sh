#!/usr/bin/env bash
# Lint, types, import contracts and all tests. Makes the environment first where it is missing.
#   bash launch/test.sh [ARGUMENTS OF PYTEST]        e.g. bash launch/test.sh tests/unit -k plan
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

ruff check .
ruff format --check .
mypy
lint-imports --no-cache >/dev/null || lint-imports --no-cache
# one thread a test process: the processes share the cores; a file's tests stay together, since they share runs, and
# files go out in the order of their names: tests/unit, of many short ones, last, so that all cores have work to the end
OMP_NUM_THREADS=1 python -m pytest -n "${TEST_PROCESSES:-$(nproc)}" --dist loadfile --no-loadscope-reorder "$@"
