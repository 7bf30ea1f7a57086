"""The graphs of an artifact on one device. They are loaded when first needed, and checked with the manifest."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import DTYPES
from ..arrays.limits import check_fits
from ..arrays.tensor import TensorValue
from ..artifact.contracts import WEIGHTS_KEY
from ..artifact.folder import Artifact
from ..artifact.held import HeldFiles
from ..artifact.manifest import GraphSpec, TensorSpec
from ..artifact.names import TARGET, TOKENS, K
from ..devices.backend import Backend, create_backend
from ..devices.blocks import block_sizes, output_bytes
from ..devices.options import Options
from ..devices.start import Device, is_from_onnx_runtime
from ..errors import ArtifactError, InputError, IntegrityError, SAEError
from .route import variant_of


class Graphs:
    """The graphs of an artifact on one device. Calls from several threads at once are safe.

    Attributes:
        loaded: ONNX Runtime sessions that were started, by the name of the graph.
        for_cpu: Whether CPU variants are preferred to portable graphs.
        block_tokens: Number of tokens to run at a time.
        manifest: Manifest of the artifact.
    """

    def __init__(
        self,
        artifact: Artifact,
        files: HeldFiles,
        device: Device,
        options: Options,
        for_cpu: bool,
        block_tokens: int,
    ) -> None:
        self.loaded: dict[str, ort.InferenceSession] = {}
        self.for_cpu = for_cpu
        self.block_tokens = block_tokens
        self.manifest = artifact.manifest
        self._artifact = artifact
        self._files = files
        self._device = device
        self._backend = create_backend(device, options, artifact, files, block_tokens)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def backend(self) -> Backend:
        """The backend that runs the graphs.

        Raises:
            SAEError: The process was forked after the session was opened.
        """
        self.check_process()
        return self._backend

    def check_process(self) -> None:
        """Refuse to go on in a forked process, which has none of the threads that ONNX Runtime waits for.

        Raises:
            SAEError: The process was forked after the session was opened.
        """
        if os.getpid() != self._process:
            raise SAEError(
                f"The session of {self._artifact.path} was opened in process {self._process}, from which this one was "
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
            raise SAEError(f"The session of {self._artifact.path} is closed.")

    def run(
        self, graph: str, feeds: Mapping[str, TensorValue], names: Sequence[str] | None = None
    ) -> dict[str, TensorValue]:
        """Run a graph, a large batch in blocks; see `SAESession.run_graph`."""
        needed = self.inputs(graph)
        known = {tensor.name for spec in self.manifest.graphs.values() for tensor in spec.inputs}
        if unknown := set(feeds) - known:  # the inputs of other graphs may be passed too, and are ignored
            raise InputError(f"No graph takes {', '.join(sorted(map(str, unknown)))}; {graph!r} takes {needed}.")
        if missing := set(needed) - set(feeds):
            raise InputError(_missing(missing, graph))
        spec = self.manifest.graphs[graph]
        outputs = [tensor.name for tensor in spec.outputs]
        if unknown := set(names or ()) - set(outputs):
            raise InputError(f"{graph!r} does not compute {', '.join(sorted(unknown))}; it computes {outputs}.")
        names = outputs if names is None else names
        given = {name: feeds[name] for name in needed}
        tokens = next(iter(given[needed[0]].shape), 0)  # ONNX Runtime refuses an array without dimensions
        if isinstance(given[needed[0]], np.ndarray):
            check_fits(f"The result of {tokens} tokens", output_bytes(spec, given, names))
        session = self._session(graph)
        try:
            arrays = self.backend.run(session, spec, given, list(names), block_sizes(tokens, self.block_tokens))
        except Exception as error:
            if not is_from_onnx_runtime(error):
                raise
            shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in feeds.items())
            raise SAEError(
                f"ONNX Runtime cannot run {graph!r} on {self._device.name} with {shapes}: {error}"
            ) from error
        return dict(zip(names, arrays, strict=True))

    def inputs(self, graph: str) -> list[str]:
        """Return the names of a graph's inputs, in order.

        Raises:
            ArtifactError: The artifact does not contain the graph.
        """
        graphs = self.manifest.graphs
        if not isinstance(graph, str) or graph not in graphs:
            raise ArtifactError(f"{self._artifact.path} has no graph {graph!r}; it has {', '.join(graphs)}.")
        return [tensor.name for tensor in graphs[graph].inputs]

    def feeds(self, graph: str, given: Mapping[str, Any]) -> dict[str, TensorValue]:
        """Return arrays that a caller gave as the inputs of a graph.

        Raises:
            ArtifactError: The artifact does not contain the graph.
            InputError: An array cannot be read, or has another shape or dtype than the input.
        """
        self.inputs(graph)
        if not isinstance(given, Mapping):
            raise InputError(f"feeds is {given!r}; it must be a dict from the names of inputs to arrays.")
        feeds = {name: self.backend.import_array(array) for name, array in given.items()}
        specs = [spec for spec in self.manifest.graphs[graph].inputs if spec.name in feeds and spec.name != K]
        tokens = {spec.name: feeds[spec.name].shape[:1] for spec in specs if spec.shape[0] == TOKENS}
        for spec in specs:
            array = feeds[spec.name]
            fits = len(array.shape) == len(spec.shape) and all(
                isinstance(size, str) or size == n for size, n in zip(spec.shape, array.shape, strict=True)
            )
            if not fits or DTYPES[spec.dtype].numpy != np.dtype(array.dtype):
                raise InputError(
                    f"{spec.name} is {array.shape} {array.dtype}; {graph!r} takes {list(spec.shape)} {spec.dtype}."
                )
        if len(set(tokens.values())) > 1:
            raise InputError(f"The inputs of {graph!r} have different numbers of tokens: {tokens}.")
        return feeds

    def variant(self, graph: str) -> str:
        """Return the preferred variant of a portable graph: its CPU variant, or the graph itself."""
        return variant_of(self.manifest, graph, self.for_cpu)

    def release(self, graph: str) -> None:
        """Free a graph and its weights if it is loaded."""
        self.check_process()
        self.inputs(graph)  # raises for a name that is not a graph
        with self._lock:
            if session := self.loaded.pop(graph, None):
                self.backend.release_session(session)

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
                    self._backend.release_session(session)
                self.loaded.clear()
                self._backend.close()
                self._files.close()

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
        """Load a graph, and check that it is the graph that the manifest describes."""
        self.inputs(graph)
        manifest = self.manifest
        spec = manifest.graphs[graph]
        path = self._files.graphs[graph].path
        # Reading the weights for their sha256 takes about as long as loading them: both happen at once.
        checked = _in_background(self._files.check_weights)
        try:
            session = self.backend.load_graph(graph, self._files)
        except Exception as error:
            if not is_from_onnx_runtime(error):
                raise
            checked()
            raise ArtifactError(
                f"ONNX Runtime {ort.__version__} cannot load {path} on {self._device.name}: {error}"
            ) from error
        checked()
        self._files.weights.check_unchanged()  # since they were checked, too
        self._check_contract(session, spec, path)
        return session

    def _check_contract(self, session: ort.InferenceSession, spec: GraphSpec, path: Path) -> None:
        """Check that a graph was exported for these weights, and that its inputs and outputs are those of the manifest.

        Raises:
            IntegrityError: They are not.
        """
        manifest = self.manifest
        try:
            metadata = session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as error:
            raise IntegrityError(f"{path} has metadata that is not text. Copy the whole folder again.") from error
        weights = metadata.get(WEIGHTS_KEY)
        if weights != manifest.files[manifest.weights].sha256:
            raise IntegrityError(
                f"{path} was exported for other weights (sha256 {weights}). Copy the whole folder again."
            )
        for role, found, expected in (
            ("inputs", session.get_inputs(), spec.inputs),
            ("outputs", session.get_outputs(), spec.outputs),
        ):
            tensors = tuple(_tensor_spec(tensor) for tensor in found)
            if tensors != expected:
                raise IntegrityError(f"{path} has the {role} {_describe(tensors)}, the manifest {_describe(expected)}.")


def _in_background(check: Callable[[], object]) -> Callable[[], None]:
    """Start a check in its own thread, and return a function that waits for it and raises its exception."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            check()
        except BaseException as error:  # raised again in the thread that asks for the result
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)  # an interrupted load does not keep the process alive
    thread.start()

    def result() -> None:
        thread.join()
        if raised:
            raise raised[0]

    return result


def _missing(names: set[str], graph: str) -> str:
    if names == {TARGET}:
        return (
            "This transcoder's error is taken against the activation that it predicts, so its outputs need it: pass "
            "target=, (..., d_out). Its features do not need it: encode(x)."
        )
    return f"{graph!r} also needs {', '.join(sorted(names))}."


ONNX_TYPES = {f"tensor({dtype.onnx_name})": name for name, dtype in DTYPES.items()}


def _tensor_spec(argument: Any) -> TensorSpec:
    """Return the manifest's description of an input or output that ONNX Runtime describes."""
    return TensorSpec(argument.name, ONNX_TYPES.get(argument.type, argument.type), tuple(argument.shape))


def _describe(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
