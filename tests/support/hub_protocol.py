"""The protocol of the Hugging Face Hub, as far as huggingface_hub's client uses it for models: one request at a time.

Source: huggingface_hub 2.4, `hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py`, `utils/_http.py`.
"""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_owner"
LFS_FROM = 2000  # bytes; smaller files are regular
PAGE = 50  # files in one answer of a listing


class Handler(BaseHTTPRequestHandler):
    """Answers one request. `hub` is the `HubServer`, whose repositories it reads and changes."""

    hub: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Print nothing."""

    def do_GET(self):
        self._answer("GET")

    def do_HEAD(self):
        self._answer("HEAD")

    def do_POST(self):
        self._answer("POST")

    def do_PUT(self):
        self._answer("PUT")

    def _answer(self, method):
        self.body = self._read_body()
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.hub.log.append((method, unquote(parts.path)))
        if self.hub.down:
            return self._send(503, {"error": "down"})
        segments = [unquote(segment) for segment in parts.path.strip("/").split("/")]
        match segments:
            case ["api", "repos", "create"]:
                return self._create()
            case ["api", "validate-yaml"]:
                return self._validate()
            case ["api", "models", owner, name, *rest]:
                return self._within(f"{owner}/{name}", self._api, rest)
            case ["objects", oid]:
                return self._object(method, oid)
            case [owner, name, "resolve", revision, *path]:
                return self._within(f"{owner}/{name}", self._resolve, revision, "/".join(path))
            case [owner, name, "info", "lfs", "objects", "batch"]:
                return self._within(f"{owner}/{name.removesuffix('.git')}", self._batch)
        return self._send(404, {"error": "no such page"})

    def _read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _within(self, repo_id, answer, *arguments):
        """Answer a request to a repository, if it exists and the token allows it."""
        repo, owner = self.hub.repos.get(repo_id), self._is_owner()
        if repo is None or (repo.private and not owner):
            status = 404 if owner else 401
            return self._send(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        listing = answer == self._api
        if repo.gated and not owner and not listing:  # a gated repository lists its files for everybody
            text = f"Access to model {repo_id} is restricted."
            return self._send(403, {"error": text}, {"X-Error-Code": "GatedRepo", "X-Error-Message": text})
        return answer(repo_id, repo, *arguments)

    def _is_owner(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _api(self, repo_id, repo, rest):
        match rest:
            case [] | ["revision", _]:
                commit = repo.find(rest[1] if rest else "main")
                if commit is None:
                    return self._no_revision()
                return self._send(200, {"id": repo_id, "modelId": repo_id, "sha": commit, "private": repo.private})
            case ["tree", revision, *path]:
                return self._tree(repo, revision, "/".join(path))
            case ["paths-info", revision]:
                if (commit := repo.find(revision)) is None:
                    return self._no_revision()
                wanted = parse_qs(self.body.decode())["paths"]
                return self._send(200, [entry for path in wanted for entry in self._entry(repo.commits[commit], path)])
            case ["branch", branch]:
                return self._branch(repo, branch)
            case ["preupload", _]:
                return self._preupload()
            case ["commit", branch]:
                return self._commit(repo_id, repo, branch)
        return self._send(404, {"error": "no such page"})

    def _tree(self, repo, revision, path):
        if (commit := repo.find(revision)) is None:
            return self._no_revision()
        files = repo.commits[commit]
        prefix = f"{path}/" if path else ""
        inside = sorted(name for name in files if name.startswith(prefix))
        if not inside:
            return self._no_entry(commit)
        folders = {name[: name.index("/", len(prefix))] for name in inside if "/" in name[len(prefix) :]}
        if self.query.get("recursive", ["false"])[0].lower() == "true":
            names = inside
        else:
            names = sorted(folders) + [name for name in inside if "/" not in name[len(prefix) :]]
        start = int(self.query.get("cursor", ["0"])[0])
        entries = [entry for name in names[start : start + PAGE] for entry in self._entry(files, name)]
        headers = {}
        if start + PAGE < len(names):
            query = "&".join(f"{key}={values[0]}" for key, values in self.query.items() if key != "cursor")
            headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{query}&cursor={start + PAGE}>; rel="next"'
        return self._send(200, entries, headers)

    def _entry(self, files, path):
        if path in files:
            data = files[path]
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
            if len(data) >= LFS_FROM:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            return [entry]
        return [{"type": "directory", "path": path, "oid": "0" * 40}] if any(
            name.startswith(f"{path}/") for name in files) else []  # fmt: skip

    def _resolve(self, repo_id, repo, revision, path):
        if (commit := repo.find(revision)) is None:
            return self._no_revision()
        if path not in (files := repo.commits[commit]):
            return self._no_entry(commit)
        data = files[path]
        headers = {"X-Repo-Commit": commit}
        if len(data) < LFS_FROM:
            self.hub.names[unquote(urlsplit(self.path).path)] = path
            return self._send_bytes(data, headers | {"ETag": f'"{git_hash(data)}"'})
        oid = hashlib.sha256(data).hexdigest()
        self.hub.objects[oid] = data
        self.hub.names[f"/objects/{oid}"] = path
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{oid}"', "ETag": f'"{git_hash(data)}"'}
        return self._send(302, {}, headers | {"Location": f"{self.hub.storage}/objects/{oid}"})

    def _object(self, method, oid):
        """Receive or send an LFS object, as the storage behind the Hub does."""
        assert "Authorization" not in self.headers
        if method == "PUT":
            if self.hub.full:
                return self._send(400, {"error": "no space is left"})
            assert hashlib.sha256(self.body).hexdigest() == oid
            self.hub.objects[oid] = self.body
            return self._send(200, {}, {"ETag": f'"{oid}"'})
        if oid not in self.hub.objects:
            return self._send(404, {"error": "no such object"})
        return self._send_bytes(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _create(self):
        if not self._is_owner():
            return self._send(401, {"error": "Invalid username or password."})
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if repo_id in self.hub.repos:
            return self._send(409, {"error": "You already created it", "url": f"{self.hub.url}/{repo_id}"})
        self.hub.add(repo_id, {".gitattributes": b"*.onnx filter=lfs\n"}, private=asked.get("visibility") == "private")
        return self._send(200, {"url": f"{self.hub.url}/{repo_id}"})

    def _validate(self):
        content = json.loads(self.body)["content"]
        refused = [name for name in self.hub.refused_licenses if f"license: {name}\n" in content]
        errors = [{"message": f'"license" must be one of the known licences, not "{name}"'} for name in refused]
        return self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _branch(self, repo, branch):
        if not self._is_owner():
            return self._may_not_write()
        if branch in repo.branches:
            return self._send(409, {"error": "Reference already exists"})
        repo.branches[branch] = repo.branches["main"]
        return self._send(200, {})

    def _preupload(self):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS_FROM else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        return self._send(200, {"files": files})

    def _batch(self, repo_id, repo):
        if not self._is_owner():
            return self._may_not_write()
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            known = wanted["oid"] in self.hub.objects
            upload = {"actions": {"upload": {"href": f"{self.hub.storage}/objects/{wanted['oid']}"}}}
            objects.append({**wanted, **({} if known else upload)})
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo_id, repo, branch):
        if not self._is_owner():
            return self._may_not_write()
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        parent = repo.branches[branch]
        if header.get("parentCommit", parent) != parent:
            return self._send(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(repo.commits[parent])
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repo.commit(files, branch, header["summary"])
        return self._send(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit}", "commitOid": commit})

    def _may_not_write(self):
        text = "You need write access"
        return self._send(403, {"error": text}, {"X-Error-Message": text})

    def _no_revision(self):
        return self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})

    def _no_entry(self, commit):
        return self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    def _send(self, status, content, headers=()):
        data = json.dumps(content).encode()
        self._write(status, data, {"Content-Type": "application/json", **dict(headers)})

    def _send_bytes(self, data, headers):
        asked = self.headers.get("Range", "")
        status, start = 200, 0
        if asked.startswith("bytes="):
            status, start = 206, int(asked.removeprefix("bytes=").split("-")[0])
            headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self._write(status, data[start:], headers | {"Accept-Ranges": "bytes"})

    def _write(self, status, data, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def git_hash(data):
    """Return the name that Git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()
