"""The corpus and the run folder: are they there, how fast, and is there room for the checkpoints?"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fmri_scale.config import Config
from fmri_scale.data import open_corpora
from fmri_scale.data.corpora import RemoteCorpus
from fmri_scale.training.doctor.findings import BLOCK, NOTE, OK, WARN, Finding
from sharding.corpus import Corpus

BLOCK_BYTES = 4 << 20
READ_S, READ_BYTES = 3.0, 1 << 29
WRITE_BYTES = 64 << 20
SLOW_SAVE_S = 300.0


def corpora(config: Config, needed_bytes_per_s: float, look_at_all: bool) -> Iterator[Finding]:
    """Yield what the corpus is and how fast this machine reads it.

    Parameters
    ----------
    needed_bytes_per_s : what the ranks of a machine will read at the predicted speed, in B/s; 0 if unknown.
    look_at_all : look that every shard is there with its size; one rank does.
    """
    if not config.data.corpus:
        yield Finding("corpus", NOTE, "data.corpus is not set: nothing read")
        return
    for corpus in open_corpora(config.data, check_shards=look_at_all):
        shards = corpus.meta["shards"]
        gigabytes = sum(shard["bytes"] for shard in shards) / 1e9
        size = f"{len(corpus):,} samples, {gigabytes:.2f} GB in {len(shards):,} shards"
        yield Finding("corpus", OK, f"{corpus.path}: {size}, id {corpus.corpus_id[:12]}")
        if isinstance(corpus, RemoteCorpus):
            yield Finding("reading", NOTE, f"{corpus.url}: remote; the first steps tell its speed (data_wait_fraction)")
        else:
            yield _reading(corpus, needed_bytes_per_s)


def _reading(corpus: Corpus, needed: float) -> Finding:
    paths = [corpus.shard_path(shard["name"]) for shard in corpus.meta["shards"]]
    speed, cold = read_speed(paths)
    found = f"{speed / 1e6:,.0f} MB/s from {'disk' if cold else 'the page cache (it does not let go of pages)'}"
    if needed:
        found += f"; the ranks of this machine need {needed / 1e6:,.0f} MB/s"
    remedy = "copy the corpus to a local disk, raise data.num_readers, or lower the number of ranks on a machine"
    return Finding("reading", WARN if speed < needed else OK, found, remedy)


def read_speed(paths: list[Path]) -> tuple[float, bool]:
    """Return B/s over blocks spread over the files, and whether the page cache could be put aside.

    At most READ_BYTES in READ_S seconds; one thread, as one reader process would.
    """
    places = [
        (path, offset) for path in paths for offset in range(0, max(1, path.stat().st_size - BLOCK_BYTES), BLOCK_BYTES)
    ]
    chosen = places[:: max(1, len(places) * BLOCK_BYTES // READ_BYTES)]
    done, seconds, cold = 0, 0.0, True
    for path, offset in chosen:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), offset, BLOCK_BYTES, os.POSIX_FADV_DONTNEED)
            cold = cold and not _cached(file.fileno(), offset)
            begin = time.perf_counter()
            done += len(os.pread(file.fileno(), BLOCK_BYTES, offset))
            seconds += time.perf_counter() - begin
        if seconds > READ_S:
            break
    return done / max(seconds, 1e-9), cold


def _cached(handle: int, offset: int) -> bool:
    """Return True where the first page at `offset` is in the page cache."""
    try:
        return os.preadv(handle, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:  # BlockingIOError: not there; others: the file system cannot tell
        return False


def run_folder(config: Config, checkpoint_bytes: float) -> Iterator[Finding]:
    """Yield whether the run folder can be written, how fast, and whether its checkpoints fit.

    Parameters
    ----------
    checkpoint_bytes : expected size of a checkpoint.
    """
    if not config.run_dir:
        yield Finding("run folder", NOTE, "run_dir is not set: nothing written")
        return
    folder = _existing(Path(config.run_dir))
    speed = write_speed(folder)
    save_s = checkpoint_bytes / speed
    found = (
        f"{folder} takes {speed / 1e6:,.0f} MB/s: {save_s:,.1f} s for a checkpoint of {checkpoint_bytes / 1e9:.2f} GB"
    )
    remedy = "use a faster file system, or save more rarely (checkpoint.every_steps)"
    yield Finding("run folder", WARN if save_s > SLOW_SAVE_S else OK, found, remedy)
    # one more than is kept: the next is written before the oldest goes
    free, needed = shutil.disk_usage(folder).free, checkpoint_bytes * (config.checkpoint.keep_last + 1)
    found = f"{free / 1e9:,.1f} GB free; {config.checkpoint.keep_last} + 1 checkpoints take {needed / 1e9:,.1f} GB"
    more = f"; each {config.checkpoint.keep_every:,}th is kept besides" if config.checkpoint.keep_every else ""
    yield Finding(
        "disk space", BLOCK if free < needed else OK, found + more, "free space, or lower checkpoint.keep_last"
    )


def write_speed(folder: Path) -> float:
    """Return B/s of writing and flushing a file of WRITE_BYTES there; the file is deleted."""
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        begin = time.perf_counter()
        for _ in range(WRITE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return WRITE_BYTES / (time.perf_counter() - begin)


def _existing(path: Path) -> Path:
    """Return the folder itself or the nearest parent that exists."""
    path = path.resolve()
    while not path.is_dir():
        path = path.parent
    return path
