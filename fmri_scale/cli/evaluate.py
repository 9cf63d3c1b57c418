"""Evaluate features, or tune a model, on one downstream task, beside connectivity and the commonest class.

fmri-scale evaluate configs/tasks/sex.yaml features.brain=brain.npz target.table=participants.tsv --out results/sex
fmri-scale evaluate configs/tasks/sex.yaml ... --out results/sex --final
fmri-scale evaluate configs/tasks/sex.yaml ... tuning.releases.brain=release tuning.corpus=corpus \\
    tuning.methods=[prompt,lora,full] tuning.device=cuda --out results/sex --final

Without --final everything is scored on validation and the test set stays sealed; with it the test set is opened, and
the opening is written down in OUT/test_openings.jsonl. OUT holds results.csv, predictions.parquet, the splits with
their hash, the settings that were chosen, and report.html and report.md. Tuned models are kept in OUT/tuned: stopped,
the command goes on where it was; finished, --final only opens the test set.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("items", nargs="+", metavar="TASK.yaml|KEY=VALUE", help="task file and overrides, in order")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--final", action="store_true", help="open the test set")


def run(args: argparse.Namespace) -> int:
    """Print the table to stdout."""
    from fmri_scale.evaluation.tasks import load_task
    from fmri_scale.evaluation.tasks.run import run_task
    from fmri_scale.log import configure_logging

    configure_logging()
    files = [item for item in args.items if "=" not in item]
    task = load_task(files, [item for item in args.items if "=" in item])
    result = run_task(task, args.out, args.final)
    for name, value in result.facts().items():
        print(f"{name}: {value}")
    print(f"\n{result.markdown()}\n\n{args.out / 'report.html'}")
    return 0
