"""A stand-in for the Hugging Face hub: the part of its HTTP API that moves files, over memory, on this machine.

Repositories with commits, branches and tags; small files in the commit, large ones through Git LFS (basic transfer);
tokens; and faults a test can ask for. It speaks to the real `huggingface_hub` client.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "a" * 34


@dataclass
class Repo:
    """A model repository: every commit is a whole tree of path to sha256 of the content."""

    private: bool = False
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)

    def commit(self, tree: dict[str, str]) -> str:
        oid = hashlib.sha1(json.dumps([tree, len(self.commits)]).encode()).hexdigest()
        self.commits[oid] = tree
        self.refs["main"] = oid
        return oid

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    """What the server holds, and how it misbehaves."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    spoil_on_arrival: str = ""
    "Path of a file of which the last byte is changed when it arrives."
    spoil_on_the_way: str = ""
    "Path of a file of which the last byte is changed when it is fetched."
    cut_short: str = ""
    "Path of a file of which only half is sent."
    downloads: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    ROUTES = (
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", "info"),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", "tree"),
        ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", "preupload"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/([0-9a-f]{64})", "lfs_put"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", "commit"),
        ("POST", r"/api/models/([^/]+/[^/]+)/tag/(.+)", "tag"),
    )

    def log_message(self, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self._fixed() else self._chunks()
        path = urlsplit(self.path).path
        for method, pattern, name in self.ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                getattr(self, name)(*(unquote(group) if group else group for group in found.groups()))
                return
        self.send(404, {"error": f"no route for {self.command} {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def _fixed(self) -> bool:
        return "chunked" not in (self.headers.get("Transfer-Encoding") or "")

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.send(401, {"error": "Invalid credentials"})
        return False

    def repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def tree_at(self, repo: Repo, revision: str | None) -> tuple[str, dict[str, str]] | None:
        oid = repo.find(revision or "main")
        if oid is None:
            self.send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return oid, repo.commits[oid]

    def info(self, name: str, revision: str | None) -> None:
        repo = self.repo(name)
        found = repo and self.tree_at(repo, revision)
        if repo and found:
            siblings = [{"rfilename": path} for path in found[1]]
            self.send(200, {"id": name, "sha": found[0], "private": repo.private, "tags": [], "siblings": siblings})

    def tree(self, name: str, revision: str) -> None:
        repo = self.repo(name)
        found = repo and self.tree_at(repo, revision)
        if not (repo and found):
            return
        rows = []
        for path, sha256 in found[1].items():
            data = self.hub.blobs[sha256]
            row: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
            if path in repo.large:
                row |= {"oid": "0" * 40, "lfs": {"oid": sha256, "size": len(data), "pointerSize": 130}}
            else:
                row["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            rows.append(row)
        self.send(200, rows)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.repo(name)
        found = repo and self.tree_at(repo, revision)
        if not (repo and found):
            return
        if path not in found[1]:
            self.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found[0]})
            return
        sha256 = found[1][path]
        data = self.hub.blobs[sha256]
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}
        if path in repo.large:
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        if self.command == "GET":
            self.hub.downloads.append(path)
        if path == self.hub.spoil_on_the_way:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if path == self.hub.cut_short and self.command == "GET":
            self.send(200, data[: len(data) // 2], headers)
            return
        self.send(200, data, headers)

    def create(self) -> None:
        if not self.may_write():
            return
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if name in self.hub.repos:
            self.send(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repo = self.hub.repos[name] = Repo(private=private)
        repo.commit({".gitattributes": self.store(b"*.safetensors filter=lfs\n*.gz filter=lfs\n")})
        self.send(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate_card(self) -> None:
        """As the hub does before it takes a README.md: the front matter must be YAML of the kind it knows."""
        _, front, _ = json.loads(self.body)["content"].split("---\n", 2)
        facts = yaml.safe_load(front)
        errors = []
        if facts.get("license") == "other" and not re.fullmatch(r"[a-z0-9-.]+", facts.get("license_name", "")):
            errors.append({"message": '"license_name" must be given for license "other"'})
        if not all(isinstance(tag, str) for tag in facts.get("tags", [])):
            errors.append({"message": '"tags" must be texts'})
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if self.may_write() and self.repo(name):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if _is_large(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(self.body)["files"]
            ]
            self.send(200, {"files": files})

    def lfs_batch(self, name: str) -> None:
        if not self.may_write():
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}}}
            objects.append(entry)
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        # as on the hub, the storage takes what it is given; the digest is the client's word
        self.hub.blobs[oid] = self.body
        self.send(200, {})

    def commit(self, name: str, revision: str) -> None:
        repo = self.may_write() and self.repo(name)
        if not repo:
            return
        tree = dict(repo.commits[repo.refs["main"]])
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                data = base64.b64decode(value["content"])
                tree[value["path"]] = self.store(self.arrived(value["path"], data))
                repo.large.discard(value["path"])
            elif row["key"] == "lfsFile":
                data = self.arrived(value["path"], self.hub.blobs[value["oid"]])
                tree[value["path"]] = self.store(data)
                repo.large.add(value["path"])
            elif row["key"] == "deletedFile":
                del tree[value["path"]]
        oid = repo.commit(tree)
        self.send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def tag(self, name: str, revision: str) -> None:
        repo = self.may_write() and self.repo(name)
        found = repo and self.tree_at(repo, revision)
        if repo and found:
            repo.refs[json.loads(self.body)["tag"]] = found[0]
            self.send(200, {})

    def store(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.hub.blobs[sha256] = data
        return sha256

    def arrived(self, path: str, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if path == self.hub.spoil_on_arrival else data


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".gz"))


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on a free port of this machine until the block ends."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
