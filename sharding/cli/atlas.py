"""Bring an atlas to the canonical grid and keep which patches each region lies in.

IMAGE is a 3D label image in MNI152 space, of any grid and orientation: it is brought over by its affine. The folder
OUT is what region masks read (mask.atlas=OUT); it holds the labels on the grid, names and groups, the voxels of every
region in every patch, a summary and a picture."""

import argparse
from pathlib import Path

from sharding.atlas.fetch import ATLASES, fetch_atlas
from sharding.atlas.labels import Label, load_labels_tsv
from sharding.atlas.make import METHODS, make_atlas
from sharding.atlas.picture import draw_atlas
from sharding.atlas.store import write_atlas
from sharding.atlas.summary import describe_atlas
from sharding.errors import InputError

EXAMPLES = """examples:
  fmri-shards atlas AAL3.nii.gz --labels AAL3.tsv --patch 6 --out aal3
  fmri-shards atlas --nilearn schaefer --regions 200 --out schaefer200
  fmri-shards atlas AAL3.nii.gz --occupancy vote --file-order --out published   (the published map, side for side)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("image", type=Path, nargs="?", metavar="IMAGE", help="label image (NIfTI)")
    add("--nilearn", choices=ATLASES, help="fetch an atlas through nilearn in place of IMAGE")
    add("--regions", type=int, default=400, metavar="N", help="with --nilearn schaefer (default: %(default)s)")
    add("--labels", type=Path, metavar="TSV", help="table with columns index, name and, optionally, group")
    add("--patch", default="6", metavar="N or X,Y,Z", help="voxels of a patch (default: 6)")
    add("--occupancy", default="weighted", choices=METHODS,
        help="count voxels, or give each patch to one region, as published (default: %(default)s)")  # fmt: skip
    add("--file-order", action="store_true", help="ignore the affine's left and right, as the published code does")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    add("--overwrite", action="store_true", help="replace an atlas that is there")


def run(args: argparse.Namespace) -> int:
    """Make the folder and print its summary."""
    if (args.image is None) == (args.nilearn is None):
        raise InputError("give IMAGE, or --nilearn NAME, and not both")
    table: list[Label] = []
    image = args.image
    if args.nilearn:
        image, table = fetch_atlas(args.nilearn, args.regions)
    if args.labels:
        table = load_labels_tsv(args.labels)
    atlas = make_atlas(image, table, parse_patch(args.patch), args.occupancy, args.file_order)
    summary = describe_atlas(atlas)
    write_atlas(args.out, atlas, summary, draw_atlas(atlas, args.nilearn or image.name), args.overwrite)
    print(summary + f"{args.out}: written; hide its regions with mask.strategy=region mask.atlas={args.out}")
    return 0


def parse_patch(text: str) -> tuple[int, ...]:
    """Voxels along x, y, z from `6` or `6,6,6`."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--patch is {text!r}; expected a whole number, or three with commas") from error
    return sizes * 3 if len(sizes) == 1 else sizes
