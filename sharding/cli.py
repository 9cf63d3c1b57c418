"""fmri-shards: from NIfTI runs to a corpus of WebDataset shards.

Commands: build (make a corpus, or finish one), inspect (say what is in it), phantom (write a synthetic cohort).
Exit codes: 0 done; 1 a corpus was made but some runs could not be used; 2 nothing was made, for the reason printed;
130 or 143 stopped by Ctrl-C or SIGTERM, with whole shards kept for the next start.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from sharding.build import BuildResult, build_corpus
from sharding.corpus import open_corpus
from sharding.discover import TABLE_COLUMNS, find_runs
from sharding.errors import InputError, ShardingError
from sharding.inspect import describe, empty_split_note
from sharding.phantom import make_cohort
from sharding.phantom_truth import TruthSettings, make_truth_cohort
from sharding.plan import BuildSettings
from sharding.prepare import PreprocessingSettings
from sharding.split import parse_fractions

BUILD_HELP = f"""Make a corpus from 4D NIfTI runs in MNI152 space.

INPUT is any mixture of
  NIfTI files     run.nii.gz, named as BIDS does (sub-, ses-, task-, run-) where possible
  folders         searched to the bottom; masks, anatomicals and 3D images are left out
  tables          .tsv, .csv or .parquet with a column path (relative to the table), and any of
                  {", ".join(TABLE_COLUMNS[1:])}

Every run is brought by its affine to one 2 mm MNI152 grid (cropped exactly where it lies on it, else resampled),
to one repetition time, and to int8 with a scale for each voxel. Started again after an interruption, it makes only
what is missing. A run that cannot be used fails alone; why stands in OUT/runs.parquet."""

BUILD_EXAMPLES = """examples:
  fmri-shards build derivatives/fmriprep --out corpus
  fmri-shards build sub-01_task-rest_bold.nii.gz --out corpus --tr 2.0
  fmri-shards build runs.tsv --out corpus --dataset hcp --splits 0.9,0.05,0.05
  fmri-shards build native_space/ --out trial --assume-mni     (takes images as they lie)
  fmri-shards inspect corpus"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    args = _parser().parse_args(argv)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except ShardingError as error:
        print(f"fmri-shards {args.command}: {error}", file=sys.stderr)
        return 2
    except _Terminated:
        print(f"fmri-shards {args.command}: terminated; start it again to go on", file=sys.stderr)
        return 143
    except BrokenPipeError:  # the reader of our output has left, as head does; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"fmri-shards {args.command}: interrupted; start it again to go on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Terminated(BaseException):
    """SIGTERM, raised where the program stands so that everything is closed on the way out."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="fmri-shards", description=__doc__, formatter_class=raw, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build", help="make a corpus", description=BUILD_HELP, epilog=BUILD_EXAMPLES, formatter_class=raw
    )
    _build_arguments(build)
    build.set_defaults(run=_build)

    inspect = commands.add_parser("inspect", help="say what is in a corpus", description="Say what is in a corpus.")
    inspect.add_argument("corpus", type=Path, metavar="CORPUS", help="folder made by fmri-shards build")
    inspect.set_defaults(run=_inspect)

    phantom = commands.add_parser(
        "phantom",
        help="write a synthetic cohort",
        description="Write a synthetic cohort of 4D NIfTI runs in MNI152 space, for trials and tests.",
        epilog="example:\n  fmri-shards phantom cohort --subjects 6 && fmri-shards build cohort --out corpus",
        formatter_class=raw,
    )
    _phantom_arguments(phantom)
    phantom.set_defaults(run=_phantom)
    return parser


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    defaults, preprocessing = BuildSettings(), PreprocessingSettings()
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="NIfTI files, folders, or tables")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the corpus")
    add("--dataset", metavar="NAME", help="name of the dataset (default: that of the folder)")
    add("--tr", type=float, metavar="S", help="repetition time in s, where files are wrong or silent")
    add("--target-tr", default="0.8", metavar="S", help="spacing of stored frames in s, or native (default: 0.8)")
    add("--mask", type=Path, metavar="NIFTI", help="brain mask for run statistics (default: the MNI152 brain)")
    add("--assume-mni", action="store_true", help="take images as they lie, whatever space they say")
    add("--negatives", default=preprocessing.negatives, choices=("auto", "clip", "keep"),
        help="negative values: clip to 0, keep, or auto: keep in runs centred about 0")  # fmt: skip
    add("--min-frames", type=int, default=preprocessing.min_frames, metavar="N",
        help="fewest frames after resampling (default: %(default)s, a clip of the base model)")  # fmt: skip
    add("--splits", default="0.8,0.1,0.1", metavar="A,B,C",
        help="shares of train, val and test, by person or family (default: %(default)s)")  # fmt: skip
    add("--shard-mb", type=int, default=defaults.shard_bytes // 2**20, metavar="MIB",
        help="size up to which a shard is filled (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=defaults.seed, metavar="N", help="of the order of people in shards (default: 0)")
    add("--licence", default="", metavar="TEXT", help="terms of the data, kept with the corpus")
    add("--overwrite", action="store_true", help="replace a corpus made of other inputs or settings")


def _phantom_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="DIR", help="folder to make")
    add("--subjects", type=int, default=6, metavar="N", help="people (default: %(default)s)")
    add("--runs", type=int, default=1, metavar="N", help="runs of each (default: %(default)s)")
    add("--volumes", type=int, default=80, metavar="N", help="volumes of a run (default: %(default)s)")
    add("--voxel-mm", type=float, default=3.0, metavar="MM", help="edge of a voxel (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")
    add("--known-truth", action="store_true",
        help="two groups that differ only in how named regions are coupled, with atlas and truth.json")  # fmt: skip
    add("--null", action="store_true", help="with --known-truth: groups that differ in nothing")


def _build(args: argparse.Namespace) -> int:
    settings = BuildSettings(
        preprocessing=PreprocessingSettings(
            target_tr=_target_tr(args.target_tr), min_frames=args.min_frames, negatives=args.negatives
        ),
        assume_mni=args.assume_mni,
        seed=args.seed,
        shard_bytes=_at_least_one(args.shard_mb, "--shard-mb") * 2**20,
        splits=parse_fractions(args.splits),
        licence_note=args.licence,
    )
    sources, left_out = find_runs(args.inputs, args.dataset, args.tr, args.mask)
    with contextlib.ExitStack() as stack:

        def start(num_frames: int) -> Callable[[int], object]:
            bar = tqdm(total=num_frames, unit="frame", desc="build", disable=None, mininterval=0.3)
            return stack.enter_context(bar).update

        result = build_corpus(sources, left_out, args.out, settings, args.overwrite, start)
    return _say_result(result)


def _say_result(result: BuildResult) -> int:
    path, totals, shards = result.corpus.path, result.corpus.meta["totals"], result.corpus.meta["shards"]
    print(
        f"{path}: {totals['runs']:,} runs of {totals['subjects']:,} subjects, {totals['frames']:,} frames in "
        f"{len(shards):,} shards ({result.num_made:,} made now); see: fmri-shards inspect {path}"
    )
    if note := empty_split_note(result.corpus):
        print(note)
    for reason in result.failed:
        print(f"failed: {reason}", file=sys.stderr)
    return 1 if result.failed else 0


def _inspect(args: argparse.Namespace) -> int:
    print(describe(open_corpus(args.corpus)))
    return 0


def _phantom(args: argparse.Namespace) -> int:
    if args.null and not args.known_truth:
        raise InputError("--null goes with --known-truth")
    if args.known_truth and args.runs != 1:
        raise InputError(f"--runs is {args.runs}; a cohort with known truth has one run a person")
    if args.known_truth:
        settings = TruthSettings(args.subjects, args.volumes, args.voxel_mm, null=args.null, seed=args.seed)
        runs = make_truth_cohort(args.out, settings)
    else:
        runs = make_cohort(args.out, args.subjects, args.runs, args.volumes, args.voxel_mm, args.seed)
    written = sum(1 for _ in tqdm(runs, total=args.subjects * args.runs, unit="run", desc="phantom", disable=None))
    print(f"{args.out}: {written} runs; make a corpus with: fmri-shards build {args.out} --out CORPUS")
    return 0


def _target_tr(text: str) -> float | None:
    if text == "native":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--target-tr is {text!r}; expected seconds, or native") from error


def _at_least_one(number: int, option: str) -> int:
    if number < 1:
        raise InputError(f"{option} is {number}; expected 1 or more")
    return number
