"""A fake of the hub on loopback, for what cannot be had in a test: it speaks as much as the real client asks for.

It knows revisions, LFS and plain files, gated repositories and tokens, takes commits, and can be told to misbehave.
Every request is logged, with the Range that was asked for.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".gguf", "tokenizer.json")
GOOD_TOKEN = "hf_goodgoodgoodgoodgoodgoodgoodgood12"
COMMIT = "ab" * 20  # of everything that was written
READING_TOKEN = "hf_readreadreadreadreadreadreadread34"  # it may not write


@dataclass
class Repository:
    """Files of one commit. `gated`: False, "auto" or "manual"; `granted`: the good token may read it."""

    files: dict[str, bytes]
    commit: str = "c0ffee" * 6 + "c0de"
    gated: bool | str = False
    granted: bool = False


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    status: int = 0


@dataclass
class FakeHub:
    """Start it with `with`. Faults by file name: `drop` and `stall` after so many bytes, once; `corrupt` so often.

    `written`: `models/owner/name` or `datasets/owner/name` -> files, of all commits together; `private`: how each was
    made; `commits`: the names of the files of each commit; `full`: no commit is taken.
    """

    repositories: dict[str, Repository]
    drop: dict[str, int] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)
    corrupt: dict[str, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    failing: int | None = None
    written: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    full: bool = False

    def __enter__(self) -> "FakeHub":
        self.released = threading.Event()
        self.stalled = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def asked_for(self, name: str) -> list[Request]:
        """Requests for one file."""
        return [r for r in self.requests if r.path.endswith(f"/{name}")]

    @property
    def file_requests(self) -> list[Request]:
        return [r for r in self.requests if "/resolve/" in r.path]


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _mode(path: str, files: dict[str, bytes]) -> dict:
    """How a file is to be sent, and the hash of what is there by its name."""
    large, there = path.endswith(LFS_SUFFIXES), files.get(path)
    oid = None if there is None else hashlib.sha256(there).hexdigest() if large else git_blob(there)
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.entry = Request(self.command, path, self.headers.get("Range"))
        self.hub.requests.append(self.entry)
        if self.hub.failing:
            return self._refuse(self.hub.failing)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (GOOD_TOKEN, READING_TOKEN):
            return self._refuse(401, message="Invalid credentials in Authorization header")
        if "/".join(path.split("/")[2:5]) in self.hub.written and token:
            return self._send(
                json.dumps({"id": "/".join(path.split("/")[3:5]), "sha": COMMIT, "siblings": []}).encode()
            )
        words = path.strip("/").removeprefix("api/models/").split("/")
        name = "/".join(words[:2])
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._refuse(404 if token else 401, "RepoNotFound")
        closed = repository.gated and not (token and repository.granted)
        if words[2:] == ["auth-check"]:
            if closed:
                return self._refuse(403 if token else 401, "GatedRepo")
            return self._send(b"{}")
        if words[3] not in ("main", repository.commit):
            return self._refuse(404, "RevisionNotFound")
        if words[2] == "revision":
            return self._send(json.dumps(self._info(name, repository)).encode())
        if closed:
            return self._refuse(403 if token else 401, "GatedRepo")
        file = "/".join(words[4:])
        if file not in repository.files:
            return self._refuse(404, "EntryNotFound")
        return self._file(file, repository.files[file])

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _take(self) -> None:
        """What a client asks on its way to a commit. Uploads themselves carry no token: their address is the secret."""
        path = unquote(urlsplit(self.path).path).strip("/")
        self.entry, body = Request(self.command, path, None), self._body()
        self.hub.requests.append(self.entry)
        if path.startswith("upload/"):
            self.hub.blobs[hashlib.sha256(body).hexdigest()] = body
            return self._send(b"")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token != GOOD_TOKEN:
            return self._refuse(403 if token == READING_TOKEN else 401, message="no right to write")
        if path == "api/validate-yaml":
            return self._send(b"{}")
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
            self.hub.private.setdefault(name, asked.get("visibility") == "private")
            there = name in self.hub.written
            self.hub.written.setdefault(name, {})
            return self._send(json.dumps({"url": f"{self.hub.url}/{name}"}).encode(), 409 if there else 200)
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                o
                if o["oid"] in self.hub.blobs
                else o | {"actions": {"upload": {"href": f"{self.hub.url}/upload/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._send(json.dumps({"objects": objects}).encode())
        kind, owner, name, verb = path.removeprefix("api/").split("/")[:4]
        files = self.hub.written[f"{kind}/{owner}/{name}"]
        if verb == "preupload":
            return self._send(
                json.dumps({"files": [_mode(f["path"], files) for f in json.loads(body)["files"]]}).encode()
            )
        if self.hub.full:
            return self._refuse(507)
        return self._commit(f"{kind}/{owner}/{name}", files, [json.loads(line) for line in body.splitlines()])

    def _commit(self, repository: str, files: dict[str, bytes], lines: list[dict]) -> None:
        values = [line["value"] for line in lines if line["key"] != "header"]
        data = [base64.b64decode(v["content"]) if "content" in v else self.hub.blobs[v["oid"]] for v in values]
        files |= {value["path"]: one for value, one in zip(values, data, strict=True)}
        self.hub.commits.append([value["path"] for value in values])
        url = f"{self.hub.url}/{repository.removeprefix('models/')}/commit/{COMMIT}"
        self._send(json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode())

    def _body(self) -> bytes:
        if length := self.headers.get("Content-Length"):
            return self.rfile.read(int(length))
        parts = []
        while size := int(self.rfile.readline(), 16):  # in chunks
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _info(self, name: str, repository: Repository) -> dict:
        siblings = []
        for file, data in repository.files.items():
            entry = {"rfilename": file, "size": len(data), "blobId": git_blob(data)}
            if file.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        card = {"license": "llama3.1"}
        return {
            "id": name, "sha": repository.commit, "gated": repository.gated, "cardData": card, "siblings": siblings
        }  # fmt: skip

    def _refuse(self, status: int, code: str | None = None, message: str = "no") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(json.dumps({"error": message}).encode(), status, headers)

    def _file(self, name: str, data: bytes) -> None:
        if self.hub.corrupt.get(name, 0) > 0 and self.command == "GET":
            self.hub.corrupt[name] -= 1
            data = bytes(len(data))
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if self.headers["Range"] else 0
        if start:
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            return self._send(data[start:], 206, headers, name)
        return self._send(data, 200, {}, name)

    def _send(self, body: bytes, status: int = 200, headers: dict | None = None, name: str | None = None) -> None:
        self.entry.status = status
        self.send_response(status)
        for key, value in ({"Content-Length": len(body)} | (headers or {})).items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = self.hub.drop.pop(name, None) or self.hub.stall.get(name) or len(body)
        self.wfile.write(body[:sent])
        self.wfile.flush()
        if sent < len(body):
            if self.hub.stall.pop(name, None):
                self.hub.stalled.set()
                self.hub.released.wait(30)
            self.close_connection = True
