"""Sample tables of corpora that exist nowhere, for tests and simulations of the order of the data."""

import numpy as np
import pyarrow as pa

from fmri_scale.data.keyed import key_of
from fmri_scale.data.table import SampleTable, Shard


def made_up_table(n_frames, datasets: int = 1, samples_per_shard: int = 3, seed: int = 0) -> SampleTable:
    """Return an index of samples of the given lengths, in equal parts of each dataset; a shard is of one dataset."""
    n_frames = np.asarray(n_frames, np.int16)
    number = np.arange(n_frames.size)
    dataset = (number * datasets // n_frames.size).astype(np.int16)
    shard = (np.cumsum((number % samples_per_shard == 0) | (np.diff(dataset, prepend=0) > 0)) - 1).astype(np.int32)
    keys = [f"d{d}__sub-{seed}-{i:05d}" for i, d in enumerate(dataset)]
    return SampleTable(
        columns={"n_frames": n_frames},
        shard=shard,
        dataset=dataset,
        key_hash=np.array([key_of(seed, i) for i in number], np.uint64),
        keys=pa.array(keys),
        shards=[Shard(0, f"s-{i:06d}.tar", 0, "") for i in range(int(shard[-1]) + 1)],
        datasets=[f"d{d}" for d in range(datasets)],
        num_voxels=10,
        corpus_ids=["made-up"],
    )
