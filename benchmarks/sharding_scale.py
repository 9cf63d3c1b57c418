"""Planning, indexing and inspecting a corpus of 50,000 people, two runs each, 28 million frames, without its shards.

python benchmarks/sharding_scale.py [--subjects 50000] [--work DIR]

Discovery and planning meet a real tree: a folder a person, a NIfTI file and a sidecar a run, all hard links to a few
files that are holes behind their headers. Then no shard is made: each gets the record that making it would have left
(rows made up, places those of the format) and a hole of its size. Indexing reads the records and writes the tables and
corpus.json; opening looks at every shard; inspect and append's first look read the tables. Each part runs in a
process of its own; its wall and processor seconds and peak memory are told. Writes results/sharding_scale_MACHINE.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from machine import processor, slug  # noqa: E402
from sharding_speed import peak_mb  # noqa: E402

RUNS, FRAMES = 2, 280
LINKS = 60_000
"Most names of one file on ext4, with room."
GOAL_S, GOAL_MB = 60, 2000


def main() -> None:
    """Run all parts, print and write; with `--part`, be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=50_000)
    parser.add_argument("--work", type=Path, default=Path("/tmp/fmri_scale_sharding_scale"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args)))
        return
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    make_tree(args.work / "tree", args.subjects)
    record = {"machine": processor(), "date": str(date.today()), "load": os.getloadavg()[0], "subjects": args.subjects}
    record["parts"] = {part: _run(args, part) for part in PARTS}
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"sharding_scale_{slug()}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))
    shutil.rmtree(args.work)


def _run(args: argparse.Namespace, part: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", str(args.work), "--subjects", str(args.subjects), "--part", part]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(f"{part}: {said.splitlines()[-1]}", flush=True)
    return json.loads(said.splitlines()[-1])


def timed(action: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Do something; return what it gives, and what it took."""
    wall, processor = time.perf_counter(), time.process_time()
    given = action()
    took = {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - processor}
    return given, {**took, "peak_mb": peak_mb()}


def plan_part(args: argparse.Namespace) -> dict[str, Any]:
    """Find and plan all runs; leave records and holes for the parts to come (not timed)."""
    from sharding.discover import find_runs
    from sharding.plan import BuildSettings, plan_build

    found, finding = timed(lambda: find_runs([args.work / "tree"], dataset="d"))
    plan, planning = timed(lambda: plan_build(*found, BuildSettings()))
    runs = sum(len(shard.runs) for shard in plan.shards)
    assert runs == args.subjects * RUNS, (runs, plan.rejected[:1])
    out = args.work / "corpus"
    (out / ".build").mkdir(parents=True)
    (out / "shards").mkdir()
    for shard in plan.shards:
        make_up(shard, out)
    return {
        "finding": finding,
        "planning": planning,
        "runs": runs,
        "frames": plan.num_frames,
        "shards": len(plan.shards),
        "terabytes": plan.num_bytes / 1e12,
    }


def index_part(args: argparse.Namespace) -> dict[str, Any]:
    """Read the records, write the corpus' files."""
    from sharding.finish import Shards, write_corpus_files
    from sharding.plan import BuildSettings

    out = args.work / "corpus"

    def finish() -> Shards:
        records = sorted((out / ".build").glob("*.json"))
        shards = Shards(None, records, (), (), len(records))
        write_corpus_files(out, ["0" * 64], BuildSettings(), shards)
        return shards

    shards, indexing = timed(finish)
    size = {name: (out / name).stat().st_size / 1e6 for name in ("index.parquet", "runs.parquet", "corpus.json")}
    return {"indexing": indexing, "samples": shards.num_samples, "mb": size}


def open_part(args: argparse.Namespace) -> dict[str, Any]:
    """Open the corpus, with a look at every shard."""
    from sharding.corpus import open_corpus

    return {"opening": timed(lambda: open_corpus(args.work / "corpus"))[1]}


def inspect_part(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the corpus."""
    from sharding.corpus import open_corpus
    from sharding.inspect import describe

    text, inspecting = timed(lambda: describe(open_corpus(args.work / "corpus")))
    assert f"{args.subjects * RUNS * FRAMES:,} frames" in text or f"{args.subjects * RUNS * FRAMES:,} (" in text, text
    return {"inspecting": inspecting}


def append_part(args: argparse.Namespace) -> dict[str, Any]:
    """Find that everything is in the corpus already."""
    from sharding.append import append_corpus
    from sharding.discover import find_runs
    from sharding.errors import InputError

    def again() -> str:
        try:
            append_corpus(*find_runs([args.work / "tree"], dataset="d"), args.work / "corpus")
        except InputError as error:
            return str(error)
        return ""

    said, looking = timed(again)
    assert "nothing to add" in said, said
    return {"appending nothing": looking}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "plan": plan_part,
    "index": index_part,
    "open": open_part,
    "inspect": inspect_part,
    "append": append_part,
}


def make_tree(folder: Path, subjects: int) -> None:
    """Make a BIDS derivatives tree of links to a few images that are holes, and to one sidecar."""
    import nibabel as nib
    import numpy as np

    folder.mkdir(parents=True)
    (folder / "dataset_description.json").write_text(
        '{"Name": "d", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}'
    )
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-96.0, -132.0, -78.0]
    image = nib.Nifti1Image(np.zeros((1, 1, 1, 1), dtype=np.int16), affine)
    image.header.set_data_shape((97, 115, 97, FRAMES))
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 0.8
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=4)
    image.header["vox_offset"] = 352
    templates = folder.with_name("templates")
    templates.mkdir()
    for number in range(-(-subjects * RUNS // LINKS)):
        with (templates / f"{number}.nii").open("wb") as file:
            file.write(image.header.binaryblock + bytes(4))
            file.truncate(352 + 97 * 115 * 97 * FRAMES * 2)
        (templates / f"{number}.json").write_text('{"RepetitionTime": 0.8}')
    for number, (person, run) in enumerate(itertools.product(range(subjects), range(1, RUNS + 1))):
        func = folder / f"sub-{person:06d}" / "func"
        func.mkdir(parents=True, exist_ok=True)
        stem = f"sub-{person:06d}_task-rest_run-{run}_space-MNI152NLin2009cAsym_desc-preproc_bold"
        for ending in ("nii", "json"):
            os.link(templates / f"{number // LINKS}.{ending}", func / f"{stem}.{ending}")


def make_up(shard: Any, out: Path) -> None:
    """Leave what making a shard would have left, but for its bytes."""
    from sharding.engine import unit
    from sharding.format import MEMBER_COLUMNS, SEGMENT_FRAMES, num_codes_bytes
    from sharding.keys import sample_key
    from sharding.mask import brain_mask
    from sharding.shard import run_facts
    from sharding.tar import BLOCK, end_bytes, padding

    voxels = int(brain_mask().sum())
    index, runs, at = [], [], 0
    measured = dict.fromkeys(
        ("tsnr_median", "dvars_median", "clipped_fraction", "outside_fov", "int8_corr_median"), 0.5
    )
    said = {"source_orientation": "RAS", "source_tr": 0.8, "tr": 0.8, "geometry": "exact", "space": "file name"}
    for run in shard.runs:
        source = run.source
        names = ("dataset", "subject", "session", "run", "task", "family")
        who = {**{name: getattr(source, name) for name in names}, "split": run.split, "tr": 0.8}
        for start in range(0, run.num_frames, SEGMENT_FRAMES):
            n_frames = min(SEGMENT_FRAMES, run.num_frames - start)
            sizes = {"bold": num_codes_bytes(n_frames, voxels), "frame_xxh3": 128 + 8 * n_frames, "json": 400}
            sizes |= {"scale": 128 + 4 * voxels, "stats": 128 + 4 * voxels}
            row = {**who, "shard": shard.name, "key": sample_key(source, start), "start_frame": start}
            row |= {"n_frames": n_frames, "unit": 128.0, "mean": 700.0 + at % 97, "sd": 110.0, "background": -6.0}
            for stem in MEMBER_COLUMNS.values():
                row[f"{stem}_offset"], row[f"{stem}_bytes"] = at + BLOCK, sizes[stem]
                row[f"{stem}_xxh3"] = hash((shard.name, at, stem)) % 2**64
                at += BLOCK + sizes[stem] + padding(sizes[stem])
            index.append(row)
        found = {**measured, **said, "frames": run.num_frames, "shard": shard.name}
        runs.append({**run_facts(source, "ok", "", run), **found})
    size = at + end_bytes(at)
    with (out / "shards" / shard.name).open("wb") as file:
        file.truncate(size)
    facts = {"name": shard.name, "digest": shard.digest, "bytes": size, "sha256": "0" * 64}
    unit.write_whole = lambda path, data: path.write_bytes(data)  # type: ignore[assignment]  # no need to outlive a power cut
    unit.write_record(out / ".build", {**facts, "index": index, "runs": runs})


def report(record: dict[str, Any]) -> str:
    """Return the record in words."""
    plan, parts = record["parts"]["plan"], record["parts"]
    lines = [
        f"# Sharding at scale, {record['machine']}, {record['date']}, load {record['load']:.1f}",
        "",
        f"{record['subjects']:,} people, {plan['runs']:,} runs, {plan['frames']:,} frames, "
        f"{parts['index']['samples']:,} samples in {plan['shards']:,} shards of {plan['terabytes']:.1f} TB that were "
        "not written.",
        f"Goal for planning, indexing and inspect together: {GOAL_S} s and {GOAL_MB} MB.",
        "",
        "| | seconds | of the processor | peak memory, MB |",
        "|---|---|---|---|",
    ]
    for part in parts.values():
        for name, took in part.items():
            if isinstance(took, dict) and "wall_s" in took:
                lines.append(f"| {name} | {took['wall_s']:.1f} | {took['processor_s']:.1f} | {took['peak_mb']:.0f} |")
    counted = [plan["planning"], parts["index"]["indexing"], parts["inspect"]["inspecting"]]
    lines.append(
        f"| planning, indexing, inspecting | {sum(took['wall_s'] for took in counted):.1f} | "
        f"{sum(took['processor_s'] for took in counted):.1f} | {max(took['peak_mb'] for took in counted):.0f} |"
    )
    mb = ", ".join(f"{name} {size:.0f} MB" for name, size in parts["index"]["mb"].items())
    return "\n".join([*lines, "", f"On disk: {mb}.", ""])


if __name__ == "__main__":
    main()
