"""What a plan would make, for a person to read before it is made. In: a plan. Out: text."""

from collections import Counter

from sharding.discover.source import LeftOut
from sharding.discover.summary import describe_left_out
from sharding.format import SPLITS
from sharding.plan import Plan, PlannedRun
from sharding.timing import header_tr, repetition_time

HEADER_TOLERANCE = 0.02
"Relative difference of a header's TR from the one that is used, above which it is pointed out."


def describe_plan(plan: Plan) -> str:
    """Runs, frames, bytes and shards to come, people a split, kinds of images, and what cannot be used."""
    runs = [run for shard in plan.shards for run in shard.runs]
    people = {(run.source.dataset, run.source.subject): run.split for run in runs}
    splits = Counter(people.values())
    kinds = Counter(
        f"{' x '.join(map(str, run.info.shape))} voxels of {' x '.join(f'{mm:.4g}' for mm in run.info.voxel_mm)} mm, "
        f"{run.info.dtype}, {run.info.num_frames} volumes"
        for run in runs
    )
    lines = [
        f"would make {len(plan.shards):,} shards, {plan.num_bytes / 2**30:.2f} GiB: {len(runs):,} runs of "
        f"{len(people):,} people, {plan.num_frames:,} frames",
        "people: " + ", ".join(f"{name} {splits[name]:,}" for name in SPLITS),
        *(f"images: {count:,} of {kind}" for kind, count in kinds.most_common(8)),
        *([f"images: {len(kinds) - 8:,} more kinds"] if len(kinds) > 8 else []),
        *_times(runs),
        *describe_left_out([LeftOut(r.source.path, _reason(r.reason), r.status == "failed") for r in plan.rejected]),
    ]
    return "\n".join(lines)


def _times(runs: list[PlannedRun]) -> list[str]:
    """Repetition times, and where a header says another than what is used."""
    used = [repetition_time(run.info, run.source.tr)[0] for run in runs]
    counts = Counter(used).most_common(8)
    lines = [
        "TR: " + ", ".join(f"{tr:g} s {count:,}" for tr, count in counts) + (", ..." if len(set(used)) > 8 else "")
    ]
    unlike = [
        (run, tr)
        for run, tr in zip(runs, used, strict=True)
        if (said := header_tr(run.info)) and abs(said - tr) > HEADER_TOLERANCE * tr
    ]
    if unlike:
        run, tr = unlike[0]
        lines.append(
            f"LOOK: {len(unlike):,} headers say another TR than their sidecar, table or --tr, which is used, such as "
            f"{header_tr(run.info):g} s, not {tr:g} s, of {run.source.alias or run.source.path}"
        )
    return lines


def _reason(reason: str) -> str:
    """A reason without the file that it begins with, so that like ones are counted together."""
    return reason.split(": ", 1)[-1]
