"""A bucket on this machine: the part of Google's JSON API that TensorStore asks for, and the same files for epath.

What it is not: slow, far away, or without directories.
"""

import contextlib
import hashlib
import http.server
import json
import sys
import threading
import types
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from etils import epath
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class _Api(http.server.BaseHTTPRequestHandler):
    """Objects are files under `root`, by bucket and name; a file's generation is the hash of its bytes."""

    root: Path
    protocol_version = "HTTP/1.1"

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _asked(self) -> tuple[Path, list[str], dict[str, str]]:
        """The bucket's folder, the path behind it, the query."""
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.partition("/b/")[2].split("/")]
        return self.root / parts[0], parts[2:], dict(urllib.parse.parse_qsl(url.query))

    def do_GET(self) -> None:
        bucket, rest, query = self._asked()
        if not rest:
            names = sorted(str(p.relative_to(bucket)) for p in bucket.rglob("*") if p.is_file())
            found = [{"name": name} for name in names if name.startswith(query.get("prefix", ""))]
            return self._answer(200, json.dumps({"items": found}).encode(), Content_Type="application/json")
        file = bucket / rest[0]
        if not file.is_file():
            return self._answer(404)
        data = file.read_bytes()
        generation = _generation(data)
        if query.get("ifGenerationNotMatch") == generation:
            return self._answer(304, x_goog_generation=generation)
        if given := self.headers.get("Range"):
            first, _, last = given.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            span = f"bytes {begin}-{end}/{len(data)}"
            return self._answer(206, data[begin : end + 1], x_goog_generation=generation, Content_Range=span)
        return self._answer(200, data, x_goog_generation=generation)

    def do_POST(self) -> None:
        bucket, _, query = self._asked()
        file, data = bucket / query["name"], self.rfile.read(int(self.headers["Content-Length"]))
        there = _generation(file.read_bytes()) if file.is_file() else "0"
        if query.get("ifGenerationMatch", there) != there:
            return self._answer(412)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        answer = {"generation": _generation(data), "name": query["name"], "size": str(len(data))}
        return self._answer(200, json.dumps(answer).encode(), Content_Type="application/json")

    def do_DELETE(self) -> None:
        bucket, rest, _ = self._asked()
        (bucket / rest[0]).unlink(missing_ok=True)
        self._answer(204)

    def log_message(self, *arguments: Any) -> None:
        pass


def _generation(data: bytes) -> str:
    return str(int.from_bytes(hashlib.sha256(data).digest()[:6], "big") + 1)


class _Files(DirFileSystem):
    """gs:// for fsspec."""

    protocol = ("gs", "gcs")
    root: str
    cachable = False

    def __init__(self, **ignored: Any):
        super().__init__(self.root, LocalFileSystem(auto_mkdir=True))

    def _join(self, path: Any) -> Any:
        return super()._join(self._strip_protocol(path))


@contextlib.contextmanager
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket whose objects are the files of `folder`/bucket."""
    (folder / "bucket").mkdir()
    # Orbax asks Google's own library whether the bucket has folders; this one has not.
    storage = types.ModuleType("google.cloud.storage")
    storage.Client = lambda: types.SimpleNamespace(get_bucket=lambda name: object())
    cloud = types.ModuleType("google.cloud")
    cloud.storage = storage
    monkeypatch.setitem(sys.modules, "google.cloud", cloud)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", storage)
    api = type("Api", (_Api,), {"root": folder})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "nobody")
    monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.1:1")
    files = type("Files", (_Files,), {"root": str(folder)})
    for scheme in ("gs", "gcs"):
        fsspec.register_implementation(scheme, files, clobber=True)
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    try:
        yield "gs://bucket"
    finally:
        server.shutdown()
        server.server_close()
        epath.backend.fsspec_backend._get_filesystem.cache_clear()
