"""Shards as files of a local or parallel file system, read by byte range straight into their destination."""

import os
from collections import OrderedDict
from collections.abc import Sequence

from fmri_scale.data.reading import ReadFault, Span

OPEN_FILES = 128
"Shards kept open; opening one on a parallel file system costs a round trip."


class LocalSource:
    """Reads by `preadv`; see reading.Source.

    Parameters
    ----------
    paths
        File of each shard, by the shard's number.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, int] = OrderedDict()

    def expect(self, shard: int, spans: Sequence[Span]) -> bool:
        """Have the kernel fetch these bytes; they may be read piece by piece."""
        try:
            file = self._file(shard)
            for span in spans:
                os.posix_fadvise(file, span.offset, span.size, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise ReadFault(f"{self._paths[shard]}: {error.strerror}") from error
        return True

    def read(self, shard: int, spans: Sequence[Span]) -> None:
        """Fill the buffers of all spans."""
        try:
            file = self._file(shard)
            for span in spans:
                got = read_exactly(file, span)
                if got != span.size:
                    end = span.offset + got
                    raise ReadFault(f"{self._paths[shard]}: ends at byte {end}, {span.offset + span.size} expected")
        except OSError as error:
            raise ReadFault(f"{self._paths[shard]}: {error.strerror}") from error

    def distrust(self, shard: int, spans: Sequence[Span]) -> None:
        """Close the shard, since it may have been replaced by a whole one."""
        if shard in self._open:
            os.close(self._open.pop(shard))

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _file(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]


def read_exactly(file: int, span: Span) -> int:
    """Fill a span from an open file; return the bytes read, fewer than asked for only at the file's end."""
    done, wanted = os.preadv(file, span.buffers, span.offset), span.size
    while 0 < done < wanted:
        # One call gives at most 2 GiB, and a signal or a network file system may give less.
        more = os.preadv(file, _rest(span.buffers, done), span.offset + done)
        if more == 0:
            break
        done += more
    return done


def _rest(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """Return what is left of buffers of which the first `done` bytes are filled."""
    left = []
    for buffer in buffers:
        if done < buffer.nbytes:
            left.append(buffer[done:])
        done = max(0, done - buffer.nbytes)
    return left
