"""Byte ranges and whole bodies over HTTP(S), with every claim of the server checked before a byte is believed.

fsspec's own HTTP client takes a whole body into memory where a server ignores the range; this one asks for exactly the
bytes, reads no more than that, insists on the range and the size of the object that the index implies, and gives up
when bytes come too slowly. Connections are kept; redirects and proxies (http_proxy and the like) are followed.
"""

import os
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError
from urllib3.response import BaseHTTPResponse

from fmri_scale.data.reading import ReadFault

CHUNK = 1 << 20
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
FINAL = (400, 401, 403, 404, 405, 410, 416)
"Answers that will not change by asking again."


class NoRangesError(ReadFault):
    """The server gives whole objects only."""


class HttpStore:
    """Objects at http:// and https:// URLs.

    Parameters
    ----------
    timeout_s
        Longest wait for a connection or for the next bytes; a whole answer may take four times as long, or as long as
        a megabyte a second needs.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._pools: dict[str, urllib3.PoolManager] = {}

    def read(self, url: str, offset: int, buffers: Sequence[memoryview], size: int) -> None:
        """Fill the buffers from byte `offset` of an object of `size` bytes."""
        wanted = sum(buffer.nbytes for buffer in buffers)
        with _Answer(self, url, {"Range": f"bytes={offset}-{offset + wanted - 1}"}) as answer:
            if answer.status == 200:
                raise NoRangesError(f"{url}: the server does not give byte ranges; set data.access=stream", final=True)
            if answer.status != 206:
                raise answer.fault()
            _check_range(answer, offset, wanted, size)
            answer.fill(buffers, time.monotonic() + self._deadline_s(wanted))

    def chunks(self, url: str, size: int) -> Iterator[bytes]:
        """Yield a whole object of `size` bytes in order."""
        with _Answer(self, url, {}) as answer:
            if answer.status != 200:
                raise answer.fault()
            length = answer.length
            if length is not None and length != size:
                raise ReadFault(f"{url}: {length} bytes, the corpus says {size}")
            deadline = time.monotonic() + self._deadline_s(size)
            left = size
            while left:
                data = answer.read(min(CHUNK, left), deadline)
                left -= len(data)
                yield data
            if answer.read_any():
                raise ReadFault(f"{url}: more than the {size} bytes of the corpus")

    def whole(self, url: str, most: int) -> bytes:
        """Return an object of at most `most` bytes."""
        with _Answer(self, url, {}) as answer:
            if answer.status != 200:
                raise answer.fault()
            deadline, data = time.monotonic() + self._deadline_s(most), bytearray()
            while len(data) <= most:
                part = answer.read_any(CHUNK)
                if not part:
                    return bytes(data)
                data += part
                if time.monotonic() > deadline:
                    break
        raise ReadFault(f"{url}: more than {most} bytes, or too slow", final=True)

    def size(self, url: str) -> int | None:
        """Return the size of an object in bytes, None where the server does not say; ReadFault where it is absent."""
        with _Answer(self, url, {}, "HEAD") as answer:
            if answer.status != 200:
                raise answer.fault()
            return answer.length

    def open(self, url: str, headers: dict[str, str], method: str) -> BaseHTTPResponse:
        """Send a request; return the answer, its body unread."""
        try:
            return self._pool(url).request(
                method,
                url,
                headers={"Accept-Encoding": "identity", "User-Agent": "fmri_scale", **headers},
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=self.timeout_s, read=self.timeout_s),
                retries=urllib3.Retry(total=None, connect=0, read=0, other=0, status=0, redirect=5),
            )
        except (HTTPError, LocationValueError, OSError) as error:
            raise ReadFault(f"{url}: {_reason(error)}") from error

    def close(self) -> None:
        """Close the connections."""
        for pool in self._pools.values():
            pool.clear()

    def _deadline_s(self, num_bytes: int) -> float:
        return max(4 * self.timeout_s, num_bytes / 1e6)

    def _pool(self, url: str) -> urllib3.PoolManager:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
        proxy = "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme, "")
        if proxy not in self._pools:
            size = 2 * (os.cpu_count() or 8)
            make = urllib3.ProxyManager(proxy, maxsize=size) if proxy else urllib3.PoolManager(maxsize=size)
            self._pools[proxy] = make
        return self._pools[proxy]


class _Answer:
    """An answer whose body is read in pieces; leaving it returns the connection when the body is at its end."""

    def __init__(self, store: HttpStore, url: str, headers: dict[str, str], method: str = "GET") -> None:
        self.url, self._response = url, store.open(url, headers, method)
        self.status, self.headers = self._response.status, self._response.headers
        self._whole = method == "HEAD"

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._whole:
            self._response.close()
        self._response.release_conn()

    @property
    def length(self) -> int | None:
        """Bytes that the server announces; None where it does not say."""
        text = self.headers.get("Content-Length")
        if text is not None and not (text.isascii() and text.isdigit()):
            raise ReadFault(f"{self.url}: the server announces {text!r} bytes")
        return None if text is None else int(text)

    def fault(self) -> ReadFault:
        return ReadFault(f"{self.url}: HTTP {self.status} {self._response.reason or ''}".rstrip(), self.status in FINAL)

    def read(self, most: int, deadline: float) -> bytes:
        """Return the next bytes, at least one; ReadFault at the end of the body, an error, or past the deadline."""
        try:
            data = self._response.read1(most)
        except (HTTPError, OSError) as error:
            raise ReadFault(f"{self.url}: {_reason(error)}") from error
        if not data:
            raise ReadFault(f"{self.url}: the stream was cut")
        if time.monotonic() > deadline:
            raise ReadFault(f"{self.url}: bytes come too slowly")
        return data

    def read_any(self, most: int = 1) -> bytes:
        """Return the next bytes where there are more; the end is the end that the server announced."""
        try:
            data = self._response.read1(most)
        except (HTTPError, OSError) as error:
            raise ReadFault(f"{self.url}: {_reason(error)}") from error
        self._whole = not data
        return data

    def fill(self, buffers: Sequence[memoryview], deadline: float) -> None:
        for buffer in buffers:
            done = 0
            while done < buffer.nbytes:
                data = self.read(min(CHUNK, buffer.nbytes - done), deadline)
                buffer[done : done + len(data)] = data
                done += len(data)
        if self.read_any():
            raise ReadFault(f"{self.url}: more bytes than were asked for")


def _check_range(answer: _Answer, offset: int, wanted: int, size: int) -> None:
    """Raise ReadFault unless the answer is the range asked for, of an object of the size that the corpus says."""
    url, headers, length = answer.url, answer.headers, answer.length
    if headers.get("Content-Encoding", "identity") != "identity":
        raise ReadFault(f"{url}: the server compresses what it sends; shards are plain tars", final=True)
    text = headers.get("Content-Range", "")
    match = CONTENT_RANGE.fullmatch(text)
    if match is None or (int(match[1]), int(match[2])) != (offset, offset + wanted - 1):
        raise ReadFault(f"{url}: asked for bytes {offset}-{offset + wanted - 1}, the server says {text!r}")
    if match[3] not in ("*", str(size)):
        raise ReadFault(f"{url}: {match[3]} bytes, the corpus says {size}; it is not the shard of this corpus", True)
    if length is not None and length != wanted:
        raise ReadFault(f"{url}: asked for {wanted} bytes, the server announces {length}")


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
