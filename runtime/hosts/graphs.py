"""The graphs of a grafted host on one device.

They take and return arrays on the host. On a GPU, ONNX Runtime copies them; it also runs the operators that compute
shapes on the CPU, because their results are needed there.
"""

import ctypes
import functools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16, DTYPES
from ..arrays.limits import check_fits
from ..arrays.tensor import Array
from ..artifact.held import HeldFolder, open_folder, read_graph
from ..artifact.manifest import GraphSpec, TensorSpec
from ..artifact.names import INTERVENTION
from ..devices.capabilities import resolve_device_name, why_not_on
from ..devices.cpu import CpuBackend
from ..devices.loading import parameter_values, start_on_checked_bytes
from ..devices.options import Options
from ..devices.select import find_device
from ..devices.start import CPU, TENSORRT, Device, start_session
from ..errors import InputError, ProviderError
from ..session.described import check_tensors
from ..session.loading import LoadedGraphs
from .feeds import dimensions, numpy_dtype
from .folder import GraftedHost, read_host
from .manifest import MANIFEST
from .names import DATA, SWITCHES, at, sae_folder

TOO_LONG = ". A sequence may have more tokens than the host takes: host.tokenize(text, max_length=N) cuts it."


class HostGraphs(LoadedGraphs):
    """The graphs of a grafted host on one device. Calls from several threads at once are safe."""

    def __init__(self, host: GraftedHost, files: HeldFolder, device: Device, options: Options) -> None:
        super().__init__(host.path, files, device)
        self._specs = host.manifest.graphs
        self._hooks = host.manifest.hooks
        self._options = options

    def __contains__(self, graph: str) -> bool:
        return graph in self._specs

    def spec(self, graph: str) -> GraphSpec:
        """Return the inputs and outputs of a graph.

        Raises:
            ArtifactError: The folder does not contain the graph.
        """
        self._check_name(graph)
        return self._specs[graph]

    def check_names(self, graph: str, feeds: Collection[str], names: Collection[str]) -> None:
        """Check the names of the inputs and outputs of a graph that a caller gives.

        Raises:
            ArtifactError: The folder does not contain the graph.
            InputError: The graph does not have an input or output of that name, or an input without a default is
                missing.
        """
        spec = self.spec(graph)
        inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (spec.inputs, spec.outputs))
        for role, given, known in (("inputs", feeds, inputs), ("outputs", names, outputs)):
            if unknown := [str(name) for name in given if name not in known]:
                raise InputError(f"{graph!r} has no {role} {', '.join(unknown)}; it has {', '.join(known)}.")
        defaults = {at(hook, name) for hook in self._hooks for name in (*SWITCHES, *INTERVENTION)}
        if missing := [name for name in inputs if name not in feeds and name not in defaults]:
            raise InputError(f"{graph!r} also needs the inputs {', '.join(missing)}.")

    def run(self, graph: str, feeds: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Run a graph and return its outputs, or some of them.

        Args:
            graph: Name of the graph.
            feeds: Arrays by the name of the input. Those of other graphs are ignored, and inputs with a default may be
                left out.
            names: Names of the outputs; None for all, in the order of the manifest.

        Raises:
            ArtifactError: The folder does not contain the graph, or it cannot be loaded.
            InputError: The outputs do not fit in memory.
            SAEError: ONNX Runtime refuses the feeds, or runs out of memory.
        """
        spec = self.spec(graph)
        names = [tensor.name for tensor in spec.outputs] if names is None else list(names)
        if not names:
            return {}
        given = {tensor.name: feeds[tensor.name] for tensor in spec.inputs if tensor.name in feeds}
        _check_outputs_fit(spec, given, names)
        session = self._session(graph)
        try:
            arrays = _run(session, spec, given, names)
        except Exception as error:
            self._explain(error, graph, given, advice=TOO_LONG)
        return dict(zip(names, arrays, strict=True))

    def _start(self, graph: str) -> ort.InferenceSession:
        if self._device.kind == CPU:
            return CpuBackend(self._options).load_graph(graph, self._held)
        # Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
        options = {
            "device_id": str(self._device.index),
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
        }
        start = functools.partial(
            start_session, device=self._device, provider_options=options, threads=self._options.threads, whole=False
        )
        return start_on_checked_bytes(graph, self._held, parameter_values(graph, self._held), start)

    def _check_session(self, graph: str, session: ort.InferenceSession, path: Path) -> None:
        spec = self._specs[graph]
        # ONNX Runtime lists the inputs with a default apart from the others, and in an order of its own.
        taken = {tensor.name: tensor for tensor in (*session.get_inputs(), *session.get_overridable_initializers())}
        named = [taken.pop(tensor.name) for tensor in spec.inputs if tensor.name in taken]
        check_tensors(path, "inputs", [*named, *taken.values()], spec.inputs)
        check_tensors(path, "outputs", session.get_outputs(), spec.outputs)

    def _release_session(self, session: ort.InferenceSession) -> None:
        pass  # ONNX Runtime frees it

    def _close_device(self) -> None:
        pass


def open_host(
    path: str | os.PathLike[str],
    check_integrity: bool = True,
    public_key: str | os.PathLike[str] | None = None,
) -> tuple[GraftedHost, HeldFolder]:
    """Return the grafted host in the folder `path` with its files, of one export even if it is replaced at this moment.

    Raises:
        ArtifactError: `path` is not the folder of a grafted host, or a file is missing or has another size.
        SignatureError: The folder does not have the signature that was asked for.
        InputError: A signature is asked for, and the files that are opened would not be compared with it.
    """

    def hold(host: GraftedHost) -> HeldFolder:
        files = host.manifest.files
        graphs = {
            name: read_graph(host.open, files, graph.file, MANIFEST, check_integrity)
            for name, graph in host.manifest.graphs.items()
        }
        data = {DATA: host.open(DATA)} if DATA in files else {}
        for hook, sae in host.saes.items():
            weights = sae.manifest.weights
            data[f"{sae_folder(hook)}/{weights}"] = sae.open(weights)
        return HeldFolder(graphs, data, check_integrity)

    return open_folder(path, read_host, hold, MANIFEST, check_integrity, public_key)


def choose_device(host: GraftedHost, name: str) -> Device:
    """Return the device that runs a host; "auto" is a GPU that can run it, or else the CPU.

    Raises:
        ProviderError: The device does not work on this machine, or it cannot run the host.
    """
    for sae in host.saes.values():
        name = resolve_device_name(sae, name)
    device = find_device(name)
    if device.kind == TENSORRT:
        raise ProviderError(f'{host.path} holds a language model, which runs on "cpu" or "cuda"; device is {name!r}.')
    dtypes = {sae.manifest.sae.dtype for sae in host.saes.values()} | {sae.dtype for sae in host.manifest.saes}
    if reason := why_not_on(device, sorted(dtypes)):
        if name == "auto":
            return Device(CPU)
        raise ProviderError(f"{host.path} cannot run on {reason}.")
    return device


def _check_outputs_fit(spec: GraphSpec, feeds: Mapping[str, Array], names: Sequence[str]) -> None:
    """Refuse a run whose outputs do not fit in memory."""
    inputs = tuple(tensor for tensor in spec.inputs if tensor.name in feeds)
    sizes = dimensions(tuple(tensor for tensor in inputs if len(tensor.shape) == feeds[tensor.name].ndim), feeds)
    total = sum(_size(tensor, sizes) for tensor in spec.outputs if tensor.name in names)
    check_fits("The result", total)


def _size(tensor: TensorSpec, sizes: Mapping[str, int]) -> int:
    """Return the size of an output in bytes, as far as its named dimensions are those of inputs."""
    shape = (sizes.get(dimension, 1) if isinstance(dimension, str) else dimension for dimension in tensor.shape)
    return math.prod(shape) * numpy_dtype(tensor.dtype).itemsize


def _run(
    session: ort.InferenceSession, spec: GraphSpec, feeds: Mapping[str, Array], names: Sequence[str]
) -> list[Array]:
    dtypes = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
    if all(dtypes[name] != BFLOAT16 for name in (*feeds, *names)):
        return session.run(list(names), dict(feeds))
    return run_with_binding(session, feeds, names)


def run_with_binding(session: ort.InferenceSession, feeds: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
    """Run a session whose inputs or outputs are in bfloat16, and return the outputs with the given names.

    `InferenceSession.run` neither takes nor gives ml_dtypes' arrays. A binding takes them by their memory, and gives
    memory.
    """
    binding, held = session.io_binding(), []
    for name, feed in feeds.items():
        array = np.asarray(feed, order="C")
        held.append(array)
        kind = DTYPES[BFLOAT16].element_type if array.dtype.name == BFLOAT16 else array.dtype
        # Not `bind_cpu_input`, which does not find the inputs with a default.
        binding.bind_input(name, "cpu", 0, kind, array.shape, array.ctypes.data)
    for name in names:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    return [_copied(value) for value in binding.get_outputs()]


def _copied(value: ort.OrtValue) -> Array:
    """Return a copy of a value on the host."""
    if value.data_type() != f"tensor({BFLOAT16})":
        return value.numpy()
    bits = np.empty(value.shape(), DTYPES[BFLOAT16].numpy)
    if bits.nbytes:
        ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits
