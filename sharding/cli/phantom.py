"""Write a synthetic cohort of 4D NIfTI runs in MNI152 space, for trials and tests."""

import argparse
from pathlib import Path

from tqdm import tqdm

from sharding.errors import InputError
from sharding.phantom import make_cohort
from sharding.phantom_truth import TruthSettings, make_truth_cohort

EXAMPLES = "example:\n  fmri-shards phantom cohort --subjects 6 && fmri-shards build cohort --out corpus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
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


def run(args: argparse.Namespace) -> int:
    """Write the cohort."""
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
