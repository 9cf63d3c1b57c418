"""Turn a public NeuroSTORM checkpoint (.ckpt) into a release, without running anything the file holds.

fmri-scale import-neurostorm pretrained.ckpt --out release
fmri-scale import-neurostorm weights.pt --out release --set model.first_window_size=[2,2,2,2]

The architecture is read off the shapes of the weights. Windows leave no trace there: they come from the checkpoint's
hyper-parameters, else from the released architecture, unless given by --set. Every key of the file is
accounted for in import.json; heads are kept under their published names in heads.safetensors.
"""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE.ckpt", help="Lightning checkpoint, or a file with a state dict")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="model.KEY=VALUE",
        help="what no shape tells, e.g. model.window_size=[4,4,4,4] model.last_stage_full=false",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a release that is there")
    parser.add_argument(
        "--allow-name",
        action="append",
        default=[],
        metavar="MODULE.NAME",
        help="a name the pickle may mention beside the usual ones; it is never imported or called",
    )
    parser.add_argument("--name", default="", help="title of the model card (default: the file's name)")
    parser.add_argument("--licence", default="", help="licence of the weights as the hub names it")
    parser.add_argument("--keys", action="store_true", help="print where every key went")


def run(args: argparse.Namespace) -> int:
    """Write the release; say what was found and what had to be assumed."""
    from fmri_scale.release.detect import RELEASED
    from fmri_scale.release.export import ExportSettings
    from fmri_scale.release.published import import_neurostorm

    settings = ExportSettings(name=args.name, licence=args.licence)
    found = import_neurostorm(args.file, args.out, args.set, args.allow_name, settings, args.overwrite)
    for name, value in found.detected.values.items():
        print(f"{name} = {value}  (from {found.detected.origin[name]})")
    if args.keys:
        for row in found.keys:
            print(f"{row['key'] or '(not in the file)'} {row['shape']} {row['dtype']} -> {row['to']}")
    for remark in found.detected.remarks:
        print(f"note: {remark}", file=sys.stderr)
    assumed = [name for name, origin in found.detected.origin.items() if origin == RELEASED]
    if assumed:
        print(f"note: not in the file, assumed as released: {', '.join(assumed)}", file=sys.stderr)
    print(f"{args.out}: {found.contents}, {len(found.keys)} keys accounted for, {len(found.heads)} of heads")
    return 0
