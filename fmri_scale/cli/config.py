"""Print every configuration key with its default and meaning, or a configuration as it resolves.

fmri-scale config                                    all keys of a training run
fmri-scale config --reference task                   those of a task file (fmri-scale evaluate)
fmri-scale config --reference experiment             those of an experiment file (fmri-scale experiment)
fmri-scale config configs/run/quickstart.yaml optim.lr=1e-4     the resolved configuration
"""

import argparse

import yaml

from fmri_scale.config import Config, to_dict
from fmri_scale.config.reference import reference
from fmri_scale.release.start import run_config

KINDS = ("run", "task", "experiment")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("items", nargs="*", metavar="FILE|KEY=VALUE", help="YAML files and overrides, in order")
    parser.add_argument("--reference", choices=KINDS, help="print all keys of this kind of file")


def run(args: argparse.Namespace) -> int:
    """Print to stdout."""
    if args.reference or not args.items:
        print(reference(schema_of(args.reference or "run")))
        return 0
    files = [item for item in args.items if "=" not in item]
    overrides = [item for item in args.items if "=" in item]
    print(yaml.safe_dump(to_dict(run_config(files, overrides)), sort_keys=False), end="")
    return 0


def schema_of(kind: str) -> type:
    """Return the schema of a kind of file."""
    if kind == "task":
        from fmri_scale.evaluation.tasks.schema import TaskConfig

        return TaskConfig
    if kind == "experiment":
        from fmri_scale.evaluation.experiment.schema import ExperimentConfig

        return ExperimentConfig
    return Config
