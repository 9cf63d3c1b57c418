"""Upload a release to the Hugging Face hub as one commit; anyone then loads it by name.

fmri-scale push release my-lab/brain-base --tag v1 --private
python -c 'import fmri_scale; fmri_scale.from_pretrained("my-lab/brain-base", revision="v1")'

Needs the extra `hub` (pip install 'fmri-scale[hub]') and a token that may write (`hf auth login`, or HF_TOKEN).
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("release", metavar="DIR", help="folder made by fmri-scale export or import-neurostorm")
    parser.add_argument("name", metavar="ORGANISATION/NAME", help="repository; made if it does not exist")
    parser.add_argument("--tag", help="name for this version, e.g. v1")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made now")
    parser.add_argument("--message", help="of the commit")


def run(args: argparse.Namespace) -> int:
    """Push and print the commit."""
    from fmri_scale.release.hub import push_to_hub

    commit = push_to_hub(args.release, args.name, private=args.private, tag=args.tag, message=args.message)
    print(f'{args.name} at {commit}: fmri_scale.from_pretrained("{args.name}", revision="{args.tag or commit}")')
    return 0
