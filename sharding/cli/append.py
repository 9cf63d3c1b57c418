"""Add runs to a corpus: its shards stay as they are, everybody in it keeps their split, runs in it are passed over.

The corpus' own settings are used. Readers see it as it was until the end; start it again after an interruption.
"""

import argparse
from pathlib import Path

from sharding.append import append_corpus
from sharding.cli.finding import add_find_arguments, find
from sharding.cli.making import add_engine_arguments, progress_bar, say_result
from sharding.engine import engine_for

EXAMPLES = "example:\n  fmri-shards append corpus derivatives_wave2/fmriprep --dataset study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("corpus", type=Path, metavar="CORPUS", help="folder made by fmri-shards build")
    add_find_arguments(parser)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Find the runs, add those that are new, say what there is now."""
    found = find(args, args.corpus)
    runs, left_out, engine = found.discovery.runs, found.discovery.left_out, engine_for(args.scheduler, args.workers)
    with progress_bar("append") as start:
        made = append_corpus(runs, left_out, args.corpus, start, engine, found.pseudonyms)
    return found.exit_code(say_result(made))
