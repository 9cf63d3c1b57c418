"""Make a corpus from 4D NIfTI runs in MNI152 space.

INPUT is any mixture of
  NIfTI files     run.nii.gz, named as BIDS does (sub-, ses-, task-, run-) where possible
  folders         BIDS derivatives, HCP results, UK Biobank bulk data, or plain folders searched to the bottom
  tables          .tsv, .csv or .parquet with a column path (relative to the table), and any of subject,
                  session, run, task, dataset, family, tr, mask, confounds, split

Which files of a layout are taken:
{rules}

What was found and what was left out, and why, is said before work starts; --dry-run stops there.

Every run is brought by its affine to one 2 mm MNI152 grid (cropped exactly where it lies on it, else resampled),
to one repetition time, and to int8 with a scale for each voxel. Started again after an interruption, it makes only
what is missing. A run that cannot be used fails alone; why stands in OUT/runs.parquet.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from sharding.build import build_corpus
from sharding.cli.finding import add_find_arguments, find
from sharding.cli.making import add_engine_arguments, progress_bar, say_result
from sharding.cli.preprocessing import add_preprocessing_arguments, preprocessing_settings
from sharding.discover import RULES
from sharding.engine import engine_for
from sharding.errors import InputError
from sharding.plan import BuildSettings, plan_build
from sharding.plan_summary import describe_plan
from sharding.split import parse_fractions

__doc__ = (__doc__ or "").format(rules=RULES)

EXAMPLES = """examples:
  fmri-shards build derivatives/fmriprep --out corpus --dry-run
  fmri-shards build derivatives/fmriprep --out corpus
  fmri-shards build sub-01_task-rest_bold.nii.gz --out corpus --tr 2.0
  fmri-shards build runs.tsv --out corpus --dataset hcp --splits 0.9,0.05,0.05
  fmri-shards build native_space/ --out trial --assume-mni     (takes images as they lie)
  fmri-shards inspect corpus"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    defaults = BuildSettings()
    add = parser.add_argument
    add_find_arguments(parser)
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the corpus")
    add("--dry-run", action="store_true", help="read headers, say what would be made, and stop")
    add("--assume-mni", action="store_true", help="take images as they lie, whatever space they say")
    add("--splits", default="0.8,0.1,0.1", metavar="A,B,C",
        help="shares of train, val and test, by person or family (default: %(default)s)")  # fmt: skip
    add("--shard-mb", type=int, default=defaults.shard_bytes // 2**20, metavar="MIB",
        help="size up to which a shard is filled (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=defaults.seed, metavar="N", help="of the order of people in shards (default: 0)")
    add("--licence", default="", metavar="TEXT", help="terms of the data, kept with the corpus")
    add_engine_arguments(parser)
    add("--overwrite", action="store_true",
        help="replace a corpus of other inputs or settings, keeping shards that fit; retry failed runs")  # fmt: skip
    add_preprocessing_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Find the runs, build, say what was made."""
    settings = BuildSettings(
        preprocessing=preprocessing_settings(args),
        assume_mni=args.assume_mni,
        seed=args.seed,
        shard_bytes=_at_least_one(args.shard_mb, "--shard-mb") * 2**20,
        splits=parse_fractions(args.splits),
        licence_note=args.licence,
    )
    found = find(args, args.out)
    settings = replace(settings, pseudonyms=found.pseudonyms)
    runs, left_out = found.discovery.runs, found.discovery.left_out
    if args.dry_run:
        print(describe_plan(plan_build(runs, left_out, settings)))
        return 0
    engine = engine_for(args.scheduler, args.workers)
    with progress_bar("build") as start:
        result = build_corpus(runs, left_out, args.out, settings, args.overwrite, start, engine)
    return found.exit_code(say_result(result))


def _at_least_one(number: int, option: str) -> int:
    if number < 1:
        raise InputError(f"{option} is {number}; expected 1 or more")
    return number
