"""Bring NIfTI runs through a released checkpoint: one vector for each clip, and their mean for each run.

fmri-scale features release sub-01_task-rest_space-MNI152NLin6Asym_bold.nii.gz --out rest.npz
fmri-scale features my-lab/brain-base derivatives/fmriprep --out all.npz --batch-size 4 --device cuda

Runs are preprocessed as the model's training data were (grid by affine, TR, int8, normalisation). A run that cannot be
used is named and left out; the exit code is then 1, or 2 if no run could be used. In Python:
numpy.load("rest.npz") has clip_features, clip_run, clip_start_s, run_features, run_key, run_file and more.
"""

import argparse
import sys
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("release", metavar="DIR|ORGANISATION/NAME", help="released checkpoint")
    parser.add_argument("inputs", nargs="+", metavar="NIFTI", help="4D runs in MNI152 space, folders, or tables")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.npz", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="clips at a time (default 1)")
    parser.add_argument("--stride", type=int, metavar="FRAMES", help="between clips (default: no overlap)")
    parser.add_argument("--tr", type=float, metavar="S", help="repetition time in s, where files are wrong or silent")
    parser.add_argument("--mask", type=Path, metavar="NIFTI", help="brain mask for statistics (default: MNI152)")
    parser.add_argument("--assume-mni", action="store_true", help="take images as they lie, whatever space they say")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one")


def run(args: argparse.Namespace) -> int:
    """Embed run after run, saying how far it is on stderr; write the file at the end."""
    import torch

    from fmri_scale.errors import DataError, FmriScaleError
    from fmri_scale.evaluation.features import check_output, extract_run, save_features
    from fmri_scale.release import from_pretrained
    from sharding.discover import find_runs
    from sharding.errors import ShardingError

    if args.batch_size < 1:
        raise DataError(f"--batch-size {args.batch_size}: expected 1 or more")
    check_output(args.out, args.overwrite)
    sources, left_out = find_runs(args.inputs, tr=args.tr, mask=args.mask)
    gpu = args.device == "auto" and torch.cuda.is_available()
    device = "cuda" if gpu else "cpu" if args.device == "auto" else args.device
    model = from_pretrained(args.release, revision=args.revision, device=device)
    for left in left_out:
        print(f"left out {left.path}: {left.reason}", file=sys.stderr)
    done, failed = [], 0
    for number, source in enumerate(sources, start=1):
        begin = time.monotonic()
        show = _Line(f"[{number}/{len(sources)}] {source.path.name}")
        try:
            done.append(extract_run(model, source, args.batch_size, args.stride, args.assume_mni, show.clips))
        except (FmriScaleError, ShardingError) as error:
            if len(sources) == 1:
                raise
            show.end(f"left out: {error}")
            failed += 1
            continue
        show.end(f"{len(done[-1].clips)} clips, {time.monotonic() - begin:.1f} s")
    if not done:
        raise DataError(f"none of {len(sources)} runs could be used; the reasons stand above")
    save_features(done, model, args.out, args.overwrite)
    vectors = sum(len(r.clips) for r in done)
    print(f"{args.out}: {len(done)} runs, {vectors} clips, {model.width} features each")
    return 1 if failed else 0


class _Line:
    """A line on stderr that tells how far a run is; it renews itself on a terminal only."""

    def __init__(self, name: str) -> None:
        self.name, self.live = name, sys.stderr.isatty()

    def clips(self, done: int, total: int) -> None:
        if self.live:
            print(f"\r{self.name}: clip {done} of {total}", end="", file=sys.stderr, flush=True)

    def end(self, text: str) -> None:
        print(f"{chr(13) if self.live else ''}{self.name}: {text}", file=sys.stderr)
