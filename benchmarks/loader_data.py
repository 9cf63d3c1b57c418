"""The data of the loader benchmark: one set of random int8 clips in the layout of every system that is compared.

python benchmarks/loader_data.py FOLDER SYSTEM... [--segments 16]

SYSTEM is corpus (ours: segments of 128 frames of the real mask), clips (webdataset tars of one clip per sample, for
webdataset and megatron-energon), mds (mosaicml-streaming) or litdata. Every clip has 20 frames of codes and its scale,
so all systems deliver the same bytes per clip. What is there is kept.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FRAMES = 20
CLIPS = 6
"Clips of a segment."


def main() -> None:
    """Write what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("systems", nargs="+", choices=sorted(WRITERS))
    parser.add_argument("--segments", type=int, default=16)
    args = parser.parse_args()
    for system in args.systems:
        target = args.folder / system
        if not (target / "done").exists():
            target.mkdir(parents=True, exist_ok=True)
            WRITERS[system](target, args.segments)
            (target / "done").write_text("")


def segments(count: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield number, codes int8 [128, V] and scale float16 [2, V] of random segments, the same at every call."""
    from sharding.mask import brain_mask

    voxels = int(brain_mask().sum())
    for number in range(count):
        rng = np.random.default_rng(number)
        codes = rng.integers(-127, 128, (128, voxels), dtype=np.int8)
        scale = np.stack([rng.uniform(4, 9, voxels), rng.uniform(0.001, 0.01, voxels)]).astype(np.float16)
        yield number, codes, scale


def clips(count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, codes int8 [20, V] and scale of the clips of the segments."""
    for number, codes, scale in segments(count):
        for clip in range(CLIPS):
            yield f"sub-{number:05d}_{clip}", codes[clip * FRAMES : (clip + 1) * FRAMES].copy(), scale


def write_corpus(folder: Path, count: int) -> None:
    """Write a corpus of the real format, as fmri-shards build would."""
    import nibabel as nib
    import pyarrow as pa
    import pyarrow.parquet as pq
    import xxhash

    from sharding.format import GRID_AFFINE, INDEX_SCHEMA, MEMBER_COLUMNS, SCHEMA_VERSION, SUFFIXES
    from sharding.mask import brain_mask, mask_sha256
    from sharding.write import ShardFile, member_places, npy_bytes

    (folder / "shards").mkdir(exist_ok=True)
    mask = brain_mask()
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), GRID_AFFINE), folder / "mask.nii.gz")
    rows: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    shard: ShardFile | None = None
    for number, codes, scale in segments(count):
        if number % 8 == 0:
            name = f"bench-{number // 8:06d}.tar"
            shard = ShardFile(folder / "shards" / name, folder / "shards")
        assert shard is not None
        key = f"bench__sub-{number:05d}__000000"
        hashes = np.array([xxhash.xxh3_64_intdigest(frame.data) for frame in codes], np.uint64)
        facts = {"key": key, "start_frame": 0, "n_frames": 128, "dataset": "bench", "subject": str(number)}
        facts |= dict.fromkeys(("session", "run", "task", "family"), "") | {"split": "train", "tr": 0.8}
        facts |= {"unit": 128.0, "mean": 700.0, "sd": 110.0, "background": -6.0}
        payloads = (npy_bytes(codes), npy_bytes(hashes), json.dumps(facts).encode(), npy_bytes(scale), npy_bytes(scale))
        members = dict(zip(SUFFIXES, payloads, strict=True))
        shard.add(key, members)
        row = {**facts, "shard": name}
        row |= {f"{stem}_xxh3": xxhash.xxh3_64_intdigest(members[suffix]) for suffix, stem in MEMBER_COLUMNS.items()}
        rows.append(row)
        if number % 8 == 7 or number == count - 1:
            size, sha256 = shard.finish()
            shards.append({"name": name, "bytes": size, "sha256": sha256})
            places = member_places(folder / "shards" / name)
            for row in rows:
                if row["shard"] == name:
                    for suffix, stem in MEMBER_COLUMNS.items():
                        row[f"{stem}_offset"], row[f"{stem}_bytes"] = places[row["key"] + suffix]
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), folder / "index.parquet")
    meta = {
        "schema_version": SCHEMA_VERSION,
        "corpus_id": hashlib.sha256(repr(shards).encode()).hexdigest(),
        "mask": {"voxels": int(mask.sum()), "sha256": mask_sha256(mask)},
        "tr": 0.8,
        "shards": shards,
        "totals": {"samples": len(rows), "frames": 128 * len(rows)},
    }
    (folder / "corpus.json").write_text(json.dumps(meta))


def write_clips(folder: Path, count: int) -> None:
    """Write webdataset tars of one clip per sample, and what megatron-energon wants beside them where it is there."""
    import webdataset as wds

    writer = None
    for number, (name, codes, scale) in enumerate(clips(count)):
        if number % 48 == 0:
            if writer is not None:
                writer.close()
            writer = wds.TarWriter(str(folder / f"clips-{number // 48:04d}.tar"))
        writer.write({"__key__": name, "bold.npy": codes, "scale.npy": scale})
    writer.close()


def write_mds(folder: Path, count: int) -> None:
    """Write mosaicml-streaming's format."""
    from streaming import MDSWriter

    columns = {"bold": "ndarray:int8", "scale": "ndarray:float16"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 28) as writer:
        for _, codes, scale in clips(count):
            writer.write({"bold": codes, "scale": scale})


def write_litdata(folder: Path, count: int) -> None:
    """Write litdata's format with its own writer."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=1 << 28)
    for number, (_, codes, scale) in enumerate(clips(count)):
        writer[number] = {"bold": codes, "scale": scale}
    writer.done()
    writer.merge()


WRITERS = {"corpus": write_corpus, "clips": write_clips, "mds": write_mds, "litdata": write_litdata}

if __name__ == "__main__":
    main()
