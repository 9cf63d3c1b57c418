"""What the commands that take runs share: where to look, which layout, under which names, and what is said of it."""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from sharding.cli.making import chosen
from sharding.discover import LAYOUTS, Discovery, FindOptions, discover
from sharding.discover.summary import describe_found
from sharding.errors import InputError
from sharding.privacy import Pseudonyms, write_map


@dataclass(frozen=True)
class Found:
    """Runs to take, under the names by which they are written."""

    discovery: Discovery
    pseudonyms: str
    "Check of the key; empty where names are their own."
    heard: bool
    "Whether anybody still reads what is said; work goes on without."

    def exit_code(self, code: int) -> int:
        """What a command returns that would return `code`."""
        return code if self.heard else 141


def add_find_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to look and how."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="NIfTI files, folders, or tables")
    add("--layout", default="auto", choices=LAYOUTS,
        help="how folders are laid out (default: auto, as their marks say; else plain files)")  # fmt: skip
    add("--pattern", metavar="TEXT",
        help="paths in a folder: 'sub-{subject}/.../{run}.nii.gz'; also {session}, {task}, {dataset}, *")  # fmt: skip
    add("--space", metavar="NAME", help="BIDS: take only this space- (default: the best of MNI152*)")
    add("--desc", metavar="TEXT", help="which processing of a run to take (default: see fmri-shards build --help)")
    add("--dataset", metavar="NAME", help="name of the dataset (default: that of the folder)")
    add("--tr", type=float, metavar="S", help="repetition time in s, where files are wrong or silent")
    add("--mask", type=Path, metavar="NIFTI",
        help="brain mask for run statistics (default: the run's own, else the MNI152 brain)")  # fmt: skip
    add("--anonymise", type=Path, metavar="KEYFILE",
        help="write keyed hashes for people, sessions, runs and files (not datasets and tasks)")  # fmt: skip
    add("--anonymise-map", type=Path, metavar="TSV", help="with --anonymise: also write who is who, outside the corpus")


def find(args: argparse.Namespace, out: Path) -> Found:
    """Find the runs that arguments name, and say what was found and left out where folders or tables were searched.

    Parameters
    ----------
    args
        Of a command with `add_find_arguments` and `making.add_engine_arguments`.
    out
        The corpus, in which no key may lie.
    """
    pseudonyms = _pseudonyms(args, out)
    options = FindOptions(
        args.dataset, args.layout, args.pattern, args.space, args.desc, args.tr, args.mask and args.mask.absolute()
    )
    found = discover(args.inputs, options)
    found = replace(found, runs=chosen(found.runs, args.only, args.limit))
    heard = _say(describe_found(found)) if found.notes else True
    if pseudonyms is None:
        return Found(found, "", heard)
    named = [pseudonyms.run(run) for run in found.runs]
    if args.anonymise_map is not None:
        write_map(args.anonymise_map, found.runs, named)
    left_out = [pseudonyms.left_out(item) for item in found.left_out]
    return Found(replace(found, runs=named, left_out=left_out), pseudonyms.check, heard)


def _say(text: str) -> bool:
    """Print now, before processes are started; False where the reader of our output has left, as head does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _pseudonyms(args: argparse.Namespace, out: Path) -> Pseudonyms | None:
    if args.anonymise is None:
        if args.anonymise_map is not None:
            raise InputError("--anonymise-map goes with --anonymise")
        return None
    for secret in filter(None, (args.anonymise, args.anonymise_map)):
        if out.resolve() in secret.resolve().parents:
            raise InputError(f"{secret}: lies in the corpus; keep it elsewhere")
    return Pseudonyms(args.anonymise)
