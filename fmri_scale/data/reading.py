"""Read one clip and prove that it is what the index says, before anything else sees it.

In: a request and arrays to fill. Out: the arrays, filled, or a `ReadFault` that says what is wrong. A clip is a byte
range of the bold member; its frames are compared with the checksums in the frame_xxh3 member, and that member, the
scale and the stats with the checksums in the index, which the corpus id covers. So a wrong byte, a cut file, another
shard under the same name or a wrong offset cannot pass. Imports nothing heavy: reader processes start with it.
"""

import functools
import io
import random
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import xxhash

from fmri_scale.data.request import ClipRequest, SlotLayout, SlotViews

EXPONENT = np.uint16(0x7C00)
"Bits of a float16 that are all set in infinities and NaN only."

BACKOFF_S = 0.1
"Pause before the first repeated read; doubled each time, with jitter, so that ranks do not come back together."

LONGEST_BACKOFF_S = 20.0


class ReadFault(Exception):
    """A clip that could not be read, or not be trusted. `final`: trying again cannot help."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class Source(Protocol):
    """Where the bytes of shards come from."""

    def read(self, shard: int, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other, with the shard's bytes from `offset`; ReadFault if there are fewer."""

    def close(self) -> None:
        """Let go of files and connections."""


class ClipReader:
    """Fills slots from a source.

    Parameters
    ----------
    source, layout
        Where bytes come from, and how slots are laid out.
    verify
        Compare checksums.
    retries
        How often a failed read is repeated.
    """

    def __init__(self, source: Source, layout: SlotLayout, verify: bool = True, retries: int = 3) -> None:
        self.source, self.layout, self.verify, self.retries = source, layout, verify, retries

    def read(self, request: ClipRequest, views: SlotViews, place: int) -> int:
        """Fill place `place` of a slot; return how many reads were repeated; ReadFault when all failed."""
        for attempt in range(self.retries + 1):
            try:
                self._read_once(request, views, place)
                return attempt
            except ReadFault as fault:
                if fault.final or attempt == self.retries:
                    raise
                pause = min(LONGEST_BACKOFF_S, BACKOFF_S * 2**attempt)
                time.sleep(pause * random.uniform(0.5, 1.0))
        raise AssertionError("the last attempt returns or raises")

    def _read_once(self, request: ClipRequest, views: SlotViews, place: int) -> None:
        self._read_codes(request, views.codes[place])
        self._read_planes(request.shard, request.scale_offset, request.scale_xxh3, views.scale[place], "scale")
        if views.stats is not None:
            self._read_planes(request.shard, request.stats_offset, request.stats_xxh3, views.stats[place], "stats")

    def _read_codes(self, request: ClipRequest, codes: np.ndarray) -> None:
        num_voxels, payload = codes.shape[1], codes.data.cast("B")
        if request.start_frame:
            offset = request.bold_offset + self.layout.header_bytes + request.start_frame * num_voxels
            self.source.read(request.shard, offset, [payload])
        else:
            header = bytearray(self.layout.header_bytes)
            self.source.read(request.shard, request.bold_offset, [memoryview(header), payload])
            if self.verify and header != _codes_header(request.n_frames, num_voxels):
                raise ReadFault("bold.npy: its header is not that of the sample in the index")
        if self.verify:
            self._check_frames(request, codes)

    def _check_frames(self, request: ClipRequest, codes: np.ndarray) -> None:
        member = bytearray(self.layout.header_bytes + 8 * request.n_frames)
        self.source.read(request.shard, request.frame_xxh3_offset, [memoryview(member)])
        if xxhash.xxh3_64_intdigest(member) != request.frame_xxh3_xxh3:
            raise ReadFault("frame_xxh3.npy: its checksum is not the one in the index")
        expected = np.frombuffer(member, np.uint64, offset=self.layout.header_bytes)
        for number, frame in enumerate(codes, request.start_frame):
            if xxhash.xxh3_64_intdigest(frame.data) != int(expected[number]):
                raise ReadFault(f"bold.npy: the checksum of frame {number} is not the one written with it")

    def _read_planes(self, shard: int, offset: int, expected: int, planes: np.ndarray, name: str) -> None:
        header, payload = memoryview(bytearray(self.layout.header_bytes)), planes.data.cast("B")
        self.source.read(shard, offset, [header, payload])
        if not self.verify:
            return
        digest = xxhash.xxh3_64(header)
        digest.update(payload)
        if digest.intdigest() != expected:
            raise ReadFault(f"{name}.npy: its checksum is not the one in the index")
        if ((planes.view(np.uint16) & EXPONENT) == EXPONENT).any():
            raise ReadFault(f"{name}.npy: values that are not finite", final=True)


@functools.lru_cache(maxsize=256)
def _codes_header(n_frames: int, num_voxels: int) -> bytes:
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        text, {"descr": "|i1", "fortran_order": False, "shape": (n_frames, num_voxels)}
    )
    return text.getvalue()
