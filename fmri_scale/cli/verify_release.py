"""Check a release whole: checksums, weights, mask, and the features of a fixed clip on this machine.

fmri-scale verify-release release
fmri-scale verify-release my-lab/brain-base --revision v1 --device cuda
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("release", metavar="DIR|ORGANISATION/NAME", help="folder, or repository on the hub")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--device", default="cpu", help="where the fixed clip is run (default cpu)")


def run(args: argparse.Namespace) -> int:
    """Print a line for each check; the first that fails ends it with exit code 2."""
    from fmri_scale.release.verify import verify_release

    for line in verify_release(args.release, args.revision, args.device):
        print(line)
    return 0
