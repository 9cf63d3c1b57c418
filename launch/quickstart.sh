#!/usr/bin/env bash
# The whole way on this machine's CPU in a few minutes: NIfTI -> shards -> pretraining -> release -> features.
#   bash launch/quickstart.sh [NIFTI...]     your own 4D runs in MNI152 space; a synthetic cohort where none is named
#   OUT=folder                               where everything goes (default: quickstart/ in the repository)
#   SET="key=value ..."                      further settings of the pretraining
# Started again it does only what is missing; remove the folder to start afresh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

out="$(realpath -m "${OUT:-$root/quickstart}")"
mkdir -p "$out"
bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

splits=1,0,0 # few people of your own: all to pretraining
if [ $# -eq 0 ]; then
    splits=0.6,0.2,0.2
    say "1/5  a synthetic cohort of NIfTI runs"
    [ -f "$out/cohort/participants.tsv" ] || fmri-shards phantom "$out/cohort" --subjects 6 --volumes 64
    set -- "$out/cohort"
else
    say "1/5  your NIfTI runs: $*"
fi

say "2/5  shards"
fmri-shards build "$@" --out "$out/corpus" --splits "$splits" || [ $? -eq 1 ] # 1: runs that cannot be used are named
fmri-shards inspect "$out/corpus"

say "3/5  pretraining with DeepSpeed on one process"
python -m fmri_scale.train "$root/configs/run/quickstart.yaml" data.corpus="$out/corpus" run_dir="$out/run" ${SET:-}

say "4/5  release"
fmri-scale export "$out/run" --out "$out/release" --overwrite

say "5/5  features of one run, from its NIfTI file and the release alone"
first="$(find "$@" -name '*.nii*' ! -name '*mask*' ! -name '*T1w*' | sort | sed -n 1p)"
fmri-scale features "$out/release" "$first" --out "$out/features.npz" --overwrite

say "done; everything lies in $out"
cat <<END
  corpus/      WebDataset shards          fmri-shards inspect $out/corpus
  run/         metrics, checkpoints       $out/run/metrics.jsonl
  pictures     what was reconstructed     $(ls "$out"/run/pictures/*.png | tr '\n' ' ')
  release/     the foundation checkpoint  fmri_scale.from_pretrained("$out/release")
  features.npz embeddings of $first
END
