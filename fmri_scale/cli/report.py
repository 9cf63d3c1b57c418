"""Write one HTML page about a run from its folder alone: curves, speed, faults, configuration, environment, pictures.

fmri-scale report runs/first                      writes runs/first/report.html
fmri-scale report runs/first --out page.html

The run may still be going on. The page holds everything in itself and can be sent as one file.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, help="file to write; default: RUN/report.html")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from fmri_scale.training.report import write_report

    print(write_report(args.folder, args.out))
    return 0
