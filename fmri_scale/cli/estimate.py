"""Tell what a run will take: memory of a rank by part, operations, step time, reading, exchange, duration.

fmri-scale estimate configs/run/base.yaml --nodes 4 --gpus 8 --gpu h100
fmri-scale estimate configs/model/large.yaml engine.zero_stage=3 optim.global_batch=64 --gpus 8 --json

Arithmetic, from the model's shapes and the rates of the hardware; nothing is trained. For `--gpu cpu` this machine's
rates are measured for a second.
"""

import argparse
import dataclasses
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("items", nargs="*", metavar="FILE|KEY=VALUE", help="YAML files and overrides, in order")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs, or processes with --gpu cpu, of each machine")
    parser.add_argument("--gpu", default="", help="a100, h100, h200 or cpu; default: what this machine has")
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes and times in s")


def run(args: argparse.Namespace) -> int:
    """Print to stdout."""
    from fmri_scale.release.start import run_config
    from fmri_scale.training.estimate import devices, estimate, text

    config = run_config([i for i in args.items if "=" not in i], [i for i in args.items if "=" in i])
    made = estimate(config, args.nodes, args.gpus, devices.find(args.gpu))
    if args.json:
        more = {"run_s": made.run_s, "epoch_s": made.epoch_s, "epochs": made.epochs}
        print(json.dumps({**dataclasses.asdict(made), **more}, indent=1))
    else:
        print("\n".join(text.as_lines(made)))
    return 0
