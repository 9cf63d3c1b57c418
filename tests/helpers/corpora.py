"""Small corpora of the real format with random content, for tests of what reads them.

The grid is the canonical one, the mask a handful of voxels, so that a corpus of hundreds of samples is written in a
moment. Codes, scales and statistics are random but whole: every checksum and offset is right.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from sharding.format import GRID_AFFINE, GRID_SHAPE, INDEX_SCHEMA, MEMBER_COLUMNS, SCHEMA_VERSION, SUFFIXES
from sharding.mask import mask_sha256
from sharding.write import ShardFile, member_places, npy_bytes


@dataclass(frozen=True)
class Segment:
    """A sample to write."""

    n_frames: int
    dataset: str = "phantom"
    split: str = "train"
    start_frame: int = 0


def small_mask(num_voxels: int) -> np.ndarray:
    """Return a mask on the grid, bool (96, 96, 96), of that many voxels about its middle."""
    mask = np.zeros(GRID_SHAPE, dtype=bool)
    side = int(np.ceil(num_voxels ** (1 / 3)))
    block = np.zeros(side**3, dtype=bool)
    block[:num_voxels] = True
    mask[40 : 40 + side, 40 : 40 + side, 40 : 40 + side] = block.reshape(side, side, side)
    return mask


def write_corpus(
    folder: Path,
    segments: list[Segment],
    num_voxels: int = 60,
    samples_per_shard: int = 4,
    seed: int = 0,
    codes: dict[str, np.ndarray] | None = None,
    effect: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Path:
    """Write a corpus; return its folder. Keys are DATASET__sub-NNN__START. `codes`, if given, receives them by key.

    `effect`, if given, makes a sample's codes of its number and random codes.
    """
    rng = np.random.default_rng(seed)
    (folder / "shards").mkdir(parents=True)
    mask = small_mask(num_voxels)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), GRID_AFFINE), folder / "mask.nii.gz")
    by_dataset: dict[str, list[tuple[int, Segment]]] = {}
    for number, segment in enumerate(segments):
        by_dataset.setdefault(segment.dataset, []).append((number, segment))
    rows, shards = [], []
    for dataset in sorted(by_dataset):
        mine = by_dataset[dataset]
        for begin in range(0, len(mine), samples_per_shard):
            name = f"{dataset}-{begin // samples_per_shard:06d}.tar"
            some = mine[begin : begin + samples_per_shard]
            made = [_sample(rng, number, s, num_voxels, codes, effect) for number, s in some]
            rows += _write_shard(folder, name, made, shards)
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: (row["shard"], row["key"])), INDEX_SCHEMA)
    pq.write_table(table, folder / "index.parquet")
    meta = {
        "schema_version": SCHEMA_VERSION,
        "corpus_id": f"{xxhash.xxh3_64_hexdigest(json.dumps(rows, sort_keys=True, default=str).encode()):0>64}",
        "mask": {"voxels": num_voxels, "sha256": mask_sha256(mask)},
        "tr": 0.8,
        "shards": shards,
        "totals": {"samples": len(rows), "frames": sum(row["n_frames"] for row in rows)},
    }
    (folder / "corpus.json").write_text(json.dumps(meta))
    return folder


def _sample(
    rng: np.random.Generator,
    number: int,
    segment: Segment,
    num_voxels: int,
    codes: dict[str, np.ndarray] | None,
    effect: Callable[[int, np.ndarray], np.ndarray] | None,
) -> tuple[str, dict[str, bytes], dict]:
    key = f"{segment.dataset}__sub-{number:05d}__{segment.start_frame:06d}"
    q = rng.integers(-127, 128, (segment.n_frames, num_voxels), dtype=np.int8)
    if effect is not None:
        q = effect(number, q)
    if codes is not None:
        codes[key] = q
    scale = np.stack([rng.uniform(4, 9, num_voxels), rng.uniform(0.001, 0.01, num_voxels)]).astype(np.float16)
    stats = np.stack([rng.uniform(-0.1, 0.1, num_voxels), rng.uniform(0.1, 0.5, num_voxels)]).astype(np.float16)
    hashes = np.array([xxhash.xxh3_64_intdigest(frame.data) for frame in q], dtype=np.uint64)
    facts = {
        "key": key,
        "start_frame": segment.start_frame,
        "n_frames": segment.n_frames,
        "dataset": segment.dataset,
        "subject": f"{number:05d}",
        **dict.fromkeys(("session", "run", "task", "family"), ""),
        "split": segment.split,
        "tr": 0.8,
        "unit": 128.0,
        "mean": 700.0 + number,
        "sd": 110.0,
        "background": -6.0,
    }
    payloads = (npy_bytes(q), npy_bytes(hashes), json.dumps(facts).encode(), npy_bytes(scale), npy_bytes(stats))
    return key, dict(zip(SUFFIXES, payloads, strict=True)), facts


def _write_shard(folder: Path, name: str, samples: list[tuple[str, dict[str, bytes], dict]], shards: list) -> list:
    path = folder / "shards" / name
    with ShardFile(path, folder / "shards") as shard:
        for key, members, _ in sorted(samples, key=lambda sample: sample[0]):
            shard.add(key, members)
        size, sha256 = shard.finish()
    frames = sum(facts["n_frames"] for _, _, facts in samples)
    shards.append({"name": name, "bytes": size, "sha256": sha256, "samples": len(samples), "frames": frames})
    places = member_places(path)
    rows = []
    for key, members, facts in samples:
        row = {**facts, "shard": name}
        for suffix, stem in MEMBER_COLUMNS.items():
            row[f"{stem}_offset"], row[f"{stem}_bytes"] = places[key + suffix]
            row[f"{stem}_xxh3"] = xxhash.xxh3_64_intdigest(members[suffix])
        rows.append(row)
    return rows
