"""Print every configuration key with its default and meaning, or a configuration as it resolves.

fmri-scale config                                    all keys
fmri-scale config configs/run/quickstart.yaml optim.lr=1e-4     the resolved configuration
"""

import argparse

import yaml

from fmri_scale.config import to_dict
from fmri_scale.config.reference import reference
from fmri_scale.release.start import run_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("items", nargs="*", metavar="FILE|KEY=VALUE", help="YAML files and overrides, in order")


def run(args: argparse.Namespace) -> int:
    """Print to stdout."""
    if not args.items:
        print(reference())
        return 0
    files = [item for item in args.items if "=" not in item]
    overrides = [item for item in args.items if "=" in item]
    print(yaml.safe_dump(to_dict(run_config(files, overrides)), sort_keys=False), end="")
    return 0
