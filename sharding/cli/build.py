"""Make a corpus from 4D NIfTI runs in MNI152 space.

INPUT is any mixture of
  NIfTI files     run.nii.gz, named as BIDS does (sub-, ses-, task-, run-) where possible
  folders         searched to the bottom; masks, anatomicals and 3D images are left out
  tables          .tsv, .csv or .parquet with a column path (relative to the table), and any of
                  subject, session, run, task, dataset, family, tr, mask, split

Every run is brought by its affine to one 2 mm MNI152 grid (cropped exactly where it lies on it, else resampled),
to one repetition time, and to int8 with a scale for each voxel. Started again after an interruption, it makes only
what is missing. A run that cannot be used fails alone; why stands in OUT/runs.parquet.
"""

import argparse
from pathlib import Path

from sharding.build import build_corpus
from sharding.cli.making import add_engine_arguments, chosen, progress_bar, say_result
from sharding.discover import find_runs
from sharding.engine import engine_for
from sharding.errors import InputError
from sharding.plan import BuildSettings
from sharding.prepare import PreprocessingSettings
from sharding.split import parse_fractions

EXAMPLES = """examples:
  fmri-shards build derivatives/fmriprep --out corpus
  fmri-shards build sub-01_task-rest_bold.nii.gz --out corpus --tr 2.0
  fmri-shards build runs.tsv --out corpus --dataset hcp --splits 0.9,0.05,0.05
  fmri-shards build native_space/ --out trial --assume-mni     (takes images as they lie)
  fmri-shards inspect corpus"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
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
    add_engine_arguments(parser)
    add("--overwrite", action="store_true",
        help="replace a corpus of other inputs or settings, keeping shards that fit; retry failed runs")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Find the runs, build, say what was made."""
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
    sources = chosen(sources, args.only, args.limit)
    engine = engine_for(args.scheduler, args.workers)
    with progress_bar("build") as start:
        result = build_corpus(sources, left_out, args.out, settings, args.overwrite, start, engine)
    return say_result(result)


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
