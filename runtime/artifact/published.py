"""Artifacts on the Hugging Face Hub: downloading one, and uploading one with its model card."""

import contextlib
import posixpath
import warnings

from ..errors import ArtifactError, HubEntryError, HubError
from ..hub.client import explained_errors, import_client
from ..hub.repository import Repository, format_address, open_repository
from .card import CARD, MARK, model_card
from .folder import Artifact, read_artifact
from .manifest import MANIFEST
from .signature import SIGNATURE


def download_artifact(
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | None = None,
    signed: bool = False,
) -> Artifact:
    """Return the artifact of a repository, after downloading its files that the cache does not hold.

    Only its own files are downloaded: the manifest, those that it names, and the signature if it is asked for.

    Args:
        repo_id: "OWNER/NAME".
        revision: Branch, tag or commit; None for the branch "main".
        subfolder: Folder of the artifact in the repository; "" for its root.
        token: Access token, or None for the one that `hf auth login` or HF_TOKEN stored.
        signed: Whether to download the signature, too, if there is one.

    Raises:
        HubError: The repository, the revision or the artifact does not exist, access is refused, the Hub cannot be
            reached, or huggingface_hub is not installed.
        ManifestError: The manifest cannot be read.
    """
    repository = open_repository(repo_id, revision, token)
    subfolder = subfolder.strip("/")
    place = posixpath.join(subfolder, MANIFEST)
    try:
        manifest = repository.download(place)
    except HubEntryError as error:
        raise HubEntryError(
            f"{repository.address(subfolder)} is not an artifact: it has no {MANIFEST}. {_found(repository, subfolder)}"
        ) from error
    artifact = read_artifact(manifest.parent)
    repository.download_all([posixpath.join(subfolder, name) for name in artifact.manifest.files])
    if signed:
        with contextlib.suppress(HubEntryError):  # whoever opens the artifact says that it is not signed
            repository.download(posixpath.join(subfolder, SIGNATURE))
    return artifact


def upload_artifact(
    artifact: Artifact,
    repo_id: str,
    *,
    subfolder: str = "",
    private: bool | None = None,
    branch: str | None = None,
    token: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload an artifact in one commit, and return the URL of the commit; see `Artifact.push_to_hub`."""
    artifact.check_files()
    client = import_client()
    subfolder = subfolder.strip("/")
    where = format_address(repo_id, branch, subfolder)
    card = model_card(artifact.manifest, repo_id, subfolder=subfolder, license=license, base_model=base_model)
    with explained_errors(where):
        api = client.HfApi(token=token, library_name="saeexport")
        api.create_repo(repo_id, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
    repository = open_repository(repo_id, branch, token)
    with explained_errors(where):
        names = [MANIFEST, *artifact.manifest.files, *([SIGNATURE] if (artifact.folder / SIGNATURE).exists() else [])]
        uploads: dict[str, str | bytes] = {name: str(artifact.folder / name) for name in names}
        if _is_ours(repository, posixpath.join(subfolder, CARD)):
            uploads[CARD] = card.encode()
        else:
            warnings.warn(
                f"{where} has a {CARD} that saeexport did not write; it is left as it is.", UserWarning, stacklevel=3
            )
        operations = [
            *(client.CommitOperationAdd(posixpath.join(subfolder, name), data) for name, data in uploads.items()),
            *(
                client.CommitOperationDelete(posixpath.join(subfolder, name))
                for name in sorted(_files_of_predecessor(repository, subfolder) - set(uploads))
            ),
        ]
        try:
            commit = api.create_commit(
                repo_id, operations, revision=branch, parent_commit=repository.commit,
                commit_message=commit_message or f"Upload {artifact.path.name or 'the artifact'} with saeexport",
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:  # refused metadata; a file that was not transferred
            raise HubError(f"{where} was not written: {' '.join(str(error).split())}") from error
    return str(commit.commit_url)


def _is_ours(repository: Repository, card: str) -> bool:
    """Tell whether the repository has no model card, or one that `model_card` wrote."""
    try:
        return MARK in repository.download(card).read_text("utf-8", errors="replace")
    except HubEntryError:
        return True


def _files_of_predecessor(repository: Repository, subfolder: str) -> set[str]:
    """Return the names of the files of the artifact that the repository holds now."""
    present = {posixpath.basename(file) for file in _list(repository, subfolder)}
    if MANIFEST not in present:
        return set()
    path = repository.download(posixpath.join(subfolder, MANIFEST))
    try:
        return {SIGNATURE, *read_artifact(path.parent).manifest.files} & present
    except ArtifactError:  # its manifest does not say which files belong to it
        return set()


def _list(repository: Repository, subfolder: str, recursive: bool = False) -> list[str]:
    """Return the files of a folder; none if it does not exist."""
    try:
        return repository.list_files(subfolder, recursive)
    except HubEntryError:
        return []


def _found(repository: Repository, subfolder: str) -> str:
    """Return what a folder without a manifest holds, for an error message."""
    files = _list(repository, subfolder, recursive=True)
    if folders := [posixpath.dirname(file) for file in files if posixpath.basename(file) == MANIFEST]:
        names = ", ".join(repr(folder) for folder in folders[:6])
        return f"Pass one of its artifacts as `subfolder`: {names}{', ...' if len(folders) > 6 else ''}."
    return f"It holds {', '.join(files[:6]) or 'nothing'}{', ...' if len(files) > 6 else ''}."
