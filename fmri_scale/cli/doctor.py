"""Look before the run: versions, GPUs, kernels, memory, limits, corpus, disk, network; each finding with its remedy.

fmri-scale doctor                                         this machine
fmri-scale doctor configs/run/base.yaml run_dir=runs/1    and what the run needs of it
torchrun --nproc-per-node 8 -m fmri_scale doctor FILE     all ranks: do they agree, how fast is the way between them?

Under deepspeed, torchrun or srun every rank looks and rank 0 prints. The exit code is 1 with a finding that blocks the
run, else 0.
"""

import argparse
import dataclasses
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("items", nargs="*", metavar="FILE|KEY=VALUE", help="YAML files and overrides, in order")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that ranks wait for each other")


def run(args: argparse.Namespace) -> int:
    """Print to stdout on rank 0; return 1 if something blocks the run."""
    from fmri_scale.release.start import run_config
    from fmri_scale.training import dist, launch
    from fmri_scale.training.doctor import BLOCK, WARN, examine, findings, ranks

    config = run_config([i for i in args.items if "=" not in i], [i for i in args.items if "=" in i])
    place = launch.discover()
    device = dist.device_of(place)
    here = ranks.ranks_on_this_machine(place)
    found = examine(config, device, place.rank, place.world_size, here)
    if place.world_size > 1:
        dist.start(place, args.timeout)
        try:
            found = ranks.compare(config, device, found)
        finally:
            dist.stop()
    blocked, warned = (sum(f.level == level for f in found) for level in (BLOCK, WARN))
    if place.rank == 0:
        if args.json:
            print(json.dumps([dataclasses.asdict(f) for f in found], indent=1))
        else:
            print("\n".join(findings.as_lines(found, place.world_size)))
            print(f"{blocked} blocking, {warned} to mend")
    return 1 if blocked else 0
