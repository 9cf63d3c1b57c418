"""The frame store: what is read is what was appended, in memory, beyond it, and when memory is used again."""

import numpy as np
import pytest

from sharding import store
from sharding.store import FrameStore, chunks
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
    np.testing.assert_array_equal(made.frame(40), frames[40])
    np.testing.assert_array_equal(np.concatenate([chunk.copy() for chunk in chunks(made)]), frames)
    np.testing.assert_array_equal(made.read_voxels(10, 20), frames[:, 10:20])
    made.write_voxels(10, np.zeros((41, 10), dtype=np.float32))
    frames[:, 10:20] = 0
    np.testing.assert_array_equal(made.read(0, 41), frames)
    made.close()
    with pytest.raises(AssertionError, match="store is closed"):
        made.read(0, 41)


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
def test_resampled_as_it_is_read_is_what_resampling_first_gives(kind: str) -> None:
    frames = RNG.standard_normal((41, 50)).astype(np.float32)
    pushed = TimeResampler(41, 2.0, 0.8, kind)
    expected = np.concatenate([pushed.push(frames[start : start + 6]) for start in range(0, 41, 6)])
    read = Upsampled(filled(frames), TimeResampler(41, 2.0, 0.8, kind))
    assert read.num_frames == len(expected) == 101
    for start, stop in ((0, 16), (16, 32), (3, 90), (100, 101), (0, 101)):
        np.testing.assert_array_equal(read.read(start, stop), expected[start:stop])
