"""A repository on the Hub at one commit: its files are listed and downloaded into huggingface_hub's cache.

Without a connection, the files that the cache holds stand for the listing.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import HubConnectionError, HubEntryError, HubError
from .client import explained_errors, import_client

PREFIX = "hf://"
DOWNLOADS = 8  # at the same time, as many as huggingface_hub's own


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit.

    Attributes:
        repo_id: "OWNER/NAME".
        commit: Hash of the commit, which names the same files forever.
        token: Access token, or None for the one that `hf auth login` or HF_TOKEN stored.
    """

    repo_id: str
    commit: str
    token: str | None = field(default=None, repr=False)

    def address(self, path: str = "") -> str:
        """Return the address of a file or folder: `hf://OWNER/NAME@COMMIT[/PATH]`."""
        return format_address(self.repo_id, self.commit, path)

    @property
    def folder(self) -> Path:
        """The folder of the cache that holds the files of this commit, whether it exists or not."""
        client = import_client()
        from huggingface_hub.file_download import repo_folder_name

        name = repo_folder_name(repo_id=self.repo_id, repo_type="model")
        return Path(client.constants.HF_HUB_CACHE).expanduser().resolve() / name / "snapshots" / self.commit

    def list_files(self, path: str = "", recursive: bool = True) -> list[str]:
        """Return the paths of the files in the folder `path`, or `[path]` if it is a file, sorted.

        Raises:
            HubEntryError: The file or folder does not exist.
            HubConnectionError: The Hub cannot be reached, and the cache holds nothing of it.
            HubError: Access is refused.
        """
        client = import_client()
        try:
            with explained_errors(self.address(path)):
                api = client.HfApi(token=self.token)
                if path:
                    (entry,) = api.get_paths_info(self.repo_id, [path], revision=self.commit) or [None]
                    if entry is None:
                        raise HubEntryError(
                            f"{self.address(path)} does not exist: the repository has no such file or folder."
                        )
                    if isinstance(entry, client.RepoFile):
                        return [path]
                tree = api.list_repo_tree(self.repo_id, path or None, recursive=recursive, revision=self.commit)
                return sorted(entry.path for entry in tree if isinstance(entry, client.RepoFile))
        except HubConnectionError as error:
            if not (cached := self._cached_files(path, recursive)):
                raise
            logging.getLogger(__name__).warning("%s The files in the cache are used.", error)
            return cached

    def download(self, path: str) -> Path:
        """Return the path of a file in the cache, after downloading it if it is not there.

        Raises:
            HubError: The file does not exist, access is refused, or the Hub cannot be reached.
        """
        client = import_client()
        # A commit does not change: a file that the Hub did not have once is not asked for again.
        if client.try_to_load_from_cache(self.repo_id, path, revision=self.commit) is client._CACHED_NO_EXIST:
            raise HubEntryError(f"{self.address(path)} does not exist: the repository has no such file.")
        with explained_errors(self.address(path)):
            return Path(client.hf_hub_download(self.repo_id, path, revision=self.commit, token=self.token))

    def download_all(self, paths: Sequence[str]) -> list[Path]:
        """Return the paths of several files in the cache; those that are not there are downloaded at the same time.

        Raises:
            HubError: As for `download`.
        """
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            return list(pool.map(self.download, paths))

    def _cached_files(self, path: str, recursive: bool) -> list[str]:
        place = self.folder / path
        if place.is_file():
            return [path]
        found = place.rglob("*") if recursive else place.glob("*")
        return sorted(file.relative_to(self.folder).as_posix() for file in found if file.is_file())


def open_repository(repo_id: str, revision: str | None = None, token: str | None = None) -> Repository:
    """Return a repository at the commit that `revision` names now.

    Args:
        repo_id: "OWNER/NAME".
        revision: Branch, tag or commit; None for the branch "main".
        token: Access token, or None for the one that `hf auth login` or HF_TOKEN stored.

    Raises:
        HubError: The repository or the revision does not exist, access is refused, or the Hub cannot be reached and
            the cache does not have the revision.
    """
    client = import_client()
    with explained_errors(format_address(repo_id, revision)):
        resolved = client.HfApi(token=token).resolve_revision(repo_id, revision=revision)
    return Repository(repo_id, resolved.resolved, token)


def parse_address(address: str) -> tuple[str, str | None, str]:
    """Return the repository, the revision and the path of `hf://OWNER/NAME[@REVISION][/PATH]`.

    Raises:
        HubError: It is not such an address, or names another kind of repository than a model.
    """
    client = import_client()
    with explained_errors(address):
        uri = client.parse_hf_uri(address)
    if uri.type != "model":
        raise HubError(f"{address} is a {uri.type}; only model repositories can be read: hf://OWNER/NAME[@REV][/PATH].")
    return uri.id, uri.revision, uri.path_in_repo.strip("/")


def format_address(repo_id: str, revision: str | None = None, path: str = "") -> str:
    """Return `hf://OWNER/NAME[@REVISION][/PATH]`."""
    return f"{PREFIX}{repo_id}{f'@{revision}' if revision else ''}{f'/{path}' if path else ''}"
