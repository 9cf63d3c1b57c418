"""Reader processes give what one process gives, and survive being killed, stopped and orphaned."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream
from fmri_scale.errors import DataError
from sharding.corpus import open_corpus
from tests.helpers.corpora import Segment, write_corpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    segments = [Segment(n) for n in (128, 40, 25, 60, 19, 100, 20)]
    return open_corpus(write_corpus(tmp_path_factory.mktemp("readers") / "corpus", segments))


@pytest.fixture(scope="module")
def expected(corpus):
    clips = ClipStream(corpus, DataConfig(), 20, 4, 2)
    return [batch.codes.numpy().copy() for batch in itertools.islice(clips, 80)]


def stream(corpus, **more):
    return ClipStream(corpus, DataConfig(**{"num_readers": 2, "prefetch_mb": 1, **more}), 20, 4, 2)


def pids(clips):
    return [reader.process.pid for reader in clips._slots._pool.readers]


def check(clips, expected):
    for number, batch in enumerate(itertools.islice(clips, len(expected))):
        assert np.array_equal(batch.codes.numpy(), expected[number])


def test_readers_give_the_batches_of_one_process_and_end_with_the_stream(corpus, expected):
    clips = stream(corpus, num_readers=3)
    check(clips, expected)
    running = pids(clips)
    assert len(running) == 3
    clips.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)


def test_batches_outlive_the_ring(corpus, expected):
    clips = stream(corpus)
    kept = list(itertools.islice(clips, 80))  # the ring has at most 64 slots
    clips.close()
    for number, batch in enumerate(kept):
        assert np.array_equal(batch.codes.numpy(), expected[number])


def test_a_killed_reader_is_replaced_and_nothing_is_lost(corpus, expected):
    clips = stream(corpus)
    check(clips, expected[:10])
    before = pids(clips)
    os.kill(before[0], signal.SIGKILL)
    for number, batch in enumerate(itertools.islice(clips, 70), 10):
        assert np.array_equal(batch.codes.numpy(), expected[number])
        if number == 40:
            os.kill(pids(clips)[1], signal.SIGKILL)
    assert clips._slots.restarts >= 1
    assert before[0] not in pids(clips)
    assert not clips.faults.bad
    clips.close()


def test_a_reader_that_stops_answering_is_named_with_what_it_reads_and_replaced(corpus, expected, caplog):
    clips = stream(corpus, num_readers=1, stall_timeout_s=1.0)
    next(clips)
    os.kill(pids(clips)[0], signal.SIGSTOP)
    while not clips._slots.restarts:  # those that it had read before come first
        next(clips)
    message = next(r.message for r in caplog.records if "it is replaced" in r.message)
    assert "phantom__sub-" in message
    assert "byte" in message
    clips.load_state_dict(clips.state_dict())
    check(clips, expected)
    clips.close()


def test_clips_that_bring_down_every_reader_count_as_unreadable(corpus):
    clips = stream(corpus, num_readers=1)
    next(clips)
    pool = clips._slots._pool
    start = pool._start

    def start_and_kill():
        start()
        os.kill(pool.readers[-1].process.pid, signal.SIGKILL)

    pool._start = start_and_kill
    os.kill(pids(clips)[0], signal.SIGKILL)
    with pytest.raises(DataError, match="3 reader processes in turn died or did not answer"):
        list(itertools.islice(clips, 100))
    clips.close()


def test_a_file_system_that_stalls_ends_with_the_stack_and_the_reason(tmp_path, caplog):
    """A pipe without a writer in the place of a shard holds whoever opens it, as a dead mount does."""
    corpus = open_corpus(write_corpus(tmp_path / "corpus", [Segment(60)]))
    shard = next((corpus.path / "shards").iterdir())
    shard.unlink()
    os.mkfifo(shard)
    clips = stream(corpus, num_readers=1, stall_timeout_s=0.5)
    with pytest.raises(DataError, match="3 reader processes in turn died or did not answer"):
        next(clips)
    stuck = [r.message for r in caplog.records if "it is replaced" in r.message]
    assert len(stuck) == 3
    assert all("local.py" in message and "phantom__sub-00000__000000 of shard" in message for message in stuck)
    clips.close()


def test_readers_are_gone_soon_after_their_trainer_was_killed(corpus, tmp_path):
    program = textwrap.dedent(
        """
        import sys, time
        from fmri_scale.config import DataConfig
        from fmri_scale.data import ClipStream
        from sharding.corpus import open_corpus
        clips = ClipStream(open_corpus(sys.argv[1]), DataConfig(num_readers=2, prefetch_mb=1), 20, 4, 2)
        next(clips)
        print(*[reader.process.pid for reader in clips._slots._pool.readers], flush=True)
        time.sleep(600)
        """
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program, str(corpus.path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    readers = [int(text) for text in trainer.stdout.readline().split()]
    assert len(readers) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in readers)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in readers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_readers_know_no_torch():
    program = "import sys, fmri_scale.data.reader_process; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_memory_that_cannot_be_had_is_refused_with_what_to_lower(corpus, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"no memory for a ring(.|\n)*data\.prefetch_mb"):
        stream(corpus)
