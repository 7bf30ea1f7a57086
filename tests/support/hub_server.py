"""A server on 127.0.0.1 that speaks the Hugging Face Hub's protocol, for huggingface_hub's own client.

It keeps repositories in memory: commits, branches, private and gated access, and files, of which large ones are stored
as Git LFS objects behind a redirect. Every request is logged, so that a test can tell what was downloaded.
"""

import contextlib
import hashlib
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from tests.support.hub_protocol import Handler


@dataclass
class Repo:
    """A repository: the files of each commit, and the commit of each branch."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    private: bool = False
    gated: bool = False

    def commit(self, files, branch="main", title=""):
        name = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = dict(files), name
        self.titles.append(title)
        return name

    def find(self, revision):
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer:
    """The server; use it as a context manager.

    Attributes:
        repos: The repositories, by "OWNER/NAME".
        log: Method and path of each request.
        names: For each path of a request for content, the path of the file in its repository.
        refused_licenses: Licences that the check of a model card's metadata refuses.
        down: Whether every request is answered with status 503.
        full: Whether uploads of large files are refused.
    """

    def __init__(self):
        self.repos, self.log, self.objects, self.names, self.down = {}, [], {}, {}, False
        self.refused_licenses, self.full = set(), False
        hub = self
        handler = type("Bound", (Handler,), {"hub": hub})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.storage = f"http://localhost:{self._server.server_port}"  # another host, to which no token is sent

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self):
        """Stop to listen; later requests are refused by the system."""
        with contextlib.suppress(OSError):
            self._server.shutdown()
            self._server.server_close()

    def add(self, repo_id, files, **settings):
        """Add a repository with one commit, and return the hash of the commit."""
        self.repos[repo_id] = Repo(**settings)
        return self.repos[repo_id].commit(files)

    def add_folder(self, repo_id, folder, **settings):
        """Add a repository with the files of a folder, and return the hash of the commit."""
        found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return self.add(repo_id, found, **settings)

    @property
    def downloaded(self):
        """The paths of the files whose content was sent, in the order of the requests."""
        sent = [path for how, path in self.log if how == "GET"]
        return [self.names[path] for path in sent if path in self.names]

    def connect(self, monkeypatch, cache):
        """Let huggingface_hub in this process use this server and a cache of its own, as HF_ENDPOINT and HF_HOME do."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its transfers need Hugging Face's own servers
        monkeypatch.delenv("HF_TOKEN", raising=False)

    def environment(self, cache):
        """Return the variables that make another process use this server."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
