"""Turn a training run into a released checkpoint: a folder that `fmri_scale.from_pretrained` loads.

fmri-scale export runs/base --out release                     newest whole checkpoint of a run
fmri-scale export runs/base/checkpoints/step_00000500 --out release --encoder-only --dtype bf16
"""

import argparse

from fmri_scale.release.weights import DTYPES, WEIGHTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="RUN", help="run folder, or the folder of one checkpoint in it")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a release that is there")
    parser.add_argument("--encoder-only", action="store_true", help="leave the decoder and the mask tokens out")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="of the stored weights (default fp32)")
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="auto",
        help="ema: their moving average (optim.ema_decay); raw: of the last step; auto (default): ema if there is one",
    )
    parser.add_argument("--name", default="", help="title of the model card (default: the run folder's name)")
    parser.add_argument("--licence", default="", help="licence of the weights as the hub names it, e.g. cc-by-4.0")


def run(args: argparse.Namespace) -> int:
    """Write the release and say what it is."""
    from fmri_scale.release.checksums import identity
    from fmri_scale.release.export import ExportSettings, export

    settings = ExportSettings(
        contents="encoder" if args.encoder_only else "autoencoder",
        dtype=args.dtype,
        weights=args.weights,
        name=args.name,
        licence=args.licence,
    )
    out = export(args.source, args.out, settings, args.overwrite)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {settings.contents}, {size / 1e6:.1f} MB, release {identity(out)[:12]}")
    return 0
