# Sourced by the scripts of this folder: makes .venv/ at the repository's root once, with the versions of
# launch/constraints.txt, and activates it. Nothing is done when the environment is already as wanted.
#   PYTHON=...                    the interpreter to build it with (3.11 to 3.13; 3.11 is the tested one)
#   FMRI_SCALE_TORCH_INDEX=URL    index to take torch from, e.g. a CPU-only or a CUDA build's index

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "no Python 3.11, 3.12 or 3.13 found; install one or name it: PYTHON=/path/to/python3 bash launch/..." >&2
    return 1
}

wanted() { cat "$root/launch/constraints.txt" "$root/pyproject.toml" "$root/launch/env.sh" | sha256sum | cut -d' ' -f1; }

make_env() {
    local python torch_index=()
    if [ -f "$venv/.complete" ] && [ "$(cat "$venv/.complete")" = "$(wanted) $root" ]; then
        return
    fi
    python="$(find_python)" || return 1
    echo "making the environment in .venv (once; a few minutes)"
    rm -f "$venv/.complete"
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null || "$python" -m venv --clear "$venv" || return 1
    [ -n "${FMRI_SCALE_TORCH_INDEX:-}" ] && torch_index=(--index-url "$FMRI_SCALE_TORCH_INDEX")
    # torch first: what follows must find this one, and DeepSpeed's own build imports it
    step "torch" "${torch_index[@]}" -c "$root/launch/constraints.txt" torch &&
        step "build tools" -c "$root/launch/constraints.txt" setuptools wheel ninja py-cpuinfo psutil packaging &&
        step "DeepSpeed and the other libraries" -c "$root/launch/constraints.txt" --no-build-isolation -e "$root[train,dev]" ||
        return 1
    echo "$(wanted) $root" >"$venv/.complete"
}

step() {
    echo "  installing $1"
    shift
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 2>"$venv/pip.log" || {
        cat "$venv/pip.log" >&2
        echo "the installation stopped; mend the cause above and start again, it goes on where it stopped" >&2
        return 1
    }
}

make_env || exit 1
# shellcheck disable=SC1091
source "$venv/bin/activate"
