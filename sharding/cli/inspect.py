"""Say what is in a corpus."""

import argparse
from pathlib import Path

from sharding.corpus import open_corpus
from sharding.inspect import describe

EXAMPLES = "example:\n  fmri-shards inspect corpus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder made by fmri-shards build")


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    print(describe(open_corpus(args.corpus)))
    return 0
