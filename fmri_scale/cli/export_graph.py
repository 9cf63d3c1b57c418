"""Write the encoder of a release as a graph that torch alone runs: no fmri_scale where it is used.

fmri-scale export-graph release --out encoder.pt2
python -c 'import torch; features, latent = torch.export.load("encoder.pt2").module()(clips)'

`clips` are normalised volumes [1 to 64, 1, 96, 96, 96, frames], float32, as `fmri_scale.evaluation.features` makes
them. The graph's numbers are compared with the model's before the file gets its name.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("release", metavar="DIR|ORGANISATION/NAME", help="released checkpoint")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--out", required=True, metavar="FILE.pt2", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def run(args: argparse.Namespace) -> int:
    """Record, compare, write."""
    from fmri_scale.release import from_pretrained
    from fmri_scale.release.graph import export_graph

    deviation = export_graph(from_pretrained(args.release, revision=args.revision), args.out, args.overwrite)
    print(f"{args.out}: relative deviation from the model {deviation:.1e}")
    return 0
