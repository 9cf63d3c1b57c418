"""Run a whole comparison from one file: data, pretraining arms and seeds, tasks with baselines, attribution, report.

fmri-scale experiment configs/experiments/known_truth.yaml --out results/known_truth
fmri-scale experiment configs/experiments/region_vs_random.yaml corpora.main.source=folder corpora.main.path=BIDS ...
fmri-scale experiment configs/experiments/scaling.yaml corpora.main.path=CORPUS ... --out results/scaling --dry-run

Started again, it does only what is not done: arms continue from their newest checkpoint, finished steps are skipped,
and the report comes out the same. OUT holds report.html, results.csv, arms.csv and a folder for every step.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("items", nargs="+", metavar="FILE.yaml|KEY=VALUE", help="experiment file and overrides")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the experiment")
    parser.add_argument(
        "--dry-run", action="store_true", help="resolve every arm and task, say what would run, and stop"
    )


def run(args: argparse.Namespace) -> int:
    """Print where the report is, and its tables."""
    from fmri_scale.evaluation.experiment.run import plan_experiment, run_experiment
    from fmri_scale.evaluation.experiment.schema import load_experiment
    from fmri_scale.log import configure_logging

    configure_logging()
    files = [item for item in args.items if "=" not in item]
    config = load_experiment(files, [item for item in args.items if "=" in item])
    if args.dry_run:
        arms = plan_experiment(config, args.out)
        for name, own in config.arms.items():
            print(f"arm {name}: {', '.join(own)}")
        print(f"{len(arms)} pretraining runs: {len(config.arms)} arms, seeds {', '.join(map(str, config.seeds))}")
        print(f"tasks: {', '.join(config.tasks)}; attribution: {', '.join(config.attribution) or 'none'}")
        return 0
    report = run_experiment(config, args.out)
    for name in config.tasks:
        text = (args.out / "tasks" / name / "report.md").read_text(encoding="utf-8")
        print("\n".join(line for line in text.splitlines() if line.startswith(("#", "|"))))
    print(report)
    return 0
