"""Which regions does a model use? By occlusion or integrated gradients of a task's head, or by reconstruction error.

fmri-scale attribute release corpus --atlas AAL3.nii.gz --labels labels.tsv --out maps \\
    --task name=sex features.brain=brain.npz target.table=participants.tsv target.column=sex
fmri-scale attribute release corpus --atlas AAL3.nii.gz --method reconstruction --out maps

A region's effect is what its fluctuation in time changes in the score of the truth, on validation people (--final: on
test people), against permuted labels. OUT holds regions.csv, groups.csv, attribution.nii.gz, pictures and
report.html.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from fmri_scale.evaluation.attribution.regions import Regions
    from fmri_scale.evaluation.attribution.runs import RunLibrary
    from fmri_scale.release import Pretrained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("release", metavar="DIR|ORGANISATION/NAME", help="released checkpoint")
    parser.add_argument("runs", metavar="CORPUS|NIFTI", help="corpus, or runs as NIfTI: those behind the features")
    parser.add_argument("--atlas", required=True, type=Path, metavar="NIFTI", help="label image in MNI152 space")
    parser.add_argument("--labels", type=Path, metavar="TSV", help="table with index, name and, optionally, group")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--method", choices=("occlusion", "gradients", "reconstruction"), default="occlusion")
    parser.add_argument("--task", nargs="+", default=[], metavar="TASK.yaml|KEY=VALUE", help="task with one model")
    parser.add_argument("--permutations", type=int, default=1000, metavar="N", help="of labels (default 1000)")
    parser.add_argument("--clips", type=int, default=4, metavar="N", help="most clips of a unit; 0: all (default 4)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="clips at a time (default 4)")
    parser.add_argument("--ratio", type=float, help="reconstruction: share hidden (default: that of training)")
    parser.add_argument("--assume-mni", action="store_true", help="take images as they lie, whatever space they say")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")
    parser.add_argument("--final", action="store_true", help="weigh on test people; opens the test set")


def run(args: argparse.Namespace) -> int:
    """Print the ten first regions to stdout."""
    from fmri_scale.errors import DataError
    from fmri_scale.evaluation.attribution.regions import load_regions
    from fmri_scale.evaluation.attribution.runs import RunLibrary, check_counts
    from fmri_scale.log import configure_logging
    from fmri_scale.release import from_pretrained

    configure_logging()
    check_counts(permutations=args.permutations, clips=args.clips)
    if args.batch_size < 1:
        raise DataError(f"--batch-size {args.batch_size}: expected 1 or more")
    if args.method != "reconstruction" and not args.task:
        raise DataError(f"--method {args.method} weighs regions for a task: give --task TASK.yaml ...")
    model = from_pretrained(args.release, device=args.device)
    regions = load_regions(args.atlas, args.labels, model.mask)
    library = RunLibrary(model, args.runs, args.assume_mni)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.method == "reconstruction":
        table = _reconstruction(args, model, library, regions)
    else:
        table = _attribution(args, model, library, regions)
    print(table.head(10).to_string(index=False))
    print(args.out / "report.html")
    return 0


def _attribution(
    args: argparse.Namespace, model: "Pretrained", library: "RunLibrary", regions: "Regions"
) -> "pd.DataFrame":
    from fmri_scale.evaluation.attribution.report import save_attribution
    from fmri_scale.evaluation.attribution.task import AttributionSettings, attribute
    from fmri_scale.evaluation.tasks import load_task
    from fmri_scale.evaluation.tasks.run import BOOK_FILE

    files = [item for item in args.task if "=" not in item]
    task = load_task(files, [item for item in args.task if "=" in item])
    settings = AttributionSettings(args.method, args.permutations, args.clips, args.batch_size, args.final)
    found = attribute(model, task, library, regions, settings, args.out / BOOK_FILE)
    return save_attribution(found, args.out, f"{task.name} ({args.method})")


def _reconstruction(
    args: argparse.Namespace, model: "Pretrained", library: "RunLibrary", regions: "Regions"
) -> "pd.DataFrame":
    from fmri_scale.evaluation.attribution.reconstruction import errors_of_people
    from fmri_scale.evaluation.attribution.report import save_errors

    errors = errors_of_people(model, library, regions, args.ratio, args.clips, args.batch_size)
    return save_errors(errors, regions, args.out, "Reconstruction by region")
