"""The loader at a scale that no test machine has, simulated with made-up indexes.

python benchmarks/loader_scale.py [--data DIR] [--steps 100000]

plan    28 million frames (218,750 samples of 128), 1,024 ranks: time to open the index and make the plan, memory it
        takes, time of a lookup; that the ranks of a step together read each clip of it once.
first   a corpus of 1.2 TB in sparse files (frames are zeros, checksums are right): seconds from nothing to the first
        batch, every frame of it verified.
memory  100,000 steps of tiny clips through one reader process: memory of both processes, step by step.

Each runs in a process of its own. Writes benchmarks/results/loader_scale_MACHINE.json and .md.
"""

import argparse
import gc
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

import numpy as np
from machine import processor, slug  # beside this file

ROOT = Path(__file__).resolve().parents[1]
RANKS, GLOBAL_BATCH = 1024, 8192
PER_SHARD = 32


def main() -> None:
    """Run all parts, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/tmp/fmri_scale_loader_scale"))
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args)))
        return
    make_corpus(args.data / "plan", 218_750, sparse=False)
    make_corpus(args.data / "first", 34_500, sparse=True)
    record: dict[str, Any] = {"date": str(date.today()), "machine": processor(), "load_before": os.getloadavg()[0]}
    for part in PARTS:
        command = [sys.executable, __file__, "--part", part, "--data", str(args.data), "--steps", str(args.steps)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            raise SystemExit(f"{part} failed:\n{done.stderr}")
        record[part] = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"loader_scale_{slug()}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(record))
    print(report(record))


def plan_part(args: argparse.Namespace) -> dict[str, Any]:
    """Open the index of 28 million frames as one rank of 1,024 does."""
    import torch  # noqa: F401  (a rank has it anyway, so it does not count as the loader's memory)

    from fmri_scale.data.plan import Order, Plan, share
    from fmri_scale.data.table import sample_table
    from sharding.corpus import open_corpus

    gc.collect()
    before, before_peak = resident_mb(), peak_mb()
    begin, used = time.perf_counter(), time.process_time()
    table = sample_table([open_corpus(args.data / "plan", check_shards=False)])
    plan = Plan(table, Order(num_frames=20, seed=1))
    rank = RANKS - 1
    micro = GLOBAL_BATCH // RANKS
    first = plan.clips(share(0, micro, rank, RANKS, range(1)).ravel())
    found: dict[str, Any] = {
        "start_s": time.perf_counter() - begin,
        "start_processor_s": time.process_time() - used,
        "peak_mb": peak_mb() - before_peak,
        "clips_per_epoch": plan.pools[0].num_clips,
        "frames": int(table.n_frames.sum(dtype=np.int64)),
    }
    gc.collect()
    found["resident_mb"] = resident_mb() - before
    positions = share(10**9, micro, rank, RANKS, range(64)).ravel()
    found["lookup_us"] = per_item(lambda: plan.clips(positions), len(positions))
    singles = np.random.default_rng(0).integers(0, 10**9, 2000).tolist()
    for position in singles[:10]:
        plan.clip(position)
    epoch = plan.pools[0].num_clips
    singles = [3 * epoch + position % epoch for position in singles]
    found["single_lookup_us"] = per_item(lambda: [plan.clip(position) for position in singles], len(singles))
    lanes = Plan(table, Order(num_frames=20, seed=1, lanes=1024, block=512))
    found["lookup_in_lanes_us"] = per_item(lambda: lanes.clips(positions), len(positions))
    step = [plan.clips(share(7 * GLOBAL_BATCH, micro, r, RANKS, range(1)).ravel()).clip_id for r in range(RANKS)]
    whole = plan.clips(np.arange(7 * GLOBAL_BATCH, 8 * GLOBAL_BATCH)).clip_id
    found["ranks_read_the_step_once"] = bool(np.array_equal(np.concatenate(step), whole))
    epoch_ids = plan.clips(np.arange(epoch)).clip_id
    found["epoch_has_each_clip_once"] = bool(np.unique(epoch_ids).size == epoch == len(epoch_ids))
    assert len(first.clip_id) == micro
    return found


def first_part(args: argparse.Namespace) -> dict[str, Any]:
    """Open 1.2 TB and read the first batch, then go on in the middle of the stream."""
    import torch  # noqa: F401

    from fmri_scale.config import DataConfig
    from fmri_scale.data import ClipStream, check_ranks, open_corpora  # noqa: F401

    found: dict[str, Any] = {}
    for readers in (0, 2):
        config = DataConfig(corpus=str(args.data / "first"), num_readers=readers)
        begin, used = time.perf_counter(), time.process_time()
        stream = ClipStream(open_corpora(config), config, 20, 8, 4)
        opened = time.perf_counter() - begin
        batch = next(stream)
        found[f"first_batch_s_{readers}_readers"] = time.perf_counter() - begin
        found[f"open_s_{readers}_readers"] = opened
        found[f"processor_s_{readers}_readers"] = time.process_time() - used
        state = {**stream.state_dict(), "position": 987_654_320}
        begin = time.perf_counter()
        stream.load_state_dict(state)
        batch = next(stream)
        found[f"resume_to_first_batch_s_{readers}_readers"] = time.perf_counter() - begin
        assert batch.position.tolist()[0] == 987_654_320
        stream.close()
    found["terabytes"] = sum(shard.num_bytes for shard in stream.table.shards) / 1e12
    return found


def memory_part(args: argparse.Namespace) -> dict[str, Any]:
    """Take many steps and watch the memory of the rank and its reader."""
    import torch  # noqa: F401

    from fmri_scale.config import DataConfig
    from fmri_scale.data import ClipStream
    from sharding.corpus import open_corpus

    make_corpus(args.data / "tiny", 64, sparse=True, voxels=500)
    before = resident_mb()
    config = DataConfig(num_readers=1, prefetch_mb=8)
    stream = ClipStream(open_corpus(args.data / "tiny"), config, 20, 4, 4)
    reader = stream._slots._pool.readers[0].process.pid
    ring_mb = stream._slots.ring.address[1] / 1e6
    rows = []
    for step in range(args.steps):
        if step % (args.steps // 10) == 0 or step == 1000:
            rows.append((step, resident_mb() - before, resident_mb(reader)))
        next(stream)
        stream.advance(4)
    rows.append((args.steps, resident_mb() - before, resident_mb(reader)))
    stream.close()
    return {"ring_mb": ring_mb, "steps": args.steps, "step_rank_mb_reader_mb": rows}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "plan": plan_part,
    "first": first_part,
    "memory": memory_part,
}


def make_corpus(folder: Path, samples: int, sparse: bool, voxels: int = 0) -> None:
    """Write an index of samples of 128 frames; `sparse`: and shards, whose frames are holes with right checksums."""
    import nibabel as nib
    import pyarrow as pa
    import pyarrow.parquet as pq
    import xxhash

    from sharding.format import GRID_AFFINE, INDEX_SCHEMA, SCHEMA_VERSION
    from sharding.mask import brain_mask, mask_sha256
    from sharding.write import npy_bytes

    if (folder / "corpus.json").exists():
        return
    (folder / "shards").mkdir(parents=True)
    mask = brain_mask().copy()
    if voxels:
        mask.ravel()[np.flatnonzero(mask)[voxels:]] = False
    v = int(mask.sum())
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), GRID_AFFINE), folder / "mask.nii.gz")
    codes = npy_bytes(np.zeros((128, v), np.int8))[:128]
    hashes = npy_bytes(np.full(128, xxhash.xxh3_64_intdigest(bytes(v)), np.uint64))
    planes = npy_bytes(np.zeros((2, v), np.float16))
    sizes = {"bold": 128 + 128 * v, "frame_xxh3": len(hashes), "json": 2, "scale": len(planes), "stats": len(planes)}
    offsets, at = {}, 0
    for name, size in sizes.items():
        offsets[name], at = at + 512, at + 512 + -(-size // 512) * 512
    number = np.arange(samples)
    within, shard = number % PER_SHARD, number // PER_SHARD
    columns: dict[str, Any] = {
        "shard": [f"s-{i:06d}.tar" for i in shard],
        "key": [f"d__sub-{i // 8:06d}_run-{i % 8}__{128 * (i % 4):06d}" for i in number],
        "start_frame": 128 * (number % 4),
        "n_frames": np.full(samples, 128),
        "subject": [f"{i // 8:06d}" for i in number],
        **{name: np.full(samples, value) for name, value in (("unit", 1.0), ("mean", 5.0), ("sd", 2.0))},
        **{name: np.full(samples, value) for name, value in (("tr", 0.8), ("background", -2.5))},
        **{name: [value] * samples for name, value in (("dataset", "d"), ("split", "train"))},
        **{name: [""] * samples for name in ("session", "run", "task", "family")},
    }
    content = {"frame_xxh3": hashes, "scale": planes, "stats": planes, "bold": codes, "json": b"{}"}
    for name, size in sizes.items():
        columns[f"{name}_offset"] = within * at + offsets[name]
        columns[f"{name}_bytes"] = np.full(samples, size)
        columns[f"{name}_xxh3"] = np.full(samples, xxhash.xxh3_64_intdigest(content[name]), np.uint64)
    columns["key"] = [f"{key}_{i:06d}" for i, key in zip(number, columns["key"], strict=True)]
    arrays = [pa.array(columns[field.name], field.type) for field in INDEX_SCHEMA]
    pq.write_table(pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA), folder / "index.parquet")
    shards = [
        {"name": f"s-{i:06d}.tar", "bytes": PER_SHARD * at, "sha256": "0" * 64} for i in range(int(shard[-1]) + 1)
    ]
    if sparse:
        for entry in shards:
            with (folder / "shards" / entry["name"]).open("wb") as file:
                file.truncate(entry["bytes"])
                for place in range(PER_SHARD):
                    for name in ("bold", "frame_xxh3", "scale"):
                        header = (
                            codes if name == "bold" else content[name][: len(hashes) if name == "frame_xxh3" else 128]
                        )
                        os.pwrite(file.fileno(), header, place * at + offsets[name])
    meta = {
        "schema_version": SCHEMA_VERSION,
        "corpus_id": xxhash.xxh3_128_hexdigest(str(folder).encode()),
        "mask": {"voxels": v, "sha256": mask_sha256(mask)},
        "tr": 0.8,
        "shards": shards,
        "totals": {"samples": samples, "frames": 128 * samples},
    }
    (folder / "corpus.json").write_text(json.dumps(meta))


def resident_mb(process: int | str = "self") -> float:
    """Return the anonymous memory of a process, in MB.

    Neither the ring (shared) nor pages of files are in it: those become private when another process that maps the
    same library ends, which says nothing of this one.
    """
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def peak_mb() -> float:
    """Return the most memory this process ever had, less what files and shared memory account for, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "RssFile", "RssShmem"))
    }
    return (found["VmHWM"] - found["RssFile"] - found["RssShmem"]) / 1024


def per_item(action: Callable[[], Any], items: int) -> float:
    """Return microseconds of processor time per item, the best of seven."""
    best = float("inf")
    for _ in range(7):
        begin = time.process_time()
        action()
        best = min(best, time.process_time() - begin)
    return best / items * 1e6


def report(record: dict[str, Any]) -> str:
    """Return the record in words."""
    plan, first, memory = record["plan"], record["first"], record["memory"]
    rows = [f"| {step:,} | {rank:.1f} | {reader:.1f} |" for step, rank, reader in memory["step_rank_mb_reader_mb"]]
    return "\n".join(
        [
            f"# Loader at scale, simulated, {record['machine']}, {record['date']}, load {record['load_before']:.1f}",
            "",
            f"## {plan['frames']:,} frames, {plan['clips_per_epoch']:,} clips per epoch, {RANKS:,} ranks",
            "",
            f"- index opened, plan made, first clips known: {plan['start_s']:.2f} s, of which the processor worked "
            f"{plan['start_processor_s']:.2f} s",
            f"- memory of a rank for index and plan: {plan['resident_mb']:.0f} MB, {plan['peak_mb']:.0f} MB at most",
            f"- a lookup: {plan['lookup_us']:.2f} us (512 at a time, as the stream asks), "
            f"{plan['single_lookup_us']:.1f} us one by one, {plan['lookup_in_lanes_us']:.2f} us with 1,024 lanes",
            f"- the ranks of a step read its {GLOBAL_BATCH:,} clips once each: {plan['ranks_read_the_step_once']}; "
            f"an epoch has each clip once: {plan['epoch_has_each_clip_once']}",
            "",
            f"## {first['terabytes']:.2f} TB of shards",
            "",
            f"- to the first verified batch: {first['first_batch_s_0_readers']:.2f} s in one process, "
            f"{first['first_batch_s_2_readers']:.2f} s with two readers",
            f"- resumed at clip 987,654,320: {first['resume_to_first_batch_s_0_readers']:.3f} s and "
            f"{first['resume_to_first_batch_s_2_readers']:.3f} s",
            "",
            f"## Memory over {memory['steps']:,} steps (ring of {memory['ring_mb']:.0f} MB, shared, not counted)",
            "",
            "| step | rank, above its start, MB | reader, MB |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
