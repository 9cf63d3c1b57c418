"""Run a whole comparison from one file: data, pretraining arms and seeds, tasks with baselines, attribution, report.

fmri-scale experiment configs/experiments/known_truth.yaml --out results/known_truth
fmri-scale experiment configs/experiments/region_vs_random.yaml corpora.main.source=folder corpora.main.path=BIDS ...

Started again, it does only what is not done: arms continue from their newest checkpoint, finished steps are skipped,
and the report comes out the same. OUT holds report.html, results.csv, arms.csv and a folder for every step.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("items", nargs="+", metavar="FILE.yaml|KEY=VALUE", help="experiment file and overrides")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the experiment")


def run(args: argparse.Namespace) -> int:
    """Print where the report is, and its tables."""
    from fmri_scale.evaluation.experiment.run import run_experiment
    from fmri_scale.evaluation.experiment.schema import load_experiment
    from fmri_scale.log import configure_logging

    configure_logging()
    files = [item for item in args.items if "=" not in item]
    config = load_experiment(files, [item for item in args.items if "=" in item])
    report = run_experiment(config, args.out)
    for name in config.tasks:
        text = (args.out / "tasks" / name / "report.md").read_text(encoding="utf-8")
        print("\n".join(line for line in text.splitlines() if line.startswith(("#", "|"))))
    print(report)
    return 0
