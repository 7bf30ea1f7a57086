"""The files that a session runs on, all of one export, whatever happens at the path of the artifact afterwards.

Graphs take a few kilobytes each and are read when the session opens. The weights are held open and mapped, which takes
two file descriptors. So a session goes on when the artifact is replaced, moved or deleted, and when the process changes
its working directory.

On a CPU and with CUDA, ONNX Runtime gets the bytes of the graph and the mapped weights (`runtime.devices.loading`):
nothing can change between the check and the load. TensorRT's provider reads a graph and the weights from their paths,
and refuses if a path leads elsewhere before or after the load (`HeldFiles.at_path`).
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, IntegrityError
from .files import Identity, OpenedFile, identify
from .folder import Artifact, read_artifact
from .manifest import MANIFEST
from .onnxfile import Parameter, parameters
from .signature import read_signed_artifact

LARGEST_GRAPH = 100_000_000
"""Largest size of a graph in bytes. The parameters are not in it."""

ATTEMPTS = 5


@dataclass(frozen=True)
class HeldGraph:
    """A graph that was read.

    Attributes:
        path: Path that it was read from.
        content: Content of its file.
        identity: Identity of its file.
    """

    path: Path
    content: bytes
    identity: Identity


class HeldFiles:
    """The weights and the graphs of an artifact.

    Attributes:
        graphs: The graphs, by name.
        weights: The weights file, open.

    Args:
        artifact: The artifact.
        check_integrity: Whether to compare the sha256 of the files with the manifest: of the graphs now, of the weights
            in `check_weights`. Sizes are compared now, in any case.

    Raises:
        IntegrityError: A file is missing, is not an ordinary file, or differs from the manifest.
    """

    def __init__(self, artifact: Artifact, check_integrity: bool = True) -> None:
        self._check_integrity = check_integrity
        self._location = artifact.manifest.weights
        self.graphs = {name: _read_graph(artifact, name, check_integrity) for name in artifact.manifest.graphs}
        self.weights: OpenedFile = artifact.open(self._location)

    def check_weights(self) -> None:
        """Compare the sha256 of the weights with the manifest, unless that is switched off.

        Raises:
            IntegrityError: It differs, or something was written to the file since it was opened.
        """
        if self._check_integrity:
            self.weights.check()
        self.weights.check_unchanged()

    def parameters(self, graph: str) -> dict[str, Parameter]:
        """Return the parameters that a graph keeps in the weights file, mapped and not loaded, by name.

        Raises:
            ArtifactError: The graph is not ONNX.
            IntegrityError: It refers to another file, or to bytes that the weights file does not have.
        """
        held = self.graphs[graph]
        return parameters(held.content, held.path, self._location, self.weights.map())

    @contextlib.contextmanager
    def at_path(self, graph: str) -> Iterator[Path]:
        """Yield the path of a graph for a library that opens it and the weights itself.

        Raises:
            IntegrityError: Before or after, the path or that of the weights leads to another file than was opened.
        """
        self._check_paths(graph)
        yield self.graphs[graph].path
        self._check_paths(graph)

    def are_at_path(self, graph: str) -> bool:
        """Tell whether the paths of a graph and of the weights still lead to the files that were opened."""
        return self._replaced(graph) is None

    def close(self) -> None:
        """Close the weights file. Arrays that were mapped from it stay valid."""
        self.weights.close()

    def _check_paths(self, graph: str) -> None:
        if (path := self._replaced(graph)) is not None:
            raise IntegrityError(
                f"{path} was replaced, moved or deleted after this session opened it, and on this device a graph is "
                "loaded from its path. Open the artifact again."
            )

    def _replaced(self, graph: str) -> Path | None:
        """Return the path, of a graph or of the weights, that leads to another file than was opened, if one does."""
        held = self.graphs[graph]
        opened = ((held.path, held.identity), (self.weights.path, self.weights.identity))
        return next((path for path, identity in opened if identify(path) != identity), None)


def _read_graph(artifact: Artifact, graph: str, check: bool) -> HeldGraph:
    name = artifact.manifest.graphs[graph].file
    if (size := artifact.manifest.files[name].bytes) > LARGEST_GRAPH:
        raise IntegrityError(
            f"{artifact.path / name} has {size:,} bytes according to {MANIFEST}; a graph has at most {LARGEST_GRAPH:,}."
        )
    with artifact.open(name) as file:
        return HeldGraph(file.path, file.read(check), file.identity)


def open_artifact(
    path: str | os.PathLike[str],
    check_integrity: bool = True,
    public_key: str | os.PathLike[str] | None = None,
) -> tuple[Artifact, HeldFiles]:
    """Return the artifact in the folder `path` with its files, of one export even if it is replaced at this moment.

    Args:
        path: Folder of the artifact.
        check_integrity: As for `HeldFiles`.
        public_key: PEM file with the key or the certificates that the artifact must be signed with, as
            `check_signature` takes it. None does not ask for a signature.

    Raises:
        ArtifactError: `path` is not an artifact folder, or a file is missing or has another size.
        SignatureError: The artifact does not have the signature that was asked for.
        InputError: A signature is asked for, and the files that are opened would not be compared with it.
    """
    if public_key is not None and not check_integrity:
        raise InputError(
            "public_key is given and check_integrity is False: the files that are loaded would not be compared with "
            "those that are signed. Leave out one of the two."
        )
    for _ in range(ATTEMPTS):
        artifact = read_artifact(path) if public_key is None else read_signed_artifact(path, public_key)
        try:
            files = HeldFiles(artifact, check_integrity)
        except IntegrityError:
            if artifact.is_current():
                raise
            continue
        if artifact.is_current():
            return artifact, files
        files.close()
    raise IntegrityError(f"{os.fspath(path)} is being replaced again and again: its {MANIFEST} changes. Try later.")
