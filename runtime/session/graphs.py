"""The graphs of an artifact on one device. They are loaded when first needed, and checked with the manifest."""

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import DTYPES
from ..arrays.limits import check_fits
from ..arrays.tensor import Array, TensorValue
from ..artifact.contracts import DECODE, ENCODE, MODEL, WEIGHTS_KEY
from ..artifact.folder import Artifact
from ..artifact.held import HeldFiles, read_graph
from ..artifact.manifest import MANIFEST, GraphSpec, Manifest, TensorSpec
from ..artifact.names import HOOK_ACTS_POST, HOOK_RECONS, TARGET, TOKENS, K
from ..artifact.selection import select_features
from ..artifact.stages import UNREADABLE, Graph
from ..devices.backend import Backend, create_backend
from ..devices.background import in_background
from ..devices.blocks import block_sizes, output_bytes
from ..devices.cpu import CpuBackend
from ..devices.options import Options
from ..devices.staged import StagedSession
from ..devices.start import Device, is_from_onnx_runtime
from ..errors import ArtifactError, InputError, IntegrityError, SAEError
from .loading import LoadedGraphs
from .route import Choice, choose_graph, smallest_graph, variant_of
from .selection import Selection, tokens_at_once


class Graphs(LoadedGraphs):
    """The graphs of an artifact on one device. Calls from several threads at once are safe.

    Attributes:
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
        super().__init__(artifact.path, files, device)
        self.for_cpu = for_cpu
        self.block_tokens = block_tokens
        self.manifest = artifact.manifest
        self._files = files
        self._backend = create_backend(device, options, artifact, files, block_tokens)
        self._choices: dict[tuple[object, ...], Choice] = {}
        self._selections: weakref.WeakSet[Selection] = weakref.WeakSet()

    @property
    def backend(self) -> Backend:
        """The backend that runs the graphs.

        Raises:
            SAEError: The process was forked after the session was opened.
        """
        self.check_process()
        return self._backend

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
        _check_result(spec, given, names)
        return dict(zip(names, self._run(self._session(graph), graph, spec, given, names), strict=True))

    def select(self, ids: Array) -> Selection:
        """Load the part of the encoder that computes the activations of some features.

        Args:
            ids: Ids of the features, `(m,)`, which exist.

        Raises:
            InputError: The activation of a feature depends on other features.
            ArtifactError: The encoder cannot be read or loaded.
        """
        graph = smallest_graph(self.manifest, [HOOK_ACTS_POST], self.for_cpu)
        self.check_process()  # in a forked process a thread that is not there may hold the lock
        with self._lock:
            self.check_open()
            held = self._files.graphs[graph]
            checked = in_background(self._files.check_data)
            try:
                model = select_features(held.content, held.path, self._files.parameters(graph), ids, self.manifest.sae)
            finally:
                checked()
            self._files.check_unchanged()
            self._files.forget_pages()
            try:
                session = self.backend.load_model(model)
            except Exception as error:
                if not is_from_onnx_runtime(error):
                    raise
                raise self._cannot_load(held.path, error) from error
            output = TensorSpec(HOOK_ACTS_POST, self.manifest.sae.dtype, (TOKENS, len(ids)))
            spec = dataclasses.replace(self.manifest.graphs[graph], outputs=(output,))
            at_once = tokens_at_once(self.manifest.sae, self._device, self.block_tokens)
            name = f"{graph} of {len(ids)} features"
            selection = Selection(ids, name, spec, at_once, session, self._backend.release_session)
            self._selections.add(selection)
        return selection

    def run_at_once(self, selection: Selection, rows: Array) -> Array:
        """Return the activations of the features of a selection, `(tokens, m)`, in one call of ONNX Runtime.

        A few features take microseconds. What the backend does for other graphs, which run in blocks and in chains of
        sessions, would take longer.

        Args:
            selection: The features.
            rows: Tokens that its session can read, from `Selection.rows_of`.

        Raises:
            SAEError: The session was closed.
        """
        self.check_process()
        feeds = {selection.spec.inputs[0].name: rows}
        try:
            return self._session_of(selection).run([HOOK_ACTS_POST], feeds)[0]
        except Exception as error:
            self._explain(error, selection.name, feeds)

    def run_selection(self, selection: Selection, feeds: Mapping[str, TensorValue]) -> TensorValue:
        """Return the activations of the features of a selection, `(tokens, m)`.

        Raises:
            SAEError: The session was closed.
        """
        session = self._session_of(selection)
        given = {name: feeds[name] for name in (tensor.name for tensor in selection.spec.inputs)}
        _check_result(selection.spec, given, [HOOK_ACTS_POST])
        (values,) = self._run(session, selection.name, selection.spec, given, [HOOK_ACTS_POST])
        return values

    def _session_of(self, selection: Selection) -> ort.InferenceSession:
        session = selection.session
        if session is None:
            self.check_open()
        assert session is not None
        return session

    def _run(
        self,
        session: ort.InferenceSession,
        graph: str,
        spec: GraphSpec,
        given: Mapping[str, TensorValue],
        names: Sequence[str],
    ) -> list[TensorValue]:
        blocks = block_sizes(_tokens(spec, given), self.block_tokens)
        try:
            return self.backend.run(session, spec, given, list(names), blocks)
        except Exception as error:
            self._explain(error, graph, given)

    def _explain(self, error: Exception, graph: str, given: Mapping[str, TensorValue]) -> NoReturn:
        """Raise an error of ONNX Runtime as an `SAEError` that says what was run with what, and any other as it is."""
        if not is_from_onnx_runtime(error):
            raise error
        shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in given.items())
        raise SAEError(f"ONNX Runtime cannot run {graph!r} on {self._device.name} with {shapes}: {error}") from error

    def inputs(self, graph: str) -> list[str]:
        """Return the names of a graph's inputs, in order.

        Raises:
            ArtifactError: The artifact does not contain the graph.
        """
        self._check_name(graph)
        return [tensor.name for tensor in self.manifest.graphs[graph].inputs]

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

    def choose(self, names: Sequence[str], *, steered: bool, in_numpy: bool) -> Choice:
        """Return the cheapest graph that computes hooks; see `route.choose_graph`. A session remembers its choices."""
        key = (*names, steered, in_numpy)
        if key not in self._choices:
            choice = choose_graph(self.manifest, names, self.for_cpu, steered=steered, in_numpy=in_numpy)
            whole = self.variant(MODEL)
            needs_target = any(tensor.name == TARGET for tensor in self.manifest.graphs[whole].inputs)
            if choice.graph == ENCODE and self.for_cpu and not needs_target and self._runs_in_stages(whole):
                choice = Choice(whole, False, f"of its stages, only the encoder is needed for {', '.join(names)}")
            self._choices[key] = choice
        return self._choices[key]

    def _runs_in_stages(self, graph: str) -> bool:
        return isinstance(self._backend, CpuBackend) and self._backend.runs_in_stages(graph, self._files)

    def decode(self, feeds: Mapping[str, TensorValue]) -> TensorValue:
        """Return the reconstruction, `(tokens, d_in)`, from activations and what else the decoder reads.

        The CPU variant of `decode` also reads negative activations, and so has a decoder of its own. If there are none,
        the decoder of `model` computes the same, and a session that has loaded it does not load another one.
        """
        decoder = self.variant(DECODE)
        session, spec = self.loaded.get(self.variant(MODEL)), self.manifest.graphs[decoder]
        acts_post = feeds[HOOK_ACTS_POST]
        given = {tensor.name: feeds[tensor.name] for tensor in spec.inputs}
        if (
            isinstance(session, StagedSession)
            and len(session.chain([HOOK_RECONS], frozenset(given))) == 1
            and isinstance(acts_post, np.ndarray)
            and acts_post.min(initial=0) >= 0  # false for NaN, too
        ):
            _check_result(spec, given, [HOOK_RECONS])
            return self._run(session, decoder, spec, given, [HOOK_RECONS])[0]
        return self.run(decoder, feeds)[HOOK_RECONS]

    def variant(self, graph: str) -> str:
        """Return the preferred variant of a portable graph: its CPU variant, or the graph itself."""
        return variant_of(self.manifest, graph, self.for_cpu)

    def _start(self, graph: str) -> ort.InferenceSession:
        return self.backend.load_graph(graph, self._files)

    def _release_session(self, session: ort.InferenceSession) -> None:
        self._backend.release_session(session)

    def _close_device(self) -> None:
        for selection in list(self._selections):
            selection.release()
        self._backend.close()

    def _check_session(self, graph: str, session: ort.InferenceSession, path: Path) -> None:
        """Check that a graph was exported for these weights, and that its inputs and outputs are those of the manifest.

        Raises:
            IntegrityError: They are not.
        """
        _check_described(self.manifest, graph, session, path)


def check_unloaded(artifact: Artifact, graph: str) -> None:
    """Check what the file of a graph that this device cannot load says about its weights, inputs and outputs.

    Raises:
        ArtifactError: The file is not ONNX.
        IntegrityError: It was exported for other weights, or has other inputs or outputs than the manifest says.
    """
    manifest = artifact.manifest
    held = read_graph(artifact.open, manifest.files, manifest.graphs[graph].file, MANIFEST, check=True)
    try:
        described = StagedSession(Graph(held.content), ())
    except UNREADABLE as error:
        raise ArtifactError(
            f"{held.path} is not an ONNX model: {type(error).__name__}: {error}. Copy the whole folder again."
        ) from None
    _check_described(manifest, graph, described, held.path)


def _check_described(manifest: Manifest, graph: str, session: Any, path: Path) -> None:
    """Check what a session says about its graph; see `Graphs._check_session`."""
    try:
        metadata = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} has metadata that is not text. Copy the whole folder again.") from error
    weights = metadata.get(WEIGHTS_KEY)
    if weights != manifest.files[manifest.weights].sha256:
        raise IntegrityError(f"{path} was exported for other weights (sha256 {weights}). Copy the whole folder again.")
    spec = manifest.graphs[graph]
    check_tensors(path, "inputs", session.get_inputs(), spec.inputs)
    check_tensors(path, "outputs", session.get_outputs(), spec.outputs)


def check_tensors(path: Path, role: str, found: Sequence[Any], expected: Sequence[TensorSpec]) -> None:
    """Check that the inputs or the outputs of a session are those that the manifest describes, in the same order.

    Args:
        path: Path of the graph, for the message.
        role: "inputs" or "outputs".
        found: What ONNX Runtime says about them.
        expected: What the manifest says.

    Raises:
        IntegrityError: They are not.
    """
    try:
        tensors = tuple(_tensor_spec(tensor) for tensor in found)
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} has {role} with names that are not text. Copy the whole folder again.") from error
    if tensors != tuple(expected):
        raise IntegrityError(f"{path} has the {role} {_describe(tensors)}, the manifest {_describe(expected)}.")


def _tokens(spec: GraphSpec, given: Mapping[str, TensorValue]) -> int:
    return next(iter(given[spec.inputs[0].name].shape), 0)  # ONNX Runtime refuses an array without dimensions


def _check_result(spec: GraphSpec, given: Mapping[str, TensorValue], names: Sequence[str]) -> None:
    """Refuse a run whose result does not fit in host memory."""
    if isinstance(given[spec.inputs[0].name], np.ndarray):
        check_fits(f"The result of {_tokens(spec, given)} tokens", output_bytes(spec, given, names))


def _missing(names: set[str], graph: str) -> str:
    if names == {TARGET}:
        return (
            "This transcoder's error is taken against the activation that it predicts, so its outputs need it: pass "
            "target=, (..., d_out). Its features do not need it: encode(x)."
        )
    return f"{graph!r} also needs {', '.join(sorted(names))}."


ONNX_TYPES = {"tensor(bool)": "bool", **{f"tensor({dtype.onnx_name})": name for name, dtype in DTYPES.items()}}


def _tensor_spec(argument: Any) -> TensorSpec:
    """Return the manifest's description of an input or output that ONNX Runtime describes."""
    return TensorSpec(argument.name, ONNX_TYPES.get(argument.type, argument.type), tuple(argument.shape))


def _describe(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
