"""Add runs to a corpus: its shards stay as they are, everybody in it keeps their split, runs in it are passed over.

The corpus' own settings are used. Readers see it as it was until the end; start it again after an interruption.
"""

import argparse
from pathlib import Path

from sharding.append import append_corpus
from sharding.cli.making import add_engine_arguments, chosen, progress_bar, say_result
from sharding.discover import find_runs
from sharding.engine import engine_for

EXAMPLES = "example:\n  fmri-shards append corpus derivatives_wave2/fmriprep --dataset study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("corpus", type=Path, metavar="CORPUS", help="folder made by fmri-shards build")
    add("inputs", nargs="+", metavar="INPUT", help="NIfTI files, folders, or tables, as for fmri-shards build")
    add("--dataset", metavar="NAME", help="name of the dataset (default: that of the folder)")
    add("--tr", type=float, metavar="S", help="repetition time in s, where files are wrong or silent")
    add("--mask", type=Path, metavar="NIFTI", help="brain mask for run statistics (default: the MNI152 brain)")
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Find the runs, add those that are new, say what there is now."""
    sources, left_out = find_runs(args.inputs, args.dataset, args.tr, args.mask)
    sources = chosen(sources, args.only, args.limit)
    with progress_bar("append") as start:
        made = append_corpus(sources, left_out, args.corpus, start, engine_for(args.scheduler, args.workers))
    return say_result(made)
