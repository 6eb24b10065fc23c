"""A server on this computer that answers ``huggingface_hub`` as the Hugging Face hub does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.conftest import ENVIRONMENT

LARGE = (".pt", ".pth", ".safetensors", ".bin")  # kept by the hash of their content, and served from another address
_PIECE = 4096


@dataclass
class Request:
    method: str
    path: str
    range: str | None


@dataclass
class Hub:
    """The server: what it has, how it misbehaves, and what was asked of it.

    Attributes:
        repos: content by repository and path.
        gated: repositories that ask for accepted terms.
        breaks: by path, after how many bytes the connection is closed, in every answer.
        stalls: by path, after how many bytes an answer waits until ``go_on`` is set.
        delivers: by path, what is sent instead of the content; sizes and hashes are still the content's.
        status: by repository, the status of all answers.
        ranges: whether requests for a part of a file get a part.
    """

    repos: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    breaks: dict[str, int] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    delivers: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)

    def commit(self, repo: str) -> str:
        """The commit of a repository's content; also called ``main``."""
        digest = hashlib.sha1(repo.encode())
        for path, content in sorted(self.repos[repo].items()):
            digest.update(path.encode() + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def file(self, repo: str, path: str, /, **more: Any) -> dict[str, Any]:
        """A registry entry for one of its files, pinned, with size and hash."""
        content = self.repos[repo][path]
        sha256 = hashlib.sha256(content).hexdigest()
        entry = {"repo": repo, "path": path, "revision": self.commit(repo), "size": len(content), "sha256": sha256}
        return {**entry, **more}

    def downloads(self, path: str) -> list[Request]:
        """Requests for the content of a file."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith("/" + path) and "/cdn/" in r.path]


def environment(hub: Hub | str, home: Path, registry: Path | None = None, **more: str) -> dict[str, str]:
    """Environment of a process that talks to this hub, with a cache and settings of its own in ``home``."""
    kept = {k: v for k, v in ENVIRONMENT.items() if not k.startswith(("HF_", "HUGGING", "LONGTAKE_", "TRANSFORMERS_"))}
    made = {
        **kept,
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
        "HF_HOME": str(home / "hf"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if registry is not None:
        made["LONGTAKE_MODELS"] = str(registry)
    return {**made, **more}


def write_registry(path: Path, models: Mapping[str, Any], bases: Mapping[str, Any] | None = None) -> Path:
    """A registry file with these entries (JSON is YAML)."""
    path.write_text(json.dumps({"models": models, "bases": bases or {}}, indent=1))
    return path


def folder_content(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their path in it, to be served as a repository."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@contextlib.contextmanager
def serve(repos: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """Serves repositories, given as ``{repo: {path: content}}``, until the block is left."""
    hub = Hub({repo: dict(files) for repo, files in repos.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def closed_port() -> str:
    """An address that nobody answers at."""
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/")
            hub.requests.append(Request(self.command, "/" + path, self.headers.get("Range")))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if path.startswith("api/models/"):
                    name, _, revision = path.removeprefix("api/models/").partition("/revision/")
                    self._model(name, revision or "main")
                elif path.startswith("cdn/"):
                    repo, _, file = path.removeprefix("cdn/").partition("/-/")
                    self._content(repo, file)
                else:
                    repo, _, rest = path.partition("/resolve/")
                    revision, _, file = rest.partition("/")
                    self._resolve(repo, revision, file)

        def _refused(self, repo: str, revision: str, file: str | None = None) -> bool:
            if repo in hub.status:
                self._send(hub.status[repo])
            elif repo in hub.gated:
                self._send(403 if self.headers.get("Authorization") else 401, {"X-Error-Code": "GatedRepo"})
            elif repo not in hub.repos:
                self._send(404, {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", hub.commit(repo)):
                self._send(404, {"X-Error-Code": "RevisionNotFound"})
            elif file is not None and file not in hub.repos[repo]:
                self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit(repo)})
            else:
                return False
            return True

        def _model(self, repo: str, revision: str) -> None:
            if self._refused(repo, revision):
                return
            files = []
            for path, content in hub.repos[repo].items():
                entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _git_hash(content)}
                if path.endswith(LARGE):
                    sha256 = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 135}
                files.append(entry)
            body = json.dumps({"id": repo, "modelId": repo, "sha": hub.commit(repo), "siblings": files}).encode()
            self._send(200, {"Content-Type": "application/json"}, body)

        def _resolve(self, repo: str, revision: str, file: str) -> None:
            if self._refused(repo, revision, file):
                return
            content = hub.repos[repo][file]
            headers = {"X-Repo-Commit": hub.commit(repo), "Accept-Ranges": "bytes"}
            if not file.endswith(LARGE):
                self._send(200, {**headers, "ETag": f'"{_git_hash(content)}"'}, hub.delivers.get(file, content))
                return
            cdn = hub.url.replace("127.0.0.1", "localhost")  # another host, as far as the library can tell
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
            self._send(302, {**headers, "Location": f"{cdn}/cdn/{repo}/-/{file}"})

        def _content(self, repo: str, file: str) -> None:
            content = hub.delivers.get(file, hub.repos[repo][file])
            start, asked = 0, self.headers.get("Range")
            if asked and hub.ranges:
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                place = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self._head(206, {"Content-Range": place}, len(content) - start)
            else:
                self._head(200, {"Accept-Ranges": "bytes"}, len(content))
            if self.command == "HEAD":
                return
            for at in range(start, len(content), _PIECE):
                if at - start >= hub.breaks.get(file, len(content)):
                    self.close_connection = True
                    return
                if at >= hub.stalls.get(file, len(content)) and not hub.go_on.is_set():
                    self.wfile.flush()
                    hub.stalled.set()
                    hub.go_on.wait(60)
                self.wfile.write(content[at : at + _PIECE])

        def _head(self, status: int, headers: Mapping[str, str], length: int) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def _send(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
            self._head(status, headers or {}, len(body))
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


__all__ = ["Hub", "Request", "closed_port", "environment", "folder_content", "serve", "write_registry"]
