"""Give a stored segment, or all segments of a run, back as NIfTI: on the 2 mm MNI152 grid, in the source's units.

KEY is a key of the index (dataset__sub-01_task-rest__000000) for a segment, or all before its last __ for the run.
"""

import argparse
from pathlib import Path

from sharding.corpus import open_corpus
from sharding.decode import write_decoded

EXAMPLES = """examples:
  fmri-shards decode corpus hcp__sub-100307_task-rest__000128 --out segment.nii.gz
  fmri-shards decode corpus hcp__sub-100307_task-rest --out run.nii.gz"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder made by fmri-shards build")
    parser.add_argument("key", metavar="KEY", help="of a sample or a run")
    parser.add_argument("--out", type=Path, required=True, metavar="NIFTI", help=".nii or .nii.gz to write")


def run(args: argparse.Namespace) -> int:
    """Write the image."""
    frames = write_decoded(open_corpus(args.corpus), args.key, args.out)
    print(f"{args.out}: {frames} frames")
    return 0
