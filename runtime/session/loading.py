"""The ONNX Runtime sessions of a folder's graphs, started when they are first needed, in one process."""

import abc
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import onnxruntime as ort

from ..arrays.tensor import TensorValue
from ..artifact.held import HeldFolder
from ..devices.background import in_background
from ..devices.staged import StageError
from ..devices.start import Device, is_from_onnx_runtime
from ..errors import ArtifactError, SAEError


class LoadedGraphs(abc.ABC):
    """The graphs of a folder on one device. Calls from several threads at once are safe.

    Attributes:
        loaded: ONNX Runtime sessions that were started, by the name of the graph.

    Args:
        path: The folder as the caller knows it, for messages.
        files: The files of the folder.
        device: The device.
    """

    def __init__(self, path: Path, files: HeldFolder, device: Device) -> None:
        self.loaded: dict[str, ort.InferenceSession] = {}
        self._path = path
        self._held = files
        self._device = device
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    def check_process(self) -> None:
        """Refuse to go on in a forked process, which has none of the threads that ONNX Runtime waits for.

        Raises:
            SAEError: The process was forked after the session was opened.
        """
        if os.getpid() != self._process:
            raise SAEError(
                f"The session of {self._path} was opened in process {self._process}, from which this one was "
                "forked, and ONNX Runtime does not work after a fork. Open the session in the process that uses it: "
                "with gunicorn leave out --preload or open it in post_fork, with multiprocessing use the start method "
                '"spawn" or "forkserver".'
            )

    def check_open(self) -> None:
        """Check that the session can be used.

        Raises:
            SAEError: It was closed, or the process was forked after it was opened.
        """
        self.check_process()
        if self._closed:
            raise SAEError(f"The session of {self._path} is closed.")

    def release(self, graph: str) -> None:
        """Free a graph and its weights if it is loaded.

        Raises:
            ArtifactError: The folder does not contain the graph.
        """
        self.check_process()
        self._check_name(graph)
        with self._lock:
            if session := self.loaded.pop(graph, None):
                self._release_session(session)

    def close(self) -> None:
        """Free the graphs, their weights and the open files. A later run raises an error.

        In a forked process this does nothing: everything belongs to the process that opened the session.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                for session in self.loaded.values():
                    self._release_session(session)
                self.loaded.clear()
                self._close_device()
                self._held.close()

    def _session(self, graph: str) -> ort.InferenceSession:
        self.check_process()
        session = self.loaded.get(graph)
        if session is None:
            with self._lock:  # two threads that need the same graph load it once
                self.check_open()
                if graph not in self.loaded:
                    self.loaded[graph] = self._load(graph)
                session = self.loaded[graph]
        return session

    def _load(self, graph: str) -> ort.InferenceSession:
        """Load a graph, and check that it is the graph that the manifest describes.

        Raises:
            ArtifactError: The folder does not contain the graph, or ONNX Runtime cannot load it.
            IntegrityError: A file differs from the manifest.
        """
        self._check_name(graph)
        path = self._held.graphs[graph].path
        # Reading the parameters for their sha256 takes about as long as loading them: both happen at once.
        checked = in_background(self._held.check_data)
        try:
            session = self._start(graph)
        except StageError as error:
            checked()
            raise self._cannot_load(self._held.graphs[error.graph].path, error.__cause__) from error.__cause__
        except Exception as error:
            if not is_from_onnx_runtime(error):
                raise
            checked()
            raise self._cannot_load(path, error) from error
        checked()
        self._held.check_unchanged()  # since they were checked, too
        self._check_session(graph, session, path)
        return session

    def _explain(self, error: Exception, graph: str, given: Mapping[str, TensorValue], advice: str = "") -> NoReturn:
        """Raise an error of ONNX Runtime as an `SAEError` that says what was run with what, and any other as it is."""
        if not is_from_onnx_runtime(error):
            raise error
        shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in given.items())
        raise SAEError(
            f"ONNX Runtime cannot run {graph!r} on {self._device.name} with {shapes}: {error}{advice}"
        ) from error

    def _cannot_load(self, path: Path, error: BaseException | None) -> ArtifactError:
        return ArtifactError(f"ONNX Runtime {ort.__version__} cannot load {path} on {self._device.name}: {error}")

    def _check_name(self, graph: str) -> None:
        """Check that the folder contains a graph."""
        graphs = self._held.graphs
        if not isinstance(graph, str) or graph not in graphs:
            raise ArtifactError(f"{self._path} has no graph {graph!r}; it has {', '.join(graphs)}.")

    @abc.abstractmethod
    def _start(self, graph: str) -> ort.InferenceSession:
        """Start the session of a graph."""

    @abc.abstractmethod
    def _check_session(self, graph: str, session: ort.InferenceSession, path: Path) -> None:
        """Check that a session has the inputs and outputs of the manifest."""

    @abc.abstractmethod
    def _release_session(self, session: ort.InferenceSession) -> None:
        """Free what the device keeps for a session that is no longer used."""

    @abc.abstractmethod
    def _close_device(self) -> None:
        """Free everything else that the device keeps. All sessions were released."""
