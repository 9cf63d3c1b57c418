"""No damaged clip reaches training: it is found, named and counted, and too many of them stop the run."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest

from fmri_scale.config import DataConfig
from fmri_scale.data import ClipStream, check_ranks, preflight
from fmri_scale.data.agreement import _notes, compare
from fmri_scale.data.local import LocalSource
from fmri_scale.data.reading import ClipReader, ReadFault
from fmri_scale.data.request import SlotLayout
from fmri_scale.data.table import sample_table
from fmri_scale.errors import DataError
from sharding.corpus import open_corpus
from sharding.format import NPY_HEADER_BYTES
from tests.helpers.corpora import Segment, write_corpus

VOXELS = 60
FRAMES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    segments = [Segment(n) for n in (128, 40, 25, 60, 100, 20)] + [Segment(60, "other")] * 3
    return write_corpus(tmp_path_factory.mktemp("faults") / "corpus", segments, VOXELS, samples_per_shard=3)


@pytest.fixture
def corpus(folder, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(folder, tmp_path / "corpus")
    return open_corpus(tmp_path / "corpus")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("fmri_scale.data.reading.BACKOFF_S", 0.0)


class Bench:
    """Reads all clips that cover a shard's samples, and compares them with what was written."""

    def __init__(self, corpus, shard):
        self.table = sample_table([corpus])
        self.file = corpus.shard_path(self.table.shards[shard].name)
        self.content = self.file.read_bytes()
        paths = [str(corpus.shard_path(s.name)) for s in self.table.shards]
        self.layout = SlotLayout(1, FRAMES, VOXELS, True, NPY_HEADER_BYTES)
        self.reader = ClipReader(LocalSource(paths), self.layout, retries=0)
        clips = [
            (row, start)
            for row in np.flatnonzero(self.table.shard == shard).tolist()
            for start in sorted({*range(0, int(self.table.n_frames[row]) - FRAMES + 1, FRAMES), *self._last(row)})
        ]
        self.requests = self.table.requests(*(np.array(column) for column in zip(*clips, strict=True)))
        self.expected = [self.read(request) for request in self.requests]

    def _last(self, row):
        return (int(self.table.n_frames[row]) - FRAMES,)

    def read(self, request):
        views = self.layout.views(np.empty(self.layout.slot_bytes, np.uint8), 1)
        self.reader.read(request, views, 0)
        return b"".join(array.tobytes() for array in views)

    def outcome(self):
        """Return how many clips were refused; fail if one was accepted that differs."""
        refused = 0
        for request, expected in zip(self.requests, self.expected, strict=True):
            try:
                got = self.read(request)
            except ReadFault:
                refused += 1
            else:
                assert got == expected, f"silently wrong: {request}"
        return refused

    def members(self):
        """Byte ranges of all members that training reads."""
        ranges = []
        for row in {request.row for request in self.requests}:
            c, n = self.table.columns, int(self.table.n_frames[row])
            ranges += [(int(c["bold_offset"][row]), NPY_HEADER_BYTES + n * VOXELS)]
            ranges += [(int(c["frame_xxh3_offset"][row]), NPY_HEADER_BYTES + 8 * n)]
            ranges += [(int(c[f"{name}_offset"][row]), NPY_HEADER_BYTES + 4 * VOXELS) for name in ("scale", "stats")]
        return ranges


def test_each_of_700_single_byte_changes_is_found(corpus, monkeypatch):
    monkeypatch.setattr("fmri_scale.data.reading.PIECE_BYTES", 3 * VOXELS)  # a clip in seven pieces
    bench, rng = Bench(corpus, 0), np.random.default_rng(1)
    ranges = bench.members()
    found_in_members = changed_in_members = 0
    with bench.file.open("r+b", buffering=0) as file:
        for number in range(700):
            if number % 2:  # any byte of the shard: headers, padding and JSON among them
                place = int(rng.integers(len(bench.content)))
            else:
                offset, size = ranges[int(rng.integers(len(ranges)))]
                place = offset + int(rng.integers(size))
            old = bench.content[place]
            os.pwrite(file.fileno(), bytes([old ^ int(rng.integers(1, 256))]), place)
            refused = bench.outcome()
            os.pwrite(file.fileno(), bytes([old]), place)
            if any(offset <= place < offset + size for offset, size in ranges):
                changed_in_members += 1
                found_in_members += refused > 0
    assert changed_in_members > 350
    assert found_in_members == changed_in_members
    assert bench.outcome() == 0


@pytest.mark.parametrize("piece_frames", [3, 20])
def test_each_of_300_truncations_is_found(corpus, monkeypatch, piece_frames):
    monkeypatch.setattr("fmri_scale.data.reading.PIECE_BYTES", piece_frames * VOXELS)
    bench, rng = Bench(corpus, 1), np.random.default_rng(2)
    last = max(offset + size for offset, size in bench.members())
    for number in range(300):
        cut = int(rng.integers(len(bench.content)))
        if number % 3 == 0:
            cut -= cut % 512  # between blocks of the tar
        with bench.file.open("r+b") as file:
            file.truncate(cut)
        assert (bench.outcome() > 0) == (cut < last)
        bench.file.write_bytes(bench.content)
    assert bench.outcome() == 0


def test_another_shard_under_the_same_name_is_found(corpus):
    bench = Bench(corpus, 0)
    other = bytearray(bench.content)
    first, second = (int(bench.table.columns["bold_offset"][row]) for row in (0, 1))
    length = min(int(bench.table.n_frames[row]) for row in (0, 1)) * VOXELS
    other[first + 128 : first + 128 + length] = bench.content[second + 128 : second + 128 + length]
    bench.file.write_bytes(other)
    assert bench.outcome() > 0


def stream(corpus, tmp_path=None, **more):
    config = DataConfig(**{"retries": 0, "on_bad_sample": "substitute", **more})
    quarantine = tmp_path / "quarantine.jsonl" if tmp_path else None
    return ClipStream(corpus, config, FRAMES, 4, 2, quarantine=quarantine)


def test_without_verification_a_damaged_clip_passes(corpus):
    """What the checks are for: the same damage, unseen."""
    file = corpus.shard_path("phantom-000000.tar")
    data = file.read_bytes()
    row = 0
    table = sample_table([corpus])
    place = int(table.columns["bold_offset"][row]) + 128
    size = int(table.n_frames[row]) * VOXELS
    file.write_bytes(data[:place] + bytes(255 - b for b in data[place : place + size]) + data[place + size :])
    list(itertools.islice(stream(corpus, verify=False), 40))
    with pytest.raises(DataError, match="checksum"):
        list(itertools.islice(stream(corpus, on_bad_sample="raise"), 40))


@pytest.mark.parametrize("readers", [0, 2])
def test_a_deleted_shard_is_worked_around_and_written_down(corpus, tmp_path, readers):
    intact = stream(corpus)
    expected = [batch.clip_id.tolist() for batch in itertools.islice(intact, 40)]
    corpus.shard_path("phantom-000000.tar").unlink()
    clips = stream(corpus, tmp_path, num_readers=readers, prefetch_mb=1, max_bad_clips=1000)
    got = list(itertools.islice(clips, 40))
    clips.close()
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["position"] < 80]
    assert len(lines) == len([c for c in clips.faults.bad if c.position < 80]) > 0
    assert all("No such file" in line["reason"] and line["shard"] == "phantom-000000.tar" for line in lines)
    assert all(line["key"] and line["substitute"] for line in lines)
    bad = {line["position"] for line in lines}
    for number, batch in enumerate(got):
        for place in range(2):
            same = int(batch.clip_id[place]) == expected[number][place]
            assert same == (2 * number + place not in bad)
            assert "phantom__sub-0000" not in batch.keys[place] or int(batch.keys[place][-13:-8]) > 2
    again = stream(corpus, max_bad_clips=1000)
    ids = [batch.clip_id.tolist() for batch in itertools.islice(again, 40)]
    assert ids == [batch.clip_id.tolist() for batch in got]


def test_a_substitute_is_of_the_same_dataset(corpus):
    corpus.shard_path("phantom-000000.tar").unlink()
    clips = stream(corpus, weights={"phantom": 1.0, "other": 1.0}, max_bad_clips=1000)
    list(itertools.islice(clips, 60))
    assert clips.faults.bad
    assert all(bad.substitute.startswith("phantom__") for bad in clips.faults.bad)


def test_a_shard_deleted_in_the_middle_of_a_run_stops_it_or_not_by_policy(corpus):
    for policy in ("raise", "substitute"):
        copy = corpus.path.with_name(policy)
        shutil.copytree(corpus.path, copy)
        here = open_corpus(copy)
        clips = stream(here, on_bad_sample=policy, max_bad_clips=10**6)
        next(clips)
        for shard in (copy / "shards").glob("phantom-*"):
            shard.unlink()
        clips._slots._inline._reader.source.close()  # a file that is still open can still be read
        if policy == "raise":
            with pytest.raises(DataError, match="No such file or directory; restore the shard"):
                list(itertools.islice(clips, 40))
        else:
            keys = {key for batch in itertools.islice(clips, 40) for key in batch.keys}
            assert {key.split("__")[0] for key in keys} == {"other"}  # all that is left
            assert len(clips.faults.bad) > 40


@pytest.mark.parametrize("consumed", [0, 10**9])
def test_too_many_bad_clips_stop_the_run_with_the_list_however_long_it_was_before(corpus, consumed):
    corpus.shard_path("phantom-000000.tar").unlink()
    clips = stream(corpus, max_bad_clips=3)
    clips.load_state_dict({**clips.state_dict(), "position": consumed})

    def train():
        for _ in range(100):
            next(clips)
            clips.advance(2)
            check_ranks(clips)

    said = r"[45] of \d{1,3} clips could not be read(.|\n)*phantom-000000.tar: phantom__sub"
    with pytest.raises(DataError, match=said):
        train()


def test_the_budget_counts_the_bad_clips_of_all_ranks_together(corpus):
    corpus.shard_path("phantom-000000.tar").unlink()
    config = DataConfig(retries=0, on_bad_sample="substitute", max_bad_clips=6)
    ranks = [ClipStream(corpus, config, FRAMES, 4, 2, rank, 2) for rank in range(2)]

    def train():
        for _ in range(100):
            for clips in ranks:
                next(clips)
                clips.advance(4)
            compare([_notes(clips) for clips in ranks], config.max_bad_fraction, config.max_bad_clips)

    with pytest.raises(DataError, match=r"clips could not be read"):
        train()
    assert all(len(clips.faults.bad) <= 6 for clips in ranks)  # none of them was over by itself


def test_ranks_that_differ_are_told_apart(corpus):
    config = DataConfig()
    one, other = (ClipStream(corpus, config, FRAMES, 4, 2, rank, 2, seed=rank) for rank in range(2))
    with pytest.raises(DataError, match=r"do not agree on the data's plan: rank 0 has .*rank 1 has"):
        compare([_notes(one), _notes(other)], 0.0, 0)
    check_ranks(one)
    behind = ClipStream(corpus, config, FRAMES, 4, 2, 1, 2)
    one.advance(4)
    with pytest.raises(DataError, match="position"):
        compare([_notes(one), _notes(behind)], 0.0, 0)


def test_values_that_are_not_finite_are_refused_though_their_checksum_is_right(tmp_path, monkeypatch):
    import tests.helpers.corpora as corpora

    sample = corpora._sample

    def with_infinity(*args):
        key, members, facts = sample(*args)
        scale = bytearray(members[".scale.npy"])
        scale[128 + 10 : 128 + 12] = np.float16(np.inf).tobytes()
        return key, {**members, ".scale.npy": bytes(scale)}, facts

    monkeypatch.setattr(corpora, "_sample", with_infinity)
    corpus = open_corpus(write_corpus(tmp_path / "corpus", [Segment(40)]))
    with pytest.raises(DataError, match=r"scale\.npy: values that are not finite"):
        next(stream(corpus, on_bad_sample="raise", retries=2))


def test_missing_shards_are_one_line(tmp_path):
    segments = [Segment(20, f"set{number}") for number in range(6)]
    damaged = open_corpus(write_corpus(tmp_path / "corpus", segments, VOXELS))
    for shard in sorted((damaged.path / "shards").iterdir()):
        shard.unlink()
    with pytest.raises(
        DataError, match=r"6 of 6 shards cannot be used; restore them: .*set0-000000.tar.*; and 2 more"
    ) as e:
        preflight([damaged], DataConfig())
    assert "\n" not in str(e.value)
