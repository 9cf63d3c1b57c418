"""fmri-shards: from NIfTI runs to a corpus of WebDataset shards. One file a command, imported only when it is called.

A command module has a docstring (its help), `add_arguments(parser)`, `run(args) -> int` (the exit code) and, where
examples help, `EXAMPLES`. Exit codes: 0 done; 1 done, but something was found wanting (runs that could not be used,
damage); 2 nothing was done, for the reason printed; 130 or 143 stopped by Ctrl-C or SIGTERM, with whole shards kept
for the next start.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from sharding.errors import ShardingError
from sharding.extras import remedy

COMMANDS = {
    "build": "make a corpus",
    "append": "add runs to a corpus, keeping what is in it",
    "inspect": "say what is in a corpus",
    "verify": "check that a corpus is whole and unaltered",
    "index": "rebuild the index of a corpus from its tars",
    "decode": "give a stored run back as NIfTI",
    "report": "write a page by which a corpus is judged",
    "phantom": "write a synthetic cohort",
    "atlas": "bring an atlas to the grid, for region masks",
}
"Command name (a module of this package) and its one-line help, in the order of a corpus' life."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if not word.startswith("-")), "")
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        args = _parser(command).parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except ShardingError as error:
        print(f"fmri-shards {command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if not (line := remedy(error)):
            raise
        print(f"fmri-shards {command}: {line}", file=sys.stderr)
        return 2
    except _Terminated:
        print(f"fmri-shards {command}: terminated; start it again to go on", file=sys.stderr)
        return 143
    except BrokenPipeError:  # the reader of our output has left, as head does; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"fmri-shards {command}: interrupted; start it again to go on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Terminated(BaseException):
    """SIGTERM, raised where the program stands so that everything is closed on the way out."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _parser(chosen: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="fmri-shards",
        description="From NIfTI runs to a corpus of WebDataset shards.",
        formatter_class=raw,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, line in COMMANDS.items():
        if name != chosen:
            commands.add_parser(name, help=line)
            continue
        module = importlib.import_module(f"{__name__}.{name}")
        command = commands.add_parser(
            name, help=line, description=module.__doc__, epilog=getattr(module, "EXAMPLES", None), formatter_class=raw
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
