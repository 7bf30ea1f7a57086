"""The graphs of an artifact, loaded when they are first needed and checked to be what the manifest says."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxruntime as ort

from ..arrays.dtypes import DTYPES
from ..arrays.tensor import TensorValue
from ..artifact.contracts import CPU_VARIANTS, WEIGHTS_KEY, contracts_of
from ..artifact.folder import Artifact
from ..artifact.manifest import TensorSpec
from ..artifact.names import INPUT, TARGET
from ..devices.backend import create_backend
from ..devices.blocks import block_sizes
from ..devices.options import Options
from ..devices.start import Device
from ..errors import ArtifactError, InputError, IntegrityError, ProviderError, SAEError


class Graphs:
    """The graphs of an artifact on one device. Calls from several threads at once are safe.

    Attributes:
        loaded: the sessions of ONNX Runtime that were started, by the graph's name.
        for_cpu: whether graphs that are written for the CPU are preferred; else the portable ones are.
        block_tokens: how many tokens are run at a time.
    """

    def __init__(self, artifact: Artifact, device: Device, options: Options, for_cpu: bool, block_tokens: int) -> None:
        self.loaded: dict[str, ort.InferenceSession] = {}
        self.for_cpu = for_cpu
        self.block_tokens = block_tokens
        self._artifact = artifact
        self._device = device
        self.backend = create_backend(device, options, artifact, block_tokens)
        self._check_integrity = options.check_integrity
        self._lock = threading.Lock()
        self._closed = False

    def run(
        self, graph: str, feeds: Mapping[str, TensorValue], names: Sequence[str] | None = None
    ) -> dict[str, TensorValue]:
        """Run a graph, a large batch in blocks; see `SAESession.run_graph`."""
        session = self._session(graph)
        known = {tensor.name for spec in self._artifact.manifest.graphs.values() for tensor in spec.inputs}
        if unknown := set(feeds) - known:  # what another graph takes may be given too, and is left aside
            raise InputError(f"No graph takes {', '.join(sorted(unknown))}; {graph!r} takes {self.inputs(graph)}.")
        if missing := set(self.inputs(graph)) - set(feeds):
            raise InputError(_missing(missing, graph))
        if names is None:
            names = [output.name for output in session.get_outputs()]
        spec = self._artifact.manifest.graphs[graph]
        tokens = next(iter(feeds[spec.inputs[0].name].shape), 0)  # what has no dimension, ONNX Runtime refuses
        sizes = block_sizes(tokens, self.block_tokens)
        try:
            given = {name: feeds[name] for name in self.inputs(graph)}
            arrays = self.backend.run(session, spec, given, list(names), sizes)
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in feeds.items())
            raise SAEError(
                f"ONNX Runtime cannot run {graph!r} on {self._device.name} with {shapes}: {error}"
            ) from error
        return dict(zip(names, arrays, strict=True))

    def inputs(self, graph: str) -> list[str]:
        """Return the names of a graph's inputs, in order.

        Raises:
            ArtifactError: there is no such graph.
        """
        graphs = self._artifact.manifest.graphs
        if graph not in graphs:
            raise ArtifactError(f"{self._artifact.path} has no graph {graph!r}; it has {', '.join(graphs)}.")
        return [tensor.name for tensor in graphs[graph].inputs]

    def smallest(self, names: Sequence[str]) -> str:
        """Return the graph with the fewest outputs that computes `names` from the input, and the target if need be.

        Of two with as many, one for the CPU if these are preferred.

        Raises:
            ArtifactError: there is none.
        """
        fitting = {
            graph: (len(spec.outputs), not self._is_for_cpu(graph))
            for graph, spec in self._artifact.manifest.graphs.items()
            if {tensor.name for tensor in spec.inputs} <= {INPUT, TARGET}
            and set(names) <= {tensor.name for tensor in spec.outputs}
            and (self.for_cpu or not self._is_for_cpu(graph))
        }
        if not fitting:
            raise ArtifactError(f"{self._artifact.path} has no graph from {INPUT} to {', '.join(names)}.")
        return min(fitting, key=lambda graph: fitting[graph])

    def fitting(self, graph: str) -> str:
        """Return the graph that takes and gives what `graph` does and fits the device: itself, or its CPU variant."""
        return CPU_VARIANTS[self._artifact.manifest.sae.dtype].get(graph, graph) if self.for_cpu else graph

    def _is_for_cpu(self, graph: str) -> bool:
        known = contracts_of(self._artifact.manifest.sae.dtype)
        return graph in known and known[graph].for_cpu

    def release(self, graph: str) -> None:
        """Free a graph and its weights, if it is loaded."""
        with self._lock:
            if session := self.loaded.pop(graph, None):
                self.backend.release_session(session)

    def close(self) -> None:
        """Free the graphs and their weights; a run after this one is an error."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for session in self.loaded.values():
                    self.backend.release_session(session)
                self.loaded.clear()
                self.backend.close()

    def _session(self, graph: str) -> ort.InferenceSession:
        session = self.loaded.get(graph)
        if session is None:
            with self._lock:  # two threads that need the same graph load it once
                if self._closed:
                    raise SAEError(f"The session of {self._artifact.path} is closed.")
                if graph not in self.loaded:
                    self.loaded[graph] = self._load(graph)
                session = self.loaded[graph]
        return session

    def _load(self, graph: str) -> ort.InferenceSession:
        """Load a graph, and make sure that it is the one that the manifest describes."""
        self.inputs(graph)
        manifest = self._artifact.manifest
        spec = manifest.graphs[graph]
        self._artifact.file(manifest.weights, check=False)
        path = self._artifact.file(spec.file, self._check_integrity)
        # To read the weights once more for their sha256 takes about as long as to load them: both at once.
        checked = _in_background(lambda: self._artifact.file(manifest.weights, self._check_integrity))
        try:
            session = self.backend.load_graph(graph, path)
        except ProviderError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            checked()
            raise ArtifactError(
                f"ONNX Runtime {ort.__version__} cannot load {path} on {self._device.name}: {error}"
            ) from error
        checked()
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


def _in_background(check: Callable[[], object]) -> Callable[[], None]:
    """Start a check in a thread of its own; return a function that waits for it and raises what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            check()
        except BaseException as error:  # it belongs to whoever asks
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> None:
        thread.join()
        if raised:
            raise raised[0]

    return result


def _missing(names: set[str], graph: str) -> str:
    if names == {TARGET}:
        return (
            "This transcoder's error is taken against the activation that it predicts, and its outputs need it: pass "
            "target=, (..., d_out). Its features do not: encode(x)."
        )
    return f"{graph!r} needs {', '.join(sorted(names))}, too."


ONNX_TYPES = {f"tensor({dtype.onnx_name})": name for name, dtype in DTYPES.items()}


def _tensor_spec(argument: Any) -> TensorSpec:
    """Return what ONNX Runtime says of an input or output in the manifest's terms."""
    return TensorSpec(argument.name, ONNX_TYPES.get(argument.type, argument.type), tuple(argument.shape))


def _describe(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
