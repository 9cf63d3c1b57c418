"""A store of shards over HTTP on this machine, with byte ranges and, when told, with every fault a store can have.

`faults` maps the end of a path to what the next requests for it meet, first to last; after them all is well again: an
int is a status (503, 404), "cut" ends the body half way, "stall" sends nothing, "slow" sends a byte now and then,
"short" and "long" announce another length, "no_number" a word for it, "other_range" gives another range than asked
for, "other_size" says the object is larger, "whole" ignores the range, "gzip" claims an encoding, "flip" changes bits
here and there, "redirect" sends to the same place again.
"""

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class ShardServer(ThreadingHTTPServer):
    """Serves a folder; `requests` are those for content that came, as (path, range)."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list] = {}
        self.always: str | int | None = None
        self.requests: list[tuple[str, str]] = []
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self, path: str) -> str | int | None:
        for end, faults in self.faults.items():
            if path.endswith(end) and faults:
                return faults.pop(0)
        return self.always if path.endswith(".tar") else None


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ShardServer]:
    server = ShardServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    server: ShardServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        asked = self.headers.get("Range", "")
        if body:
            self.server.requests.append((self.path, asked))
        fault = self.server.next_fault(self.path)
        file = self.server.folder / self.path.lstrip("/")
        if isinstance(fault, int) or not file.is_file():
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = file.read_bytes()
        total = len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        if match and fault != "whole":
            begin, end = int(match[1]), min(int(match[2]) + 1, total)
            data = data[begin:end]
            self.send_response(206)
            shift = 7 if fault == "other_range" else 0
            size = total + 512 if fault == "other_size" else total
            self.send_header("Content-Range", f"bytes {begin + shift}-{end - 1 + shift}/{size}")
        else:
            self.send_response(200)
        if fault == "flip":
            data = bytes(b ^ (i % 97 == 0) for i, b in enumerate(data))
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")
        length = {"short": len(data) - 9, "long": len(data) + 9}.get(str(fault), len(data))
        self.send_header("Content-Length", "many" if fault == "no_number" else str(length))
        self.end_headers()
        if body:
            self._send(data, fault)

    def _send(self, data: bytes, fault: str | int | None) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if fault == "stall":
                self.wfile.flush()
                self.server.stopping.wait(30)
            elif fault == "slow":
                for i in range(len(data)):
                    self.wfile.write(data[i : i + 1])
                    self.wfile.flush()
                    if self.server.stopping.wait(0.1):
                        return
            else:
                self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
                self.wfile.flush()
        if fault in ("cut", "long", "stall"):
            self.close_connection = True
