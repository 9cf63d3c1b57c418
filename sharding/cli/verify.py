"""Check that a corpus is whole and unaltered: every file there, in its size and with its checksum.

Without --deep, the tables and the mask are read and shards are looked at by size. With --deep every byte is read, and
damage is named by shard, key and member. Exit code 1 where anything is found. To mend: restore the file from a copy, or
remove the shards named and start the same fmri-shards build again, which makes what is missing and leaves the rest as
it is. What came with an append is restored from a copy.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from sharding.engine.local import default_workers
from sharding.verify import verify

EXAMPLES = """examples:
  fmri-shards verify corpus
  fmri-shards verify corpus --deep --json > findings.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder made by fmri-shards build")
    parser.add_argument("--deep", action="store_true", help="read every byte of every shard")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--workers", type=int, metavar="N", help="shards read at a time (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Check, and say what was found."""
    with tqdm(unit="B", unit_scale=True, desc="verify", disable=None, leave=False) as bar:

        def start(num_bytes: int):
            bar.reset(num_bytes)
            return bar.update

        report = verify(args.corpus, args.deep, args.workers or default_workers(), start)
    if args.json:
        print(report.to_json())
    else:
        for finding in report.findings:
            print(finding)
        said = "nothing wrong" if not report.findings else f"{len(report.findings)} findings"
        depth = "every byte read" if args.deep else "shards by size; --deep reads every byte"
        print(f"{args.corpus}: {said} in {report.files:,} files ({depth})", file=sys.stderr)
    return 1 if report.findings else 0
