"""A rank that reads clips as training does, and nothing else: python -m tests.helpers.consumer CORPUS DIR STEPS MICRO.

RANK, WORLD_SIZE, PHASE and, as JSON, SETTINGS of section `data` come from the environment. An error of the data is
printed, exit code 2. Every clip is written to DIR/clips_PHASE_RANK.txt as it comes;
every third step all ranks compare notes and rank 0 saves the stream's state to DIR/state.json. At STEPS rank 0 writes
DIR/done.json.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream, check_ranks
from fmri_scale.errors import DataError
from sharding.corpus import open_corpus

GLOBAL_BATCH = 24


def main(corpus: str, folder: str, steps: str, micro: str) -> None:
    out, rank, world = Path(folder), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    phase = os.environ["PHASE"]
    store = dist.FileStore(str(out / f"store_{phase}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    config = DataConfig(num_readers=2, prefetch_mb=1, **json.loads(os.environ.get("SETTINGS", "{}")))
    stream = ClipStream(open_corpus(corpus), config, 20, GLOBAL_BATCH, int(micro), rank, world, seed=11)
    if (out / "state.json").exists():
        stream.load_state_dict(json.loads((out / "state.json").read_text()))
    check_ranks(stream)
    with (out / f"clips_{phase}_{rank}.txt").open("w", buffering=1) as log:
        while stream.position < int(steps) * GLOBAL_BATCH:
            for _ in range(GLOBAL_BATCH // (int(micro) * world)):
                batch = next(stream)
                rows = zip(batch.position.tolist(), batch.epoch.tolist(), batch.clip_id.tolist(), strict=True)
                log.writelines(f"{position} {epoch} {clip_id}\n" for position, epoch, clip_id in rows)
            stream.advance(GLOBAL_BATCH)
            if stream.position // GLOBAL_BATCH % 3 == 0:
                check_ranks(stream)
                save(out / "state.json", stream, rank)
    check_ranks(stream)
    save(out / "done.json", stream, rank)
    stream.close()


def save(path: Path, stream: ClipStream, rank: int) -> None:
    """Write the state whole, or not at all; all ranks wait for it."""
    if rank == 0:
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(stream.state_dict()))
        partial.rename(path)
    dist.barrier()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except DataError as error:
        print(error)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()  # without it a rank may abort at exit, when its peer has gone before it
