"""The graphs of an artifact on one device. They are loaded when first needed, and checked with the manifest."""

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import DTYPES
from ..arrays.limits import check_fits
from ..arrays.tensor import Array, TensorValue
from ..artifact.contracts import DECODE, ENCODE, FEATURES, MODEL
from ..artifact.folder import Artifact
from ..artifact.held import HeldFiles
from ..artifact.manifest import GraphSpec, TensorSpec
from ..artifact.names import HOOK_ACTS_POST, HOOK_RECONS, TARGET, TOKENS, K
from ..artifact.selection import select_features
from ..devices.backend import Backend, create_backend
from ..devices.background import in_background
from ..devices.blocks import block_sizes, output_bytes
from ..devices.cpu import CpuBackend
from ..devices.options import Options
from ..devices.staged import StagedSession
from ..devices.start import Device, is_from_onnx_runtime
from ..errors import InputError
from .described import check_loaded
from .loading import LoadedGraphs
from .route import Choice, choose_graph, variant_of
from .selection import Selection, tokens_at_once, tokens_for_threads


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
        self._threads = options.threads
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
        if [*feeds] != needed:
            self._check_names(graph, feeds, needed)
        spec = self.manifest.graphs[graph]
        outputs = [tensor.name for tensor in spec.outputs]
        if unknown := set(names or ()) - set(outputs):
            raise InputError(f"{graph!r} does not compute {', '.join(sorted(unknown))}; it computes {outputs}.")
        names = outputs if names is None else names
        given = {name: feeds[name] for name in needed}
        if not names:
            return {}  # ONNX Runtime takes an empty list for all outputs
        _check_result(spec, given, names)
        return dict(zip(names, self._run(self._session(graph), graph, spec, given, names), strict=True))

    def _check_names(self, graph: str, feeds: Mapping[str, TensorValue], needed: Sequence[str]) -> None:
        """Refuse inputs that a graph needs and does not get, or that no graph takes; those of others are ignored."""
        known = {tensor.name for spec in self.manifest.graphs.values() for tensor in spec.inputs}
        if unknown := set(feeds) - known:
            raise InputError(f"No graph takes {', '.join(sorted(map(str, unknown)))}; {graph!r} takes {needed}.")
        if missing := set(needed) - set(feeds):
            raise InputError(_missing(missing, graph))

    def select(self, ids: Array) -> Selection:
        """Load the part of the encoder that computes the activations of some features.

        Args:
            ids: Ids of the features, `(m,)`, which exist.

        Raises:
            InputError: The activation of a feature depends on other features.
            ArtifactError: The encoder cannot be read or loaded.
        """
        sae, graph, m = self.manifest.sae, self._selected_from, len(ids)
        output = TensorSpec(HOOK_ACTS_POST, sae.dtype, (TOKENS, m))
        spec = dataclasses.replace(self.manifest.graphs[graph], outputs=(output,))
        at_once = tokens_at_once(sae, self._device, self.block_tokens)
        many = tokens_for_threads(sae, self._device, m, self._threads)
        selection = Selection(ids, f"{graph} of {m} features", spec, at_once, many, self._backend.release_session)
        self.check_process()  # in a forked process a thread that is not there may hold the lock
        with self._lock:
            self.check_open()
            selection.session = self._load_selection(selection, one_thread=many is not None)
            self._selections.add(selection)
        return selection

    @property
    def _selected_from(self) -> str:
        """The graph from which features are selected.

        `acts` has the bias in its matrix, which saves a pass over `d_sae` activations and costs a copy of the input.
        For some of the features that does not pay.
        """
        return self.variant(ENCODE)

    def _load_selection(self, selection: Selection, one_thread: bool) -> ort.InferenceSession:
        """Start a session of a selection. The caller holds the lock."""
        graph = self._selected_from
        held = self._files.graphs[graph]
        checked = in_background(self._files.check_data)
        try:
            parameters = self._files.parameters(graph)
            model = select_features(held.content, held.path, parameters, selection.ids, self.manifest.sae)
        finally:
            checked()
        self._files.check_unchanged()
        self._files.forget_pages()
        try:
            session = self.backend.load_model(model, one_thread)
        except Exception as error:
            if not is_from_onnx_runtime(error):
                raise
            raise self._cannot_load(held.path, error) from error
        return selection.keep(session)

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
            return self._session_of(selection, len(rows)).run([HOOK_ACTS_POST], feeds)[0]
        except Exception as error:
            self._explain(error, selection.name, feeds)

    def run_selection(self, selection: Selection, feeds: Mapping[str, TensorValue]) -> TensorValue:
        """Return the activations of the features of a selection, `(tokens, m)`.

        Raises:
            SAEError: The session was closed.
        """
        given = {name: feeds[name] for name in (tensor.name for tensor in selection.spec.inputs)}
        session = self._session_of(selection, _tokens(selection.spec, given))
        _check_result(selection.spec, given, [HOOK_ACTS_POST])
        (values,) = self._run(session, selection.name, selection.spec, given, [HOOK_ACTS_POST])
        return values

    def _session_of(self, selection: Selection, tokens: int) -> ort.InferenceSession:
        """Return the session that computes so many tokens in the least time."""
        few = selection.many is None or tokens < selection.many
        session = selection.session if few else selection.several
        if session is None:
            self.check_process()
            with self._lock:
                self.check_open()
                session = selection.several = selection.several or self._load_selection(selection, one_thread=False)
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

    def find_strongest(self, feeds: Mapping[str, TensorValue], k: int) -> dict[str, TensorValue]:
        """Return the outputs of `features`: indices, values and l0 of the k strongest features of each token."""
        spec = self.manifest.graphs[FEATURES]
        given = {tensor.name: feeds[tensor.name] for tensor in spec.inputs if tensor.name != K}
        tokens, given[K] = _tokens(spec, given), np.array([k], np.int64)
        try:
            session = self.backend.search_session(tokens, k, lambda: self._session(ENCODE))
        except Exception as error:
            self._explain(error, FEATURES, given)
        if session is None:
            return self.run(self.variant(FEATURES), given)
        names = [tensor.name for tensor in spec.outputs]
        _check_result(spec, given, names)
        return dict(zip(names, self._run(session, FEATURES, spec, given, names), strict=True))

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
        check_loaded(self.manifest, graph, session, path)


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
