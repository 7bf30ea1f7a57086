"""The graphs of an artifact on one device. They are loaded when first needed, and checked with the manifest."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

from ..arrays.dtypes import DTYPES
from ..arrays.tensor import TensorValue
from ..artifact.contracts import WEIGHTS_KEY
from ..artifact.folder import Artifact
from ..artifact.held import HeldFiles
from ..artifact.manifest import TensorSpec
from ..artifact.names import TARGET
from ..devices.backend import Backend, create_backend
from ..devices.blocks import block_sizes
from ..devices.options import Options
from ..devices.start import Device
from ..errors import ArtifactError, InputError, IntegrityError, SAEError
from .route import variant_of

ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    error
    for error in vars(onnxruntime_pybind11_state).values()
    if isinstance(error, type) and issubclass(error, Exception)
)
"""The exceptions of ONNX Runtime's statuses, such as `Fail` and `InvalidArgument`. They do not share a base class."""


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
        session = self._session(graph)
        known = {tensor.name for spec in self.manifest.graphs.values() for tensor in spec.inputs}
        if unknown := set(feeds) - known:  # the inputs of other graphs may be passed too, and are ignored
            raise InputError(f"No graph takes {', '.join(sorted(unknown))}; {graph!r} takes {self.inputs(graph)}.")
        if missing := set(self.inputs(graph)) - set(feeds):
            raise InputError(_missing(missing, graph))
        spec = self.manifest.graphs[graph]
        outputs = [tensor.name for tensor in spec.outputs]
        if unknown := set(names or ()) - set(outputs):
            raise InputError(f"{graph!r} does not compute {', '.join(sorted(unknown))}; it computes {outputs}.")
        names = outputs if names is None else names
        tokens = next(iter(feeds[spec.inputs[0].name].shape), 0)  # ONNX Runtime refuses an array without dimensions
        sizes = block_sizes(tokens, self.block_tokens)
        try:
            given = {name: feeds[name] for name in self.inputs(graph)}
            arrays = self.backend.run(session, spec, given, list(names), sizes)
        except Exception as error:
            if not _is_from_onnx_runtime(error):
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
        if graph not in graphs:
            raise ArtifactError(f"{self._artifact.path} has no graph {graph!r}; it has {', '.join(graphs)}.")
        return [tensor.name for tensor in graphs[graph].inputs]

    def variant(self, graph: str) -> str:
        """Return the preferred variant of a portable graph: its CPU variant, or the graph itself."""
        return variant_of(self.manifest, graph, self.for_cpu)

    def release(self, graph: str) -> None:
        """Free a graph and its weights if it is loaded."""
        self.check_process()
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
            if not _is_from_onnx_runtime(error):
                raise
            checked()
            raise ArtifactError(
                f"ONNX Runtime {ort.__version__} cannot load {path} on {self._device.name}: {error}"
            ) from error
        checked()
        self._files.weights.check_unchanged()  # since they were checked, too
        weights = session.get_modelmeta().custom_metadata_map.get(WEIGHTS_KEY)
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
        return session


def _is_from_onnx_runtime(error: Exception) -> bool:
    """Tell whether ONNX Runtime raised an exception.

    Its C++ code can throw without a status, and its Python code checks arguments. The result is a plain Exception,
    RuntimeError or ValueError, which counts if the innermost Python frame is one of ONNX Runtime's.
    """
    if type(error) not in (Exception, RuntimeError, ValueError):
        return isinstance(error, ORT_ERRORS)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("onnxruntime.")


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
