"""An artifact on disk: a folder with `sae.json` and the files whose checksums `sae.json` holds."""

import hashlib
import html
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ArtifactError, IntegrityError
from .manifest import MANIFEST, FileRecord, Manifest, SAEConfig
from .parse import parse_manifest

CHUNK = 1 << 22


@dataclass(frozen=True)
class Artifact:
    """An artifact folder whose manifest has been read; the other files are checked when they are first used.

    Attributes:
        path: The folder.
        manifest: The content of `sae.json`.
    """

    path: Path
    manifest: Manifest
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        sae = self.manifest.sae
        return (
            f"Artifact({str(self.path)!r}): {sae.architecture} SAE on {sae.hook_name or 'no hook'}, {_sizes(sae)}, "
            f"{sae.dtype}\n  {len(self.manifest.graphs)} graphs, {_summary(self.manifest)}"
        )

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        sae = self.manifest.sae
        rows = {
            "path": str(self.path),
            "architecture": sae.architecture,
            "hook": sae.hook_name or "none",
            "shape": _sizes(sae),
            "dtype": f"{sae.dtype}, {self.manifest.weights_dtype} weights",
            "graphs": ", ".join(self.manifest.graphs),
            "parity": _summary(self.manifest),
        }
        cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
        return f"<table>{''.join(cells)}</table>"

    def file(self, name: str, check: bool = True) -> Path:
        """Return the path of a file of the artifact; its size and sha256 are checked the first time.

        Args:
            name: Name of the file in the manifest.
            check: Whether to compare the sha256. The size is compared in any case.

        Raises:
            IntegrityError: The file is missing, or its size or sha256 differs from the manifest.
        """
        path, expected = self.path / name, self.manifest.files[name]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise IntegrityError(f"{path} is missing. Copy the whole folder again.") from None
        if size != expected.bytes:
            raise IntegrityError(
                f"{path} has {size} bytes, {MANIFEST} says {expected.bytes}: it is truncated or from another export. "
                "Copy the whole folder again."
            )
        if check and name not in self._checked:
            digest = hash_file(path).sha256
            if digest != expected.sha256:
                raise IntegrityError(
                    f"{path} has sha256 {digest}, {MANIFEST} says {expected.sha256}: it was changed after the export. "
                    "Copy the whole folder again."
                )
            self._checked.add(name)
        return path

    def check_files(self) -> None:
        """Check the size and sha256 of every file that the manifest names.

        Raises:
            IntegrityError: A file is missing, truncated or changed.
        """
        for name in self.manifest.files:
            self.file(name)

    def push_to_hub(
        self,
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
        """Upload the artifact to a repository on the Hugging Face Hub in one commit, and return the commit's URL.

        The files are checked before. A model card is written from the manifest: what the SAE is, its hooks, its parity
        record, and how to run it in Python, Node.js and C++. A README.md in the repository that somebody else wrote
        stays as it is. Files of an artifact that was at the same place are removed.

        Args:
            repo_id: "OWNER/NAME". The repository is created if it does not exist.
            subfolder: Folder for the artifact in the repository, so that one repository can hold many; "" for its root.
            private: Whether a new repository is private; None takes the owner's default.
            branch: Branch to commit to, created from "main" if it does not exist; None for "main".
            token: Access token, or None for the one that `hf auth login` or HF_TOKEN stored.
            license: Identifier of the licence on the Hub, such as "mit"; None leaves it out.
            base_model: The language model's "OWNER/NAME" on the Hub. None takes `model_name` if it has this form.
            commit_message: Title of the commit; None for one that names the folder.

        Raises:
            IntegrityError: A file is missing, truncated or changed.
            HubError: The repository cannot be written, the Hub cannot be reached, or huggingface_hub is not installed.
        """
        from .published import upload_artifact

        return upload_artifact(
            self, repo_id, subfolder=subfolder, private=private, branch=branch, token=token, license=license,
            base_model=base_model, commit_message=commit_message,
        )  # fmt: skip


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Return the artifact in the folder `path`. Only its manifest is read.

    Raises:
        ArtifactError: `path` is not an artifact folder.
        ManifestError: `sae.json` cannot be read.
    """
    folder = Path(path)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if not folder.exists():
            found = "it does not exist"
        elif not folder.is_dir():
            found = "it is a file"
        else:
            names = sorted(entry.name for entry in folder.iterdir())
            found = f"it holds {', '.join(names[:6]) or 'nothing'}{', ...' if len(names) > 6 else ''}"
        raise ArtifactError(f"{folder} is not an artifact, a folder with {MANIFEST}: {found}.")
    try:
        text = manifest.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{manifest} is not text: {error}. Copy the whole folder again.") from None
    return Artifact(folder, parse_manifest(text))


def hash_file(path: Path) -> FileRecord:
    """Return the size in bytes and the sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(digest.hexdigest(), size)


def _sizes(sae: SAEConfig) -> str:
    """Return the shapes of one token, such as "768 -> 24576 features"."""
    text = f"{' x '.join(map(str, sae.input_shape))} -> {sae.d_sae} features"
    return text if sae.d_out is None else f"{text} -> {sae.d_out}"


def _summary(manifest: Manifest) -> str:
    """Return what was measured at export, on one line."""
    record = manifest.record
    worst = max((hook.artifact.token for hook in record.hooks.values()), default=0.0)
    name = "parity" if manifest.parity else f"{manifest.weights_dtype} weights: fidelity"
    return f"{name} on {record.tokens} tokens ({record.device}), largest token error {worst:.1e}"
