"""A hub on loopback: the part of the Hugging Face protocol that the real client speaks, with faults on demand.

Repositories live in memory as commits of whole files. Xet storage is not offered, so large files go by git-LFS.
"""

import base64
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.conftest import ROOT

TOKEN = "hf_valid"
READER = "hf_reader"
OWNER = "trader"
PAGE = 7
LARGE = (".safetensors", ".parquet", ".bin")


def client(url: str, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """The environment of a process that uses the hub at ``url``, with a cache and a login of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings} | ({"HF_TOKEN": token} if token else {})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """Commits by their hash, and the branches that point at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    declared: dict[str, int] = field(default_factory=dict)
    """Sizes that the listing gives instead of the true ones."""

    def commit(self, branch: str, files: Mapping[str, bytes]) -> str:
        text = json.dumps([self.branches.get(branch), sorted((k, _git_oid(v)) for k, v in files.items())])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """The server; a context manager that listens on a free port.

    ``faults``: ``drop`` closes that many uploads halfway; ``stall`` holds every upload halfway until ``resume`` is set;
    ``commit`` answers that many commits with 500; ``down`` answers everything with 503.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: dict[str, int] = {}
        self.requests: list[str] = []
        self.halfway, self.resume = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.resume.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: Mapping[str, bytes], **about: Any) -> str:
        """A repository (or another commit of one) as if it had been uploaded by hand; its commit."""
        repo = self.repos.setdefault(name, Repo())
        for key, value in about.items():
            setattr(repo, key, value)
        return repo.commit("main", {".gitattributes": b"* text=auto\n", **files})

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.branches[revision]]

    def took(self, fault: str) -> bool:
        """Whether a fault is due now; counts it down."""
        left = self.faults.get(fault, 0)
        if left:
            self.faults[fault] = left - 1
        return left > 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        if self.hub.faults.get("down"):
            self._body()
            return self._send(503, {"error": "down for maintenance"})
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (TOKEN, READER):
            self._body()
            return self._fail(401, "", "Invalid credentials in Authorization header")
        self.user = {TOKEN: OWNER, READER: "reader"}.get(token)
        if parts[0] == "lfs":
            return self._put_large(parts[1])
        if parts[0] == "api" and parts[1] != "models":
            return self._account(parts[1:])
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.user != OWNER):
            self._body()
            return self._fail(404 if self.user else 401, "RepoNotFound", "Repository not found")
        self.name, self.repo = name, repo
        return self._model(parts[4:]) if parts[0] == "api" else self._files(parts[2:])

    def _account(self, parts: list[str]) -> None:
        if parts[0] == "whoami-v2":
            return self._send(200, {"type": "user", "name": self.user, "orgs": []}) if self.user else self._fail(401)
        if parts[0] == "validate-yaml":
            self._body()
            return self._send(200, {"errors": [], "warnings": []})
        if parts == ["repos", "create"]:
            asked = json.loads(self._body())
            name = f"{asked['organization'] or self.user}/{asked['name']}"
            if name.split("/")[0] != self.user:
                return self._fail(403, "", "You don't have the rights to create a model under this namespace")
            answer = {"url": f"{self.hub.url}/{name}", "name": name}
            if name in self.hub.repos:
                return self._send(409, {"error": "You already created this model repo", **answer})
            self.hub.add(name, {}, private=asked.get("visibility") == "private")
            return self._send(200, answer)
        self._body()
        return self._fail(404)

    def _model(self, parts: list[str]) -> None:
        body = self._body()
        if not parts or parts[0] == "revision":
            sha = self._sha(parts[1] if parts else "main")
            if sha:
                files = [{"rfilename": name} for name in self.repo.commits[sha]]
                about = {"id": self.name, "sha": sha, "private": self.repo.private, "siblings": files, "tags": []}
                self._send(200, about)
        elif parts[0] == "tree":
            self._tree(parts[1])
        elif self.user != OWNER:
            self._fail(403, "", "You need write access to this repository")
        elif parts[0] == "branch":
            made = parts[1] not in self.repo.branches
            self.repo.branches.setdefault(parts[1], self.repo.branches["main"])
            self._send(200 if made else 409, {})
        elif parts[0] == "preupload":
            files = [
                {"path": x["path"], "uploadMode": "lfs" if x["path"].endswith(LARGE) else "regular"}
                | {"shouldIgnore": False, "oid": None}
                for x in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})
        elif parts[0] == "commit":
            self._commit(parts[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._fail(404)

    def _tree(self, revision: str) -> None:
        sha = self._sha(revision)
        if not sha:
            return
        start = int(self.query.get("cursor", ["0"])[0])
        entries = []
        for name, content in list(self.repo.commits[sha].items())[start : start + PAGE]:
            size = self.repo.declared.get(name, len(content))
            entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": _git_oid(content)}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}
            entries.append(entry)
        more = start + PAGE < len(self.repo.commits[sha])
        link = f'<{self.hub.url}/api/models/{self.name}/tree/{sha}?recursive=True&cursor={start + PAGE}>; rel="next"'
        self._send(200, entries, {"Link": link} if more else {})

    def _commit(self, branch: str, lines: list[dict[str, Any]]) -> None:
        if self.hub.took("commit"):
            return self._fail(500, "", "Internal error")
        files = dict(self.repo.commits[self.repo.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit", self.repo.branches[branch]) != self.repo.branches[branch]:
                    return self._fail(412, "", "A commit has happened since")
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    return self._fail(400, "", f"no object {value['oid']}")
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                del files[value["path"]]
        sha = self.repo.commit(branch, files)
        url = f"{self.hub.url}/{self.name}/commit/{sha}"
        return self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": None})

    def _files(self, parts: list[str]) -> None:
        if parts[0] == "resolve":
            return self._resolve(parts[1], "/".join(parts[2:]))
        asked = json.loads(self._body())
        if self.user != OWNER:
            return self._fail(403, "", "You need write access to this repository")
        if parts[-1] == "verify":
            return self._send(200 if asked["oid"] in self.hub.large else 404, {})
        objects = []
        for item in asked["objects"]:
            links = {
                "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"},
                "verify": {"href": f"{self.hub.url}/{self.name}.git/info/lfs/objects/verify"},
            }
            objects.append(item if item["oid"] in self.hub.large else {**item, "actions": links})
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _put_large(self, oid: str) -> None:
        length = int(self.headers["Content-Length"])
        start = self.rfile.read(length // 2)
        drop = self.hub.took("drop")
        if self.hub.took("stall"):
            self.hub.halfway.set()
            self.hub.resume.wait()
            drop = True
        if drop:
            self.close_connection = True
            return
        content = start + self.rfile.read(length - len(start))
        if hashlib.sha256(content).hexdigest() == oid:
            self.hub.large[oid] = content
        self._send(200 if oid in self.hub.large else 400, {})

    def _resolve(self, revision: str, path: str) -> None:
        sha = self._sha(revision)
        if not sha:
            return None
        if self.repo.gated:
            return self._fail(403, "GatedRepo", "Access to this model is restricted")
        content = self.repo.commits[sha].get(path)
        if content is None:
            return self._fail(404, "EntryNotFound", "Entry not found")
        large = path.endswith(LARGE)
        etag = hashlib.sha256(content).hexdigest() if large else _git_oid(content)
        return self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "X-Linked-Size": str(len(content))})

    def _sha(self, revision: str) -> str | None:
        sha = self.repo.resolve(revision)
        if sha is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _fail(self, status: int, code: str = "", message: str = "no") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, {"error": message}, headers)

    def _send(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        with suppress(OSError):  # the client may be gone
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
