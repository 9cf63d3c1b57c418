"""One system of the loader benchmark, in a process of its own: prints what it delivered and what that cost, as JSON.

python benchmarks/loader_child.py SYSTEM DATA --workers N --batches K

A batch is 4 clips. The consumer copies codes and scale of each batch into memory that it keeps (what a copy to a pinned
buffer or a device does), unless --untouched. The clock starts after 12 batches, with all workers running, and counts
the processor seconds of this process and all its descendants, living and dead.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH, FRAMES, SEED = 4, 20, 5
WARM = 12
TICK = os.sysconf("SC_CLK_TCK")


def ours(data: Path, workers: int, shuffled: bool, verify: bool = True) -> Iterator[tuple[Any, Any]]:
    """Yield batches of this project's loader: 20-frame clips out of 128-frame segments."""
    from fmri_scale.config import DataConfig
    from fmri_scale.data import ClipStream
    from sharding.corpus import open_corpus

    config = DataConfig(num_readers=workers, shuffle_block=0 if shuffled else 1, verify=verify, prefetch_mb=160)
    for batch in ClipStream(open_corpus(data / "corpus"), config, FRAMES, BATCH, BATCH, seed=SEED):
        yield batch.codes, batch.scale


def unverified(data: Path, workers: int, shuffled: bool) -> Iterator[tuple[Any, Any]]:
    """Yield batches of this project's loader without checksums, to see what they cost."""
    return ours(data, workers, shuffled, verify=False)


def webdataset_clips(data: Path, workers: int, shuffled: bool) -> Iterator[tuple[Any, Any]]:
    """Yield batches of stock webdataset, decoded and batched by it, from tars of one clip per sample."""
    return _webdataset(sorted((data / "clips").glob("*.tar")), workers, shuffled)


def webdataset_segments(data: Path, workers: int, shuffled: bool) -> Iterator[tuple[Any, Any]]:
    """Yield whole segments of 128 frames, one per batch, by stock webdataset from our own shards."""
    return _webdataset(sorted((data / "corpus" / "shards").glob("*.tar")), workers, shuffled, 1)


def _webdataset(tars: list[Path], workers: int, shuffled: bool, batch: int = BATCH) -> Iterator[tuple[Any, Any]]:
    import webdataset as wds

    def collate(samples: list[tuple[Any, ...]]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.stack(column)) for column in zip(*samples, strict=True)]

    pipeline = wds.WebDataset([str(tar) for tar in tars], shardshuffle=False).repeat()
    if shuffled:
        pipeline = pipeline.shuffle(16, seed=SEED)
    pipeline = pipeline.decode().to_tuple("bold.npy", "scale.npy").batched(batch, collation_fn=collate)
    yield from wds.WebLoader(pipeline, batch_size=None, num_workers=workers)


def mosaic(data: Path, workers: int, shuffled: bool) -> Iterator[tuple[Any, Any]]:
    """Yield batches of mosaicml-streaming."""
    from streaming import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(local=str(data / "mds"), shuffle=shuffled, batch_size=BATCH, shuffle_seed=SEED)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
    while True:
        for batch in loader:
            yield batch["bold"], batch["scale"]


def litdata(data: Path, workers: int, shuffled: bool) -> Iterator[tuple[Any, Any]]:
    """Yield batches of litdata."""
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(data / "litdata"), shuffle=shuffled, seed=SEED)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
    while True:
        for batch in loader:
            yield batch["bold"], batch["scale"]


def energon(data: Path, workers: int, shuffled: bool) -> Iterator[tuple[Any, Any]]:
    """Yield batches of megatron-energon from the tars of one clip per sample."""
    from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, basic_sample_keys, get_loader, stateless
    from megatron.energon import get_train_dataset as make

    @stateless
    def cook(sample: Any) -> dict[str, Any]:
        return {**basic_sample_keys(sample), "bold": sample["bold.npy"], "scale": sample["scale.npy"]}

    class Encoder(DefaultTaskEncoder):
        cookers = (Cooker(cook),)

        @stateless
        def encode_sample(self, sample: Any) -> Any:
            return sample

        @stateless
        def batch(self, samples: list[Any]) -> Any:
            return {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in ("bold", "scale")}

        @stateless
        def encode_batch(self, batch: Any) -> Any:
            return batch

    folder = data / "clips"
    if not (folder / ".nv-meta" / "dataset.yaml").exists():
        tool = Path(sys.executable).with_name("energon")
        options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--no-progress"]
        subprocess.run([str(tool), "prepare", *options, str(folder)], check=True, stdout=subprocess.DEVNULL)
    dataset = make(
        str(folder),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=BATCH,
        shuffle_buffer_size=16 if shuffled else None,
        max_samples_per_sequence=16 if shuffled else None,
        task_encoder=Encoder(),
    )
    for batch in get_loader(dataset):
        yield batch["bold"], batch["scale"]


SYSTEMS = {
    "ours": ours,
    "ours, no checksums": unverified,
    "webdataset": webdataset_clips,
    "webdataset, whole segments": webdataset_segments,
    "mosaicml-streaming": mosaic,
    "litdata": litdata,
    "megatron-energon": energon,
}


def processor_s() -> float:
    """Return the processor seconds of this process and all its descendants so far."""
    parents, own = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(folder.name)] = int(stat[1])
            own[int(folder.name)] = sum(map(int, stat[11:15])) / TICK  # with the children they have waited for
    family, grown = {os.getpid()}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    mine = usage.ru_utime + usage.ru_stime + children.ru_utime + children.ru_stime
    return mine + sum(own[process] for process in family - {os.getpid()})


def main() -> None:
    """Run one system."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batches", type=int, default=120)
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--untouched", action="store_true", help="the consumer does not copy")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begin = time.perf_counter()
    batches = iter(SYSTEMS[args.system](args.data, args.workers, args.shuffled))
    codes, scale = next(batches)
    first_s = time.perf_counter() - begin
    mine, mine_too = torch.empty_like(torch.as_tensor(codes)), torch.empty_like(torch.as_tensor(scale))
    size, wall_s, used_s = 0, 0.0, 0.0
    for number in range(WARM + args.batches):
        if number == WARM:
            wall_s, used_s = time.perf_counter(), processor_s()
        codes, scale = next(batches)
        if not args.untouched:
            mine.copy_(codes)
            mine_too.copy_(scale)
        size += (codes.nbytes + scale.nbytes) * (number >= WARM)
    wall_s, used_s = time.perf_counter() - wall_s, processor_s() - used_s
    print(json.dumps({"bytes": size, "wall_s": wall_s, "processor_s": used_s, "first_batch_s": first_s}), flush=True)
    os._exit(0)  # workers of some systems do not end by themselves


if __name__ == "__main__":
    main()
