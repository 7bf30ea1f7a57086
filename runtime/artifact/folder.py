"""An artifact on disk: a folder with `sae.json` and the files whose checksums `sae.json` holds."""

import hashlib
import html
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..arrays.arguments import as_path
from ..errors import ArtifactError, IntegrityError
from .files import Identity, OpenedFile, identify, open_file
from .labels import LABELS, Labels, check_labels_size, read_labels
from .manifest import MANIFEST, Manifest, SAEConfig
from .parse import parse_manifest
from .strict_json import check_size

HOST_MANIFEST = "host.json"
"""Name of the manifest of a grafted host, see `runtime.hosts`."""


@dataclass(frozen=True)
class Artifact:
    """An artifact folder whose manifest has been read; the other files are checked when they are first used.

    Attributes:
        path: The folder, as it was given.
        manifest: The content of `sae.json`.
        folder: The absolute path of the folder, which does not depend on the working directory.
        sha256: The sha256 of `sae.json`. It stands for the whole artifact, whose other checksums `sae.json` holds.
    """

    path: Path
    manifest: Manifest
    folder: Path
    sha256: str
    _identity: Identity = field(repr=False, compare=False)
    _checked: dict[str, Identity] = field(default_factory=dict, repr=False, compare=False)

    def __fspath__(self) -> str:
        return str(self.folder)

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

    def open(self, name: str) -> OpenedFile:
        """Open a file of the artifact and compare its size with the manifest. `OpenedFile.check` compares its sha256.

        Args:
            name: Name of the file in the manifest.

        Raises:
            IntegrityError: The file is missing, is not an ordinary file, or has another size.
        """
        return open_file(self.folder / name, self.manifest.files[name])

    def file(self, name: str) -> Path:
        """Return the path of a file of the artifact after checking its size and, unless it is unchanged, its sha256.

        Args:
            name: Name of the file in the manifest.

        Raises:
            IntegrityError: The file is missing, is not an ordinary file, or its size or sha256 differs from the
                manifest.
        """
        with self.open(name) as file:
            if self._checked.get(name) != file.identity:
                file.check()
                self._checked[name] = file.identity
        return file.path

    def is_current(self) -> bool:
        """Tell whether `sae.json` is still the file that was read."""
        return identify(self.folder / MANIFEST) == self._identity

    def check_files(self) -> None:
        """Check the size and sha256 of every file that the manifest names.

        Raises:
            IntegrityError: A file is missing, truncated or changed.
        """
        for name in self.manifest.files:
            self.file(name)

    def damage(self) -> list[str]:
        """Return what is wrong with each file that is missing, truncated or changed, as sentences."""
        problems = []
        for name in self.manifest.files:
            try:
                self.file(name)
            except IntegrityError as error:
                problems.append(str(error))
        return problems

    def read_labels(self) -> Labels:
        """Return the labels of the features; there are none if the artifact was exported without.

        Raises:
            IntegrityError: The file of the labels is missing or was changed.
            ArtifactError: It does not hold labels of this SAE's features.
        """
        if LABELS not in self.manifest.files:
            return Labels(self.manifest.sae.d_sae)
        with self.open(LABELS) as file:
            check_labels_size(file.size, str(file.path))
            return read_labels(file.read(check=True), self.manifest.sae.d_sae, str(file.path))

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
        ManifestError: `sae.json` is damaged, or of another version of the format.
        IntegrityError: `sae.json` is not an ordinary file, or changes while it is read.
        InputError: `path` is not a path.
    """
    given = as_path("path", path)
    folder = given.absolute()
    if not os.path.lexists(folder / MANIFEST):
        raise ArtifactError(f"{given} is not an artifact, a folder with {MANIFEST}: {describe_content(given)}.")
    with open_file(folder / MANIFEST) as file:
        check_size(file.size)
        content = file.read()
    return Artifact(given, parse_manifest(content), folder, hashlib.sha256(content).hexdigest(), file.identity)


def describe_content(folder: Path) -> str:
    """Return what is at a path instead of an artifact or a grafted host, for an error."""
    try:
        if not folder.exists():
            return "it does not exist"
        if not folder.is_dir():
            return "it is a file"
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"it cannot be read ({error})"
    if set(names) & {MANIFEST, HOST_MANIFEST}:
        what, use = ("an artifact", "SAESession") if MANIFEST in names else ("a grafted host", "HostSession")
        return f"it is {what}, which runtime.{use} opens, and python -m runtime verifies"
    return f"it holds {', '.join(names[:6]) or 'nothing'}{', ...' if len(names) > 6 else ''}"


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
