"""Shards as files of a local or parallel file system, read by byte range straight into their destination."""

import os
from collections import OrderedDict
from collections.abc import Sequence

from fmri_scale.data.reading import ReadFault

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

    def read(self, shard: int, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers from `offset` on."""
        wanted = sum(buffer.nbytes for buffer in buffers)
        try:
            got = os.preadv(self._file(shard), buffers, offset)
            while 0 < got < wanted:
                # A single call gives at most 2 GiB, and a signal or a network file system may give less.
                more = os.preadv(self._file(shard), _rest(buffers, got), offset + got)
                if more == 0:
                    break
                got += more
        except OSError as error:
            self._forget(shard)
            raise ReadFault(f"{self._paths[shard]}: {error.strerror}") from error
        if got != wanted:
            self._forget(shard)
            raise ReadFault(f"{self._paths[shard]}: ends at byte {offset + got}, {offset + wanted} expected")

    def close(self) -> None:
        """Close the shards."""
        for shard in list(self._open):
            self._forget(shard)

    def _file(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= OPEN_FILES:
            self._forget(next(iter(self._open)))
        self._open[shard] = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]

    def _forget(self, shard: int) -> None:
        if shard in self._open:
            os.close(self._open.pop(shard))


def _rest(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """Return what is left of buffers of which the first `done` bytes are filled."""
    left = []
    for buffer in buffers:
        if done < buffer.nbytes:
            left.append(buffer[done:])
        done = max(0, done - buffer.nbytes)
    return left
