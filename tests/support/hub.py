"""A stand-in for a model hub: the endpoints that huggingface_hub calls to push and to download."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

WRITES, READS = "hf_may_write", "hf_may_read"  # tokens
USER = "someone"
NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """A repository: whether it is private, and its files in the last commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(self.commits).encode()).hexdigest()


@dataclass
class Hub:
    """What the server knows."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on a port of this machine until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def answer(self, status: int, content: object = b"", **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.asked.append(f"{self.command} {path}")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.command in ("POST", "PUT"):
                write(self, path, body, token)
            else:
                read(self, path, token)

        do_GET = do_HEAD = do_POST = do_PUT = do  # noqa: N815  # names that the server asks for

    def write(self: Handler, path: str, body: bytes, token: str) -> None:
        if found := re.fullmatch(r"/objects/(\w+)", path):  # where the hub sends large files
            hub.objects[found[1]] = body
            return self.answer(200)
        if token != WRITES:
            return self.answer(403 if token == READS else 401, {"error": "no"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or USER}/{asked['name']}"
            there = name in hub.repos
            visibility = asked.get("visibility") or (
                "private" if asked.get("private") else "public"
            )
            hub.repos.setdefault(name, Repo(private=visibility == "private"))
            return self.answer(409 if there else 200, {"url": f"{hub.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(rf"/api/models/{NAME}/preupload/main", path):
            large = ".safetensors"
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if re.fullmatch(rf"/{NAME}\.git/info/lfs/objects/batch", path):
            objects = [
                {**asked, "actions": {"upload": {"href": f"{hub.url}/objects/{asked['oid']}"}}}
                for asked in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(rf"/api/models/{NAME}/commit/main", path):
            repo = hub.repos[found["repo"]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    repo.commits.append(value["summary"])
                elif line["key"] == "file":
                    repo.files[value["path"]] = base64.b64decode(value["content"])
                else:
                    repo.files[value["path"]] = hub.objects[value["oid"]]
            where = f"{hub.url}/{found['repo']}/commit/{repo.commit}"
            return self.answer(200, {"commitUrl": where, "commitOid": repo.commit})
        return self.answer(404, {"error": path})

    def read(self: Handler, path: str, token: str) -> None:
        found = re.fullmatch(rf"/(?:api/models/)?{NAME}(?P<rest>/.*)?", path)
        repo = hub.repos.get(found["repo"]) if found else None
        if found is None or repo is None or (repo.private and token not in (WRITES, READS)):
            return self.answer(401 if token == "" else 404, X_Error_Code="RepoNotFound")
        rest = found["rest"] or ""
        if path.startswith("/api/") and re.fullmatch(r"(/revision/\w+)?", rest):
            siblings = [{"rfilename": name} for name in repo.files]
            about = {"id": found["repo"], "sha": repo.commit, "private": repo.private}
            return self.answer(200, {**about, "siblings": siblings, "tags": []})
        if path.startswith("/api/") and re.fullmatch(r"/tree/\w+", rest):
            tree = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in repo.files.items()
            ]
            return self.answer(200, tree)
        if (wanted := re.fullmatch(r"/resolve/\w+/(.*)", rest)) and wanted[1] in repo.files:
            content = repo.files[wanted[1]]
            about = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": repo.commit}
            return self.answer(200, content, Content_Length=str(len(content)), **about)
        return self.answer(404, X_Error_Code="EntryNotFound")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
