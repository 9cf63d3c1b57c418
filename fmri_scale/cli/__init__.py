"""`fmri-scale COMMAND`: one file a command, imported only when it is called.

A command module has a docstring (its help), `add_arguments(parser)` and `run(args) -> int` (the exit code).
A `FmriScaleError` or an error of the sharding tool ends as one line on stderr and exit code 2.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from fmri_scale import __version__
from fmri_scale.errors import FmriScaleError
from sharding.errors import ShardingError
from sharding.extras import remedy

COMMANDS = {
    "doctor": "look before the run: is this machine, are all machines together, fit for it?",
    "estimate": "tell what a run will take: memory, step time, reading, exchange, duration",
    "report": "write one HTML page about a run from its folder",
    "config": "print every configuration key, or a resolved configuration",
    "parity": "compare the model with golden values of the published NeuroSTORM",
    "export": "turn a training run into a released checkpoint",
    "features": "bring NIfTI runs through a released checkpoint to embeddings",
    "evaluate": "score features on a downstream task, beside connectivity, with intervals",
    "attribute": "weigh regions: occlusion or gradients of a head, or reconstruction error",
    "experiment": "run a whole comparison of pretraining arms from one file, resumably",
    "verify-release": "check a released checkpoint whole: checksums, weights, reference output",
    "import-neurostorm": "turn a public NeuroSTORM checkpoint into a released one, running nothing it holds",
    "export-graph": "write the encoder as a graph that torch alone runs",
    "push": "upload a released checkpoint to the Hugging Face hub",
}
"Command name (module of this package, dashes as underscores) and its one-line help."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in argv if not a.startswith("-")), "")
    try:
        args = _parse(_parser(command), argv)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except (FmriScaleError, ShardingError) as error:
        print(f"fmri-scale {command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if not (line := remedy(error)):
            raise
        print(f"fmri-scale {command}: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as head does; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "items") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes FILE and KEY=VALUE before options or after them, not both
        args.items += rest
    return args


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fmri-scale",
        description="Pretrain fMRI foundation models, export them, use them. Shards are made by fmri-shards; "
        "training is started by deepspeed, torchrun, srun or python on fmri_scale/train.py.",
    )
    parser.add_argument("--version", action="version", version=f"fmri_scale {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, line in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
            sub = commands.add_parser(
                name, help=line, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
        else:
            commands.add_parser(name, help=line)
    return parser
