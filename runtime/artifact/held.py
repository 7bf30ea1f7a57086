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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import InputError, IntegrityError
from .files import Identity, OpenedFile, identify
from .folder import Artifact, read_artifact
from .manifest import MANIFEST, FileRecord
from .onnxfile import Parameter, parameters
from .signature import Folder, read_signed

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


class HeldFolder:
    """The graphs of a folder, which were read, and the files with their parameters, which are open.

    Attributes:
        graphs: The graphs, by name.
        data: The files with parameters, by the name that the graphs have for them.

    Args:
        graphs: As above.
        data: As above.
        check_integrity: Whether `check_data` compares the sha256 of the files with the manifest.
    """

    def __init__(self, graphs: dict[str, HeldGraph], data: dict[str, OpenedFile], check_integrity: bool = True) -> None:
        self._check_integrity = check_integrity
        self.graphs = graphs
        self.data = data

    def check_data(self) -> None:
        """Compare the sha256 of the files with parameters with the manifest, unless that is switched off.

        Raises:
            IntegrityError: It differs, or something was written to a file since it was opened.
        """
        for file in self.data.values():
            if self._check_integrity:
                file.check()
            file.check_unchanged()

    def check_unchanged(self) -> None:
        """Check that nothing was written to the files with parameters since they were opened.

        Raises:
            IntegrityError: Something was.
        """
        for file in self.data.values():
            file.check_unchanged()

    def parameters(self, graph: str, part: bytes | None = None) -> dict[str, Parameter]:
        """Return the parameters that a graph keeps in other files, mapped and not loaded, by name.

        Args:
            graph: Name of the graph.
            part: A model that was cut out of the graph, for the parameters of that model only.

        Raises:
            ArtifactError: The graph is not ONNX.
            IntegrityError: It refers to another file, or to bytes that a file does not have.
        """
        held = self.graphs[graph]
        model = held.content if part is None else part
        return parameters(model, held.path, {name: file.map() for name, file in self.data.items()})

    def forget_pages(self) -> None:
        """Return the memory of the mappings to the system, which reads the files again where they are needed."""
        for file in self.data.values():
            file.forget_pages()

    @contextlib.contextmanager
    def at_path(self, graph: str) -> Iterator[Path]:
        """Yield the path of a graph for a library that opens it and the files with parameters itself.

        Raises:
            IntegrityError: Before or after, the path or that of a file leads to another file than was opened.
        """
        self._check_paths(graph)
        yield self.graphs[graph].path
        self._check_paths(graph)

    def are_at_path(self, graph: str) -> bool:
        """Tell whether the paths of a graph and of its files still lead to the files that were opened."""
        return self._replaced(graph) is None

    def close(self) -> None:
        """Close the files. Arrays that were mapped from them stay valid."""
        for file in self.data.values():
            file.close()

    def _check_paths(self, graph: str) -> None:
        if (path := self._replaced(graph)) is not None:
            raise IntegrityError(
                f"{path} was replaced, moved or deleted after this session opened it, and on this device a graph is "
                "loaded from its path. Open the artifact again."
            )

    def _replaced(self, graph: str) -> Path | None:
        """Return the path of a graph, or of a file with parameters, that leads to another file than was opened."""
        held = self.graphs[graph]
        opened = ((held.path, held.identity), *((file.path, file.identity) for file in self.data.values()))
        return next((path for path, identity in opened if identify(path) != identity), None)


class HeldFiles(HeldFolder):
    """The weights and the graphs of an artifact.

    Attributes:
        weights: The weights file, open.

    Args:
        artifact: The artifact.
        check_integrity: Whether to compare the sha256 of the files with the manifest: of the graphs now, of the weights
            in `check_data`. Sizes are compared now, in any case.

    Raises:
        IntegrityError: A file is missing, is not an ordinary file, or differs from the manifest.
    """

    def __init__(self, artifact: Artifact, check_integrity: bool = True) -> None:
        manifest = artifact.manifest
        graphs = {
            name: read_graph(artifact.open, manifest.files, graph.file, MANIFEST, check_integrity)
            for name, graph in manifest.graphs.items()
        }
        self.weights: OpenedFile = artifact.open(manifest.weights)
        super().__init__(graphs, {manifest.weights: self.weights}, check_integrity)


def read_graph(
    open_file: Callable[[str], OpenedFile], files: Mapping[str, FileRecord], name: str, manifest: str, check: bool
) -> HeldGraph:
    """Read a graph.

    Args:
        open_file: Function that opens a file of the folder by its name.
        files: Sizes and checksums of the folder's files.
        name: Name of the file.
        manifest: Name of the manifest, for the message.
        check: Whether to compare the sha256 with the manifest. The size is compared in any case.

    Raises:
        IntegrityError: The file is missing, is not an ordinary file, is too large, or differs from the manifest.
    """
    with open_file(name) as file:
        if (size := files[name].bytes) > LARGEST_GRAPH:
            raise IntegrityError(
                f"{file.path} has {size:,} bytes according to {manifest}; a graph has at most {LARGEST_GRAPH:,}."
            )
        return HeldGraph(file.path, file.read(check), file.identity)


class HoldableFolder(Folder, Protocol):
    """A folder whose manifest was read, and can be compared with the one that is there now."""

    def is_current(self) -> bool:
        """Tell whether the manifest is still the file that was read."""


Read = TypeVar("Read", bound=HoldableFolder)
Held = TypeVar("Held", bound=HeldFolder)


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
    return open_folder(
        path,
        read_artifact,
        lambda artifact: HeldFiles(artifact, check_integrity),
        MANIFEST,
        check_integrity,
        public_key,
    )


def open_folder(
    path: str | os.PathLike[str],
    read: Callable[[str | os.PathLike[str]], Read],
    hold: Callable[[Read], Held],
    manifest: str,
    check_integrity: bool,
    public_key: str | os.PathLike[str] | None,
) -> tuple[Read, Held]:
    """Return a folder with its files, of one export even if it is replaced at this moment.

    Args:
        path: The folder.
        read: Function that reads its manifest.
        hold: Function that opens its files.
        manifest: Name of the manifest's file.
        check_integrity: Whether `hold` compares the files with the manifest.
        public_key: As for `open_artifact`.

    Raises:
        ArtifactError: As `read` and `hold` raise it, or the folder is replaced again and again.
        SignatureError: As for `open_artifact`, as is `InputError`.
    """
    if public_key is not None and not check_integrity:
        raise InputError(
            "public_key is given and check_integrity is False: the files that are loaded would not be compared with "
            "those that are signed. Leave out one of the two."
        )
    for _ in range(ATTEMPTS):
        folder = read_signed(path, public_key, read, manifest)
        try:
            files = hold(folder)
        except IntegrityError:
            if folder.is_current():
                raise
            continue
        if folder.is_current():
            return folder, files
        files.close()
    raise IntegrityError(f"{os.fspath(path)} is being replaced again and again: its manifest changes. Try later.")
