"""Compares ways to write `model.onnx` for CUDA: the bytes that each moves, and its time.

    as_is   MatMul, then Add, as in the artifact. ONNX Runtime would fuse the two into a Gemm, which is disabled.
    gemm    Gemm with the bias. ONNX Runtime's CUDA kernel first writes the bias to the whole `[tokens, d_sae]`, and
            then lets the product read and overwrite it (beta = 1).
    rides   `[x - b_dec, 1, 0...] @ [W_enc; b_enc; 0...]`: the bias is a row of the matrix. Eight columns are added, so
            that the inner dimension stays a multiple of 8, as tensor cores require. `saeexport/graphs/passes/bias.py`
            writes this form for the CPU.

`prepared/candidate_graphs.py` writes them.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from torch import Tensor

from benchmarks.gpu.contenders.agreement import TOLERANCES, bind_contenders, compute_reference
from benchmarks.gpu.contenders.names import Contender
from benchmarks.gpu.device import Cuda, Device
from benchmarks.gpu.measure.limit import Work
from benchmarks.gpu.measure.timing import Effort, interleave
from benchmarks.gpu.prepared.artifacts import (
    AS_IS,
    BIAS_ROWS,
    CANDIDATES,
    GEMM,
    RIDES,
    artifact_folder,
    candidate_file,
    draw_inputs,
    load_weights,
    weights_dtype,
)
from benchmarks.shared.timing import quartiles
from runtime.arrays.dtypes import DTYPES, FLOAT32
from runtime.artifact.names import FEATURE_HOOKS, HOOK_NAMES, INPUT
from runtime.devices.options import TF32
from runtime.errors import ProviderError


def moved_bytes(work: Work) -> dict[str, int]:
    """Return the bytes that each candidate moves in a call, counted by its reads and writes.

    Accesses of the wide tensors, `rows * d_sae`: MatMul writes and Add reads and writes (3), or Gemm writes the bias,
    reads it and writes the product (3), or the product alone writes (1); ReLU reads and writes (2); the decoder reads
    (1). Accesses of the narrow tensors, `rows * d_in`: x - b_dec (2), for `rides` with the tail appended (2); the
    encoder reads (1); the reconstruction with its bias, as above (3); error and output each read two and write one (6);
    the input is copied (2), because ONNX Runtime runs every node of a graph, whatever is fetched. The weights are read
    once.
    """
    weights = 2 * work.d_in * work.d_sae + work.d_sae + work.d_in
    wide, narrow = work.rows * work.d_sae, work.rows * work.d_in
    # The rows of zeros in the matrix; and the tail of x, which is written, read, written again after x, and read.
    padding = (BIAS_ROWS - 1) * work.d_sae + 4 * BIAS_ROWS * work.rows
    elements = {
        AS_IS: weights + 6 * wide + 14 * narrow,
        GEMM: weights + 6 * wide + 14 * narrow,
        RIDES: weights + 4 * wide + 16 * narrow + padding,
    }
    return {name: work.itemsize * count for name, count in elements.items()}


def measure_candidates(
    folder: Path, shape: tuple[int, int], name: str, rows: int, device: Device, effort: Effort
) -> dict[str, Any]:
    """Return the times of the candidates in the precision `name`. All write to the same memory."""
    artifact = artifact_folder(folder, shape, weights_dtype(name))
    weights = load_weights(artifact, device.torch)
    inputs = draw_inputs(weights, rows, 4)
    exact = load_weights(artifact_folder(folder, shape, FLOAT32), device.torch)
    expected = [compute_reference(x, exact) for x in inputs[:2]]
    del exact, weights
    outputs = {hook: inputs[0].new_empty((rows, shape[hook in FEATURE_HOOKS])) for hook in HOOK_NAMES[1:]}
    factories = {
        candidate: functools.partial(bind_graph, candidate_file(artifact, candidate), inputs, outputs, device, name)
        for candidate in CANDIDATES
    }
    contenders, agreement, absent = bind_contenders(factories, expected, inputs[0].dtype, TOLERANCES[name])
    queued, _ = interleave(contenders, device, effort)
    work = Work(*shape, rows, inputs[0].itemsize)
    return {
        "d_in": shape[0], "d_sae": shape[1], "precision": name, "rows": rows, "bytes": moved_bytes(work),
        "ms": {candidate: quartiles(times) for candidate, times in queued.items()},
        "over_as_is": {candidate: quartiles(times / queued[AS_IS]) for candidate, times in queued.items()
                       if AS_IS in queued},
        "agreement": agreement, "absent": absent,
    }  # fmt: skip


def bind_graph(
    graph: Path,
    inputs: Sequence[Tensor],
    outputs: Mapping[str, Tensor],
    device: Device,
    name: str,
) -> Contender:
    """Return a graph whose inputs and outputs are bound to memory, so that only its nodes are timed.

    Args:
        graph: File of the graph.
        inputs: Sets of inputs, on the device.
        outputs: Tensors that the outputs are written to, by hook.
        device: Device that runs it.
        name: Name of the precision.
    """
    session = open_session(graph, device, name)
    bindings = []
    for x in inputs:
        binding = session.io_binding()
        tensors = [(binding.bind_input, INPUT, x), *((binding.bind_output, *item) for item in outputs.items())]
        for bind_to, tensor_name, tensor in tensors:
            bind_to(tensor_name, device.torch.type, device.torch.index or 0, DTYPES[weights_dtype(name)].onnx,
                    list(tensor.shape), tensor.data_ptr())  # fmt: skip
        bindings.append(binding)
    for tensor in outputs.values():
        tensor.fill_(float("nan"))  # so that the check sees what this graph does not write
    # The results are read on the same stream, so that the host need not wait for them.
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return Contender(bindings, lambda binding: session.run_with_iobinding(binding, options), lambda _: outputs)


def open_session(graph: Path, device: Device, name: str, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime on the stream that PyTorch uses.

    Args:
        graph: File of the graph.
        device: Device that runs it.
        name: Name of the precision.
        profile: Prefix of the profile's path, or None for no profile.

    Raises:
        ProviderError: ONNX Runtime fell back to another provider.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; the warning that shapes are computed on the CPU is expected
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    provider: Any = "CPUExecutionProvider"
    if isinstance(device, Cuda):
        provider = ("CUDAExecutionProvider", {"device_id": str(device.torch.index), "use_tf32": str(int(name == TF32)),
                                              "user_compute_stream": str(device.stream.cuda_stream)})  # fmt: skip
    session = onnxruntime.InferenceSession(
        str(graph), options, providers=[provider], disabled_optimizers=["MatMulAddFusion"]
    )
    if isinstance(device, Cuda) and session.get_providers()[0] != provider[0]:
        raise ProviderError(f"{graph.name} was to run on CUDA and runs on {session.get_providers()[0]}.")
    return session
