"""The frame store: what is read is what was appended, in memory, beyond it, and when memory is used again."""

import numpy as np
import pytest

from sharding import store, timing
from sharding.prepare import _at_target_tr
from sharding.store import FrameStore, by_block, chunks
from sharding.timing import TimeResampler, Upsampled

RNG = np.random.default_rng(0)


@pytest.fixture(params=[0, 7 * 4 * 50, 2**20], ids=["in a file", "in both", "in memory"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MEMORY_BYTES", request.param)


def filled(frames: np.ndarray) -> FrameStore:
    made = FrameStore(*frames.shape)
    for start in range(0, len(frames), 5):
        made.append(frames[start : start + 5])
    return made


@pytest.mark.usefixtures("memory")
def test_frames_come_back_by_frames_and_by_voxels() -> None:
    frames = RNG.standard_normal((41, 50)).astype(np.float32)
    made = filled(frames)
    np.testing.assert_array_equal(made.read(3, 29), frames[3:29])
    np.testing.assert_array_equal(made.frames(20, 41), frames[20:])
    np.testing.assert_array_equal(made.read_voxels(10, 20), frames[:, 10:20])
    made.write_voxels(10, np.zeros((41, 10), dtype=np.float32))
    frames[:, 10:20] = 0
    np.testing.assert_array_equal(made.read(0, 41), frames)
    made.close()
    with pytest.raises(AssertionError, match="store is closed"):
        made.read(0, 41)


@pytest.mark.usefixtures("memory")
def test_frames_made_in_their_room_are_those_appended() -> None:
    frames = RNG.standard_normal((41, 50)).astype(np.float32)
    made = FrameStore(41, 50)
    for start in range(0, 41, 6):
        room = made.room(len(frames[start : start + 6]))
        room[:] = frames[start : start + 6]
        made.append(room)
    np.testing.assert_array_equal(made.read(0, 41), frames)


@pytest.mark.usefixtures("memory")
def test_blocks_are_all_voxels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK_VOXELS", 16)
    frames = RNG.standard_normal((41, 50)).astype(np.float32)
    made, some = filled(frames), np.array([0, 15, 16, 49])
    places = by_block(some, 50)
    for start, stop in chunks(5, 41):
        blocks = [(voxels, block.copy()) for voxels, block in made.blocks(start, stop)]
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks], axis=1), frames[start:stop])
        for voxels, block in blocks:
            own, inside = places[voxels.start]
            np.testing.assert_array_equal(block[:, inside], frames[start:stop, some[own]])
    assert [stop for _, stop in chunks(5, 41)] == [21, 37, 41]


@pytest.mark.usefixtures("memory")
def test_stores_never_share_memory_however_often_they_are_closed() -> None:
    first = filled(np.ones((20, 50), dtype=np.float32))
    first.close()
    second = filled(np.full((20, 50), 2, dtype=np.float32))
    first.close()
    third = filled(np.full((20, 50), 3, dtype=np.float32))
    assert (second.read(0, 20) == 2).all()
    assert (third.read(0, 20) == 3).all()


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("kind", ["sinc", "linear"])
def test_resampled_as_it_is_read_is_what_resampling_first_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK_VOXELS", 16)
    frames = RNG.standard_normal((41, 50)).astype(np.float32)
    pushed = TimeResampler(41, 2.0, 0.8, kind)
    expected = np.concatenate([pushed.push(frames[start : start + 6]) for start in range(0, 41, 6)])
    read = Upsampled(filled(frames), TimeResampler(41, 2.0, 0.8, kind))
    assert read.num_frames == len(expected) == 101
    for start, stop in ((0, 16), (16, 32), (3, 90), (100, 101), (0, 101)):
        np.testing.assert_array_equal(read.read(start, stop), expected[start:stop])
    monkeypatch.setattr(timing, "_scipy_rounds_products", lambda: False)  # as on processors where it does not
    np.testing.assert_array_equal(read.read(0, 101), expected)


@pytest.mark.usefixtures("memory")
def test_a_stored_run_is_resampled_as_one_that_arrives() -> None:
    frames = RNG.standard_normal((60, 50)).astype(np.float32)
    resampler = TimeResampler(60, 0.72, 0.8)
    stored = _at_target_tr(filled(frames), FrameStore(resampler.num_out, 50), resampler)
    np.testing.assert_array_equal(stored.read(0, 54), TimeResampler(60, 0.72, 0.8).push(frames))
