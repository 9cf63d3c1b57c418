"""Bring NIfTI runs through a released checkpoint: one vector for each clip, and their mean for each run.

fmri-scale features release sub-01_task-rest_space-MNI152NLin6Asym_bold.nii.gz --out rest.npz
fmri-scale features my-lab/brain-base derivatives/fmriprep --out all.npz --batch-size 4 --device cuda
fmri-scale features release corpus --out corpus.npz

Runs are preprocessed as the model's training data were (grid by affine, TR, int8, normalisation). A run that cannot be
used is named and left out; the exit code is then 1, or 2 if no run could be used. In Python:
numpy.load("rest.npz") has clip_features, clip_run, clip_start_s, run_features, run_key, run_file and more.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fmri_scale.evaluation.features import Progress, RunFeatures
    from fmri_scale.release import Pretrained
    from sharding.discover import RunSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("release", metavar="DIR|ORGANISATION/NAME", help="released checkpoint")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="4D runs in MNI152 space, folders, tables, corpora")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.npz", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="clips at a time (default 1)")
    parser.add_argument("--stride", type=int, metavar="FRAMES", help="between clips (default: no overlap)")
    parser.add_argument("--tr", type=float, metavar="S", help="repetition time in s, where files are wrong or silent")
    parser.add_argument("--mask", type=Path, metavar="NIFTI", help="brain mask for statistics (default: MNI152)")
    parser.add_argument("--assume-mni", action="store_true", help="take images as they lie, whatever space they say")
    parser.add_argument("--split", action="append", metavar="NAME", help="of corpora: train, val, test (default: all)")
    parser.add_argument("--tokens", action="store_true", help="also a vector for each place, for attentive probes")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one")


def run(args: argparse.Namespace) -> int:
    """Embed run after run, saying how far it is on stderr; write the file at the end."""
    import torch

    from fmri_scale.errors import DataError, FmriScaleError
    from fmri_scale.evaluation.features import check_output, save_features
    from fmri_scale.release import from_pretrained
    from sharding.errors import ShardingError

    if args.batch_size < 1:
        raise DataError(f"--batch-size {args.batch_size}: expected 1 or more")
    check_output(args.out, args.overwrite)
    gpu = args.device == "auto" and torch.cuda.is_available()
    device = "cuda" if gpu else "cpu" if args.device == "auto" else args.device
    jobs = _jobs(args, from_pretrained(args.release, revision=args.revision, device=device))
    done, failed = [], 0
    for number, job in enumerate(jobs, start=1):
        begin = time.monotonic()
        show = _Line(f"[{number}/{len(jobs)}] {job.name}")
        try:
            done.append(job.embed(show.clips))
        except (FmriScaleError, ShardingError) as error:
            if len(jobs) == 1:
                raise
            show.end(f"left out: {error}")
            failed += 1
            continue
        show.end(f"{len(done[-1].clips)} clips, {time.monotonic() - begin:.1f} s")
    if not done:
        raise DataError(f"none of {len(jobs)} runs could be used; the reasons stand above")
    save_features(done, jobs[0].model, args.out, args.overwrite)
    vectors = sum(len(r.clips) for r in done)
    print(f"{args.out}: {len(done)} runs, {vectors} clips, {jobs[0].model.width} features each")
    return 1 if failed else 0


class _Job(NamedTuple):
    """A run to embed; `embed(progress)` gives its features."""

    name: str
    embed: "Callable[[Progress], RunFeatures]"
    model: "Pretrained"


def _jobs(args: argparse.Namespace, model: "Pretrained") -> list[_Job]:
    """List the runs of all inputs; what a corpus needs beyond NIfTI is imported for a corpus only."""
    corpora = [path for path in args.inputs if Path(path, "corpus.json").is_file()]
    files = [path for path in args.inputs if path not in corpora]
    jobs = _file_jobs(args, model, files) if files else []
    if corpora:
        from fmri_scale.evaluation.corpus_features import corpus_runs, extract_stored_run
        from sharding.corpus import open_corpus

        for path in corpora:
            for run in corpus_runs(model, open_corpus(path), args.split or ()):
                settings = (args.batch_size, args.stride, args.tokens)
                jobs.append(_Job(run.name, functools.partial(extract_stored_run, model, run, *settings), model))
    return jobs


def _file_jobs(args: argparse.Namespace, model: "Pretrained", files: list[str]) -> list[_Job]:
    from fmri_scale.evaluation.features import extract_run
    from sharding.discover import find_runs

    sources, left_out = find_runs(files, tr=args.tr, mask=args.mask)
    for left in left_out:
        print(f"left out {left.path}: {left.reason}", file=sys.stderr)
    settings = {"batch_size": args.batch_size, "stride": args.stride, "assume_mni": args.assume_mni}
    embed = functools.partial(extract_run, model, **settings, tokens=args.tokens)
    return [_Job(source.path.name, functools.partial(_embed_source, embed, source), model) for source in sources]


def _embed_source(embed: "Callable[..., RunFeatures]", source: "RunSource", progress: "Progress") -> "RunFeatures":
    return embed(source, progress=progress)


class _Line:
    """A line on stderr that tells how far a run is; it renews itself on a terminal only."""

    def __init__(self, name: str) -> None:
        self.name, self.live = name, sys.stderr.isatty()

    def clips(self, done: int, total: int) -> None:
        if self.live:
            print(f"\r{self.name}: clip {done} of {total}", end="", file=sys.stderr, flush=True)

    def end(self, text: str) -> None:
        print(f"{chr(13) if self.live else ''}{self.name}: {text}", file=sys.stderr)
