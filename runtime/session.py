"""SAESession: a HookedSAE, executed by ONNX Runtime, with the names, shapes and order of the PyTorch original."""

import math
import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort

from .artifact import Artifact, read_artifact
from .errors import ArtifactError, InputError, IntegrityError, ProviderError, SAEError
from .inputs import Array, NamesFilter, as_dtype, flat_shape, select_hooks
from .manifest import (
    FEATURE_HOOKS,
    HOOK_ACTS_POST,
    HOOK_INPUT,
    HOOK_NAMES,
    HOOK_OUTPUT,
    HOOK_RECONS,
    INPUT,
    SAEConfig,
    TensorSpec,
)
from .providers import find_device, start_session

DECODE = "decode"
METADATA_PREFIX = "saeexport."
WEIGHTS_KEY = METADATA_PREFIX + "weights_sha256"


class SAESession:
    """The SAE of an artifact, ready to run; numpy in, numpy out.

    A graph is loaded when it is first needed, and the smallest one that computes what was asked is run. Calls from
    several threads at once are safe. Use it as a context manager, or call `close`, to free its memory.

    Attributes:
        artifact: what was opened.
        device: what runs it, "cpu" or "cuda:N".

    Args:
        path: the artifact's folder.
        device: "auto" (CUDA if it really starts, else the CPU), "cpu", "cuda" or "cuda:N".
        threads: of the CPU, for one call; None takes one per core.
        check_integrity: compare the sha256 of every file that is loaded with the manifest's. It reads the weights once
            more (about a second per 2 GB); the sizes are compared in any case.

    Raises:
        ArtifactError: the folder is not an artifact, or a file of it is not what it should be.
        ProviderError: the device cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        *,
        threads: int | None = None,
        check_integrity: bool = True,
    ) -> None:
        self.artifact: Artifact = read_artifact(path)
        self._device = find_device(device)
        self.device: str = self._device.name
        self._threads = threads
        self._check_integrity = check_integrity
        self._dtype = np.dtype(self.cfg.dtype)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def cfg(self) -> SAEConfig:
        """The configuration of the SAE, as the manifest has it."""
        return self.artifact.manifest.sae

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The six hooks in firing order. `cfg.fired_hooks` has those that `run_with_cache` returns."""
        return HOOK_NAMES

    def __call__(self, x: Array) -> Array:
        """Return `hook_sae_output`, with the shape of `x` and the SAE's dtype.

        Args:
            x: `(..., d_in)`, or `(..., n_heads, d_head)` where `cfg.hook_name` ends in `_z`; of the SAE's dtype, or
                for float32 also float16 and integers.

        Raises:
            InputError: `x` has another shape or dtype.
        """
        return self.compute(x, [HOOK_OUTPUT])[HOOK_OUTPUT]

    def run_with_cache(
        self, x: Array, names_filter: NamesFilter = None, *, return_output: bool = True
    ) -> tuple[Array | None, dict[str, Array]]:
        """Return the output, and the hooks that fire in the original and pass the filter, in firing order.

        `hook_sae_input` is `x` itself. Unknown names in the filter are ignored.

        Args:
            x: as for `__call__`.
            names_filter: None for all hooks, a name, a list of names, or a function of a name.
            return_output: False returns None for the output and does not compute it: with
                `names_filter="hook_sae_acts_post"` only the encoder runs.

        Raises:
            InputError: `x` has another shape or dtype.
            ValueError: `names_filter` is of another type.
        """
        wanted = [name for name in select_hooks(names_filter) if name in self.cfg.fired_hooks]
        hooks = self.compute(x, [*wanted, HOOK_OUTPUT] if return_output else wanted)
        return (hooks[HOOK_OUTPUT] if return_output else None), {name: hooks[name] for name in wanted}

    def encode(self, x: Array) -> Array:
        """Return the activations of the features, `hook_sae_acts_post`, `(..., d_sae)`.

        Raises:
            InputError: `x` has another shape or dtype than `__call__` takes.
        """
        return self.compute(x, [HOOK_ACTS_POST])[HOOK_ACTS_POST]

    def decode(self, acts_post: Array) -> Array:
        """Return the reconstruction from activations `(..., d_sae)`.

        It has the shape `(..., d_in)`, or `(..., n_heads, d_head)` if the artifact was exported with its head shape.

        Raises:
            InputError: `acts_post` has another shape or dtype.
        """
        acts = as_dtype(acts_post, self._dtype, "acts_post")
        lead = flat_shape(acts.shape, self.cfg.d_sae, what="acts_post")[:-1]
        feed = acts.reshape(math.prod(lead), self.cfg.d_sae)
        recons = self.run_graph(DECODE, {HOOK_ACTS_POST: feed}, [HOOK_RECONS])[HOOK_RECONS]
        return recons.reshape(*lead, *self.cfg.input_shape)

    def compute(self, x: Array, names: Sequence[str]) -> dict[str, Array]:
        """Return the named hooks of `x`, in that order, by the smallest graph that has them all.

        Unlike the cache, it has `hook_sae_error` also where that does not fire in the original.

        Args:
            x: as for `__call__`.
            names: among `hook_names`.

        Raises:
            InputError: `x` has another shape or dtype, or a name is not a hook.
        """
        if unknown := [name for name in names if name not in HOOK_NAMES]:
            raise InputError(f"{', '.join(unknown)}: no such hook. There are {', '.join(HOOK_NAMES)}.")
        given = np.asarray(x)
        lead = flat_shape(given.shape, self.cfg.d_in, self.cfg.hook_name)[:-1]
        feed = as_dtype(given, self._dtype, "x")
        hooks = {HOOK_INPUT: given}  # as given: in the original too it keeps its dtype
        if computed := [name for name in dict.fromkeys(names) if name != HOOK_INPUT]:
            rows = feed.reshape(math.prod(lead), *self.cfg.input_shape)
            hooks |= self.run_graph(self._smallest_graph(computed), {INPUT: rows}, computed)
        return {
            name: hooks[name].reshape(*lead, self.cfg.d_sae)
            if name in FEATURE_HOOKS
            else hooks[name].reshape(given.shape)
            for name in names
        }

    def run_graph(self, graph: str, feeds: dict[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one graph of the artifact as it is, and return its outputs.

        Args:
            graph: its name in the manifest, such as "model".
            feeds: an array for each of its inputs, with the rank and dtype that the manifest gives.
            names: which of its outputs; None for all that it has, in its order.

        Raises:
            ArtifactError: the artifact has no such graph, or it cannot be loaded.
            SAEError: ONNX Runtime refuses the feeds, or runs out of memory.
        """
        session = self._session(graph)
        if names is None:
            names = [output.name for output in session.get_outputs()]
        try:
            arrays = session.run(list(names), feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in feeds.items())
            raise SAEError(f"ONNX Runtime cannot run {graph!r} on {self.device} with {shapes}: {error}") from error
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Free the graphs and their weights; a call after this one is an error. Closing twice is not."""
        with self._lock:
            self._closed = True
            self._sessions.clear()

    def __enter__(self) -> "SAESession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        cfg = self.cfg
        return f"SAESession({str(self.artifact.path)!r}, {cfg.hook_name}, {cfg.d_in} -> {cfg.d_sae}, {self.device})"

    def _smallest_graph(self, names: Sequence[str]) -> str:
        """Return the graph with the fewest outputs that computes `names` from the input alone."""
        fitting = {
            graph: len(spec.outputs)
            for graph, spec in self.artifact.manifest.graphs.items()
            if [tensor.name for tensor in spec.inputs] == [INPUT]
            and set(names) <= {tensor.name for tensor in spec.outputs}
        }
        if not fitting:
            raise ArtifactError(f"{self.artifact.path} has no graph from {INPUT} to {', '.join(names)}.")
        return min(fitting, key=lambda graph: fitting[graph])

    def _session(self, graph: str) -> ort.InferenceSession:
        session = self._sessions.get(graph)
        if session is None:
            with self._lock:  # two threads that need the same graph load it once
                if self._closed:
                    raise SAEError(f"{self!r} is closed.")
                if graph not in self._sessions:
                    self._sessions[graph] = self._load(graph)
                session = self._sessions[graph]
        return session

    def _load(self, graph: str) -> ort.InferenceSession:
        """Load a graph, and make sure that it is the one that the manifest describes."""
        manifest = self.artifact.manifest
        if graph not in manifest.graphs:
            raise ArtifactError(f"{self.artifact.path} has no graph {graph!r}; it has {', '.join(manifest.graphs)}.")
        spec = manifest.graphs[graph]
        self.artifact.file(manifest.weights, self._check_integrity)
        path = self.artifact.file(spec.file, self._check_integrity)
        try:
            session = start_session(str(path), self._device, self._threads)
        except ProviderError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise ArtifactError(
                f"ONNX Runtime {ort.__version__} cannot load {path} on {self.device}: {error}"
            ) from error
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


ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


def _tensor_spec(argument: Any) -> TensorSpec:
    """Return what ONNX Runtime says of an input or output in the manifest's terms."""
    return TensorSpec(argument.name, ONNX_TYPES.get(argument.type, argument.type), tuple(argument.shape))


def _describe(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
