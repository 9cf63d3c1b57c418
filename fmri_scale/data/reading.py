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
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from fmri_scale.data.request import ClipRequest, SlotLayout, SlotViews

EXPONENT = np.uint16(0x7C00)
"Bits of a float16 that are all set in infinities and NaN only."

PIECE_BYTES = 2**19
"Most that is read before it is checked, where a source gives pieces: what still lies in the cache is checked faster."

MOST_FINITE = 2**16
"Planes remembered as finite, by their checksums: a segment's are read again with each of its clips."

BLOCK_VALUES = 2**15
"float16 values looked at together: few enough to stay in cache."

BACKOFF_S = 0.1
"Pause before the first repeated read; doubled each time, with jitter, so that ranks do not come back together."

LONGEST_BACKOFF_S = 20.0


class ReadFault(Exception):
    """A clip that could not be read, or not be trusted. `final`: trying again cannot help."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class Span(NamedTuple):
    """A run of bytes of a shard, and the buffers it fills one after the other."""

    offset: int
    buffers: Sequence[memoryview]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(buffer.nbytes for buffer in self.buffers)


class Source(Protocol):
    """Where the bytes of shards come from."""

    def expect(self, shard: int, spans: Sequence[Span]) -> bool:
        """These will be read next; return whether that may be done piece by piece. ReadFault if there is no shard."""

    def read(self, shard: int, spans: Sequence[Span]) -> None:
        """Fill the buffers of all spans; ReadFault if bytes are missing or do not come."""

    def distrust(self, shard: int, spans: Sequence[Span]) -> None:
        """Drop what is kept of these bytes: they were read and found wrong."""

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
        self._finite: set[int] = set()

    def read(self, request: ClipRequest, views: SlotViews, place: int) -> int:
        """Fill place `place` of a slot; return how many reads were repeated; ReadFault when all failed."""
        clip = _Clip(request, views, place, self.layout.header_bytes, self._finite)
        for attempt in range(self.retries + 1):
            try:
                for spans, check in clip.parts(self.source.expect(request.shard, clip.spans)):
                    self.source.read(request.shard, spans)
                    if self.verify:
                        check()
                return attempt
            except ReadFault as fault:
                self.source.distrust(request.shard, clip.spans)
                if fault.final or attempt == self.retries:
                    raise
                pause = min(LONGEST_BACKOFF_S, BACKOFF_S * 2**attempt)
                time.sleep(pause * random.uniform(0.5, 1.0))
        raise AssertionError("the last attempt returns or raises")


class _Clip:
    """The spans of a clip, and the checks of what they were filled with."""

    def __init__(self, request: ClipRequest, views: SlotViews, place: int, header_bytes: int, finite: set[int]) -> None:
        self.request, self.header_bytes, self.finite = request, header_bytes, finite
        self.codes = views.codes[place]
        num_voxels, payload = self.codes.shape[1], self.codes.data.cast("B")
        self.header: bytearray | None = None
        if request.start_frame:
            codes = Span(request.bold_offset + header_bytes + request.start_frame * num_voxels, [payload])
        else:
            self.header = bytearray(header_bytes)
            codes = Span(request.bold_offset, [memoryview(self.header), payload])
        self.hashes = bytearray(header_bytes + 8 * request.n_frames)
        self.planes = [("scale", self._plane(request.scale_offset, views.scale[place]), request.scale_xxh3)]
        if views.stats is not None:
            self.planes.append(("stats", self._plane(request.stats_offset, views.stats[place]), request.stats_xxh3))
        hashes = Span(request.frame_xxh3_offset, [memoryview(self.hashes)])
        self.spans = [codes, hashes, *(span for _, span, _ in self.planes)]

    def _plane(self, offset: int, planes: np.ndarray) -> Span:
        return Span(offset, [memoryview(bytearray(self.header_bytes)), planes.data.cast("B")])

    def parts(self, in_pieces: bool) -> list[tuple[list[Span], Callable[[], None]]]:
        """What to read and the check of it, one after the other; ReadFault unless all is as it was written."""
        if not in_pieces:
            return [(self.spans, self._check)]
        codes, *small = self.spans
        frames, num_voxels = self.codes.shape
        step, payload = max(1, PIECE_BYTES // num_voxels), codes.buffers[-1]
        parts: list[tuple[list[Span], Callable[[], None]]] = [(small, self._check_small)]
        for first in range(0, frames, step):
            last, buffers = min(first + step, frames), [payload[first * num_voxels : (first + step) * num_voxels]]
            offset = codes.offset + codes.size - (frames - first) * num_voxels
            if first == 0:
                buffers, offset = [*codes.buffers[:-1], *buffers], codes.offset
            parts.append(([Span(offset, buffers)], functools.partial(self._check_frames, first, last)))
        return parts

    def _check(self) -> None:
        self._check_small()
        self._check_frames(0, len(self.codes))

    def _check_frames(self, first: int, last: int) -> None:
        """Compare frames of the clip with the checksums of the hashes member, which comes before them."""
        if self.header is not None and self.header != _codes_header(self.request.n_frames, self.codes.shape[1]):
            raise ReadFault("bold.npy: its header is not that of the sample in the index")
        written, begin = memoryview(self.hashes)[self.header_bytes :].cast("Q"), self.request.start_frame
        codes, size = self.spans[0].buffers[-1], self.codes.shape[1]
        for frame in range(first, last):
            if xxhash.xxh3_64_intdigest(codes[frame * size : (frame + 1) * size]) != written[begin + frame]:
                raise ReadFault(f"bold.npy: the checksum of frame {begin + frame} is not the one written with it")

    def _check_small(self) -> None:
        """Check the hashes member and the planes."""
        if xxhash.xxh3_64_intdigest(self.hashes) != self.request.frame_xxh3_xxh3:
            raise ReadFault("frame_xxh3.npy: its checksum is not the one in the index")
        for name, span, expected in self.planes:
            digest = xxhash.xxh3_64()
            for buffer in span.buffers:
                digest.update(buffer)
            if digest.intdigest() != expected:
                raise ReadFault(f"{name}.npy: its checksum is not the one in the index")
            if expected in self.finite:
                continue
            if not _finite(np.frombuffer(span.buffers[1], np.uint16)):
                raise ReadFault(f"{name}.npy: values that are not finite", final=True)
            if len(self.finite) >= MOST_FINITE:
                self.finite.clear()
            self.finite.add(expected)


def _finite(bits: np.ndarray) -> bool:
    """Whether float16 values, given as their bits uint16 (n,), are all finite."""
    exponents = np.empty(min(BLOCK_VALUES, bits.size), np.uint16)
    for start in range(0, bits.size, BLOCK_VALUES):
        block = bits[start : start + BLOCK_VALUES]
        if np.bitwise_and(block, EXPONENT, out=exponents[: block.size]).max() == EXPONENT:
            return False
    return True


@functools.lru_cache(maxsize=256)
def _codes_header(n_frames: int, num_voxels: int) -> bytes:
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        text, {"descr": "|i1", "fortran_order": False, "shape": (n_frames, num_voxels)}
    )
    return text.getvalue()
