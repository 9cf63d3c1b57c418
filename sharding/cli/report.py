"""Write one HTML page by which a corpus is judged: counts, mean brains, sides and shifts, quality, outliers.

The page holds everything it shows and needs no network. Mean brains and the check of left and right come from the
statistics stored with the samples; no signal is read, so it takes minutes for a corpus of any size."""

import argparse
from pathlib import Path

from sharding.corpus import open_corpus
from sharding.errors import InputError

EXAMPLES = "example:\n  fmri-shards report corpus --out report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("corpus", type=Path, metavar="CORPUS", help="folder made by fmri-shards build")
    add("--out", type=Path, metavar="FILE.html", help="page to write (default: CORPUS/report.html)")
    add("--runs", type=int, default=60, metavar="N",
        help="runs of each dataset whose mean image is looked at, evenly spread (default: %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the page and say what it found."""
    from sharding.report.page import write_report  # matplotlib is slow to import

    if args.runs < 1:
        raise InputError(f"--runs is {args.runs}; expected 1 or more")
    corpus = open_corpus(args.corpus)
    out = args.out or corpus.path / "report.html"
    for line in write_report(corpus, out, args.runs):
        print(f"look at this: {line}")
    print(f"{out}: written")
    return 0
