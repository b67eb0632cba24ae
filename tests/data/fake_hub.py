"""A hub on 127.0.0.1 that serves files as the real one does: commits, checksums, ranges, and on demand its failures."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`files` maps (repo, commit, file) to bytes, `newest` a repo to its last commit. A repo in `lfs` is served through
    a redirect to another host and checked by SHA-256. Bodies stop after `stall_after_bytes` until `go_on` is set."""

    endpoint: str = ""
    files: dict = field(default_factory=dict)
    newest: dict = field(default_factory=dict)
    lfs: set = field(default_factory=set)
    gated: set = field(default_factory=set)
    corrupt: set = field(default_factory=set)
    stall_after_bytes: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    log: list = field(default_factory=list)

    def put(self, repo, file, content, *, lfs=False, commit=COMMIT):
        self.files[repo, commit, file] = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.newest[repo] = commit
        if lfs:
            self.lfs.add(repo)

    def tree(self, repo):
        return [
            {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for (owner, commit, file), content in self.files.items()
            if (owner, commit) == (repo, self.newest[repo])
        ]

    def requests(self, method="GET"):
        """(path, headers with small letters) of each request so far."""
        return [
            (path, {k.lower(): v for k, v in headers.items()}) for kind, path, headers in self.log if kind == method
        ]

    def environment(self, tmp_path, **more):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "hf_secret",
            "no_proxy": "*",
            "PYTHONDONTWRITEBYTECODE": "1",
            **more,
        }

    def run(self, tmp_path, *command, cwd=ROOT, **environment):
        """Run a script of the project against this hub; its caches are below tmp_path."""
        command = [sys.executable, *map(str, command)]
        return subprocess.run(
            command, cwd=cwd, env=self.environment(tmp_path, **environment), capture_output=True, text=True
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path = unquote(urlparse(self.path).path)
        self.hub.log.append((self.command, path, dict(self.headers)))
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":
            content = next(data for data in self.hub.files.values() if hashlib.sha256(data).hexdigest() == parts[1])
            self.send_content(content, {}, with_body)
        elif parts[0] == "datasets" and parts[3] == "resolve":
            self.resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), with_body)
        elif parts[:2] == ["api", "datasets"]:
            self.api("/".join(parts[2:4]), parts[4:], with_body)
        else:
            self.send(404, b"", {})

    def api(self, repo, rest, with_body):
        if repo not in self.hub.newest:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if rest and rest[0] == "tree":
            body = [entry for entry in self.hub.tree(repo) if entry["path"].startswith("/".join(rest[2:]))]
        else:
            siblings = [{"rfilename": entry["path"]} for entry in self.hub.tree(repo)]
            body = {"id": repo, "sha": self.hub.newest[repo], "private": False, "gated": False, "disabled": False,
                    "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}  # fmt: skip
        return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, with_body)

    def resolve(self, repo, revision, file, with_body):
        if repo in self.hub.gated:
            return self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
        if repo not in self.hub.newest:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        commit = self.hub.newest[repo] if revision == "main" else revision
        if not any(key[:2] == (repo, commit) for key in self.hub.files):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if (repo, commit, file) not in self.hub.files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = self.hub.files[repo, commit, file]
        headers = {"X-Repo-Commit": commit}
        if repo not in self.hub.lfs:
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            return self.send_content(
                content, {**headers, "ETag": f'"{blob}"'}, with_body, corrupt=repo in self.hub.corrupt
            )
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        port = self.server.server_address[1]
        return self.send(302, b"", {**headers, "Location": f"http://localhost:{port}/cdn/{digest}"}, with_body)

    def send_content(self, content, headers, with_body, corrupt=False):
        status, first = 200, 0
        if requested := self.headers.get("Range"):
            first = int(requested.removeprefix("bytes=").split("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        body = content[first:]
        if corrupt:
            body = bytes(byte ^ 1 for byte in body)
        self.send(status, body, headers, with_body, stall_after_bytes=self.hub.stall_after_bytes)

    def send(self, status, body, headers, with_body=True, stall_after_bytes=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        with contextlib.suppress(ConnectionError):
            if stall_after_bytes is not None and stall_after_bytes < len(body):
                self.wfile.write(body[:stall_after_bytes])
                self.wfile.flush()
                self.hub.go_on.wait(timeout=60)
                body = body[stall_after_bytes:]
            self.wfile.write(body)
