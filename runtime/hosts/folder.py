"""A grafted host on disk: a folder with `host.json`, the graphs, and an artifact for each SAE."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..arrays.arguments import as_path
from ..artifact.files import Identity, OpenedFile, identify, open_file
from ..artifact.folder import Artifact, describe_content, read_artifact
from ..artifact.manifest import MANIFEST as SAE_MANIFEST
from ..artifact.parse import parse
from ..artifact.strict_json import check_size
from ..errors import ArtifactError, IntegrityError
from .checks import check_host_manifest
from .manifest import HOST_FORMAT, MANIFEST, HostManifest


@dataclass(frozen=True)
class GraftedHost:
    """A folder of a grafted host whose manifests have been read; the other files are checked when they are first used.

    Attributes:
        path: The folder, as it was given.
        manifest: The content of `host.json`.
        saes: The artifacts of the SAEs by hook, in the order of the graph.
        folder: The absolute path of the folder, which does not depend on the working directory.
        sha256: The sha256 of `host.json`. It stands for the whole folder.
    """

    path: Path
    manifest: HostManifest
    saes: dict[str, Artifact]
    folder: Path
    sha256: str
    _identity: Identity = field(repr=False, compare=False)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        manifest = self.manifest
        graphs = ", ".join(manifest.graphs)
        saes = "\n".join(f"  {hook}: {sae.manifest.sae.architecture} SAE, {sae.manifest.sae.d_in} -> "
                         f"{sae.manifest.sae.d_sae} features" for hook, sae in self.saes.items())  # fmt: skip
        return f"GraftedHost({str(self.path)!r}): {manifest.host.kind} {manifest.host.name}; {graphs}\n{saes}"

    def open(self, name: str) -> OpenedFile:
        """Open a file of the folder and compare its size with the manifest. `OpenedFile.check` compares its sha256.

        Args:
            name: Name of the file in the manifest.

        Raises:
            IntegrityError: The file is missing, is not an ordinary file, or has another size.
        """
        return open_file(self.folder / name, self.manifest.files[name], MANIFEST)

    def is_current(self) -> bool:
        """Tell whether `host.json` is still the file that was read. Each SAE is checked against it."""
        return identify(self.folder / MANIFEST) == self._identity

    def check_files(self) -> None:
        """Check the size and sha256 of every file of the folder, with those of the SAEs.

        Raises:
            IntegrityError: A file is missing, truncated or changed.
        """
        if problems := self.damage():
            raise IntegrityError("\n".join(problems))

    def damage(self) -> list[str]:
        """Return what is wrong with each file that is missing, truncated or changed, as sentences."""
        problems = []
        for name in self.manifest.files:
            try:
                with self.open(name) as file:
                    file.check()
            except ArtifactError as error:
                problems.append(str(error))
        for sae in self.saes.values():
            problems += sae.damage()
        return problems


def is_host(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is the folder of a grafted host, which has a `host.json`.

    Raises:
        InputError: `path` is not a path.
    """
    return os.path.lexists(as_path("path", path) / MANIFEST)


def read_host(path: str | os.PathLike[str]) -> GraftedHost:
    """Return the grafted host in the folder `path`. Only its manifest and those of its SAEs are read.

    Raises:
        ArtifactError: `path` is not the folder of a grafted host.
        ManifestError: A manifest cannot be read.
        IntegrityError: The folder of an SAE holds another artifact than `host.json` says.
        InputError: `path` is not a path.
    """
    given = as_path("path", path)
    folder = given.absolute()
    if not is_host(folder):
        raise ArtifactError(f"{given} is not a grafted host, a folder with {MANIFEST}: {describe_content(given)}.")
    with open_file(folder / MANIFEST) as file:
        check_size(file.size, HOST_FORMAT)
        content = file.read()
    manifest = parse(content, HostManifest, HOST_FORMAT, check_host_manifest)
    saes = {}
    for grafted in manifest.saes:
        artifact = read_artifact(folder / grafted.folder)
        if artifact.sha256 != grafted.sha256:
            raise IntegrityError(
                f"{artifact.path / SAE_MANIFEST} has sha256 {artifact.sha256}, {MANIFEST} says {grafted.sha256}: the "
                "folder holds another SAE than the one that was grafted. Copy the whole folder again."
            )
        saes[grafted.hook] = artifact
    return GraftedHost(given, manifest, saes, folder, hashlib.sha256(content).hexdigest(), file.identity)
