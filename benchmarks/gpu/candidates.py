"""Other ways to write `model.onnx` for CUDA, side by side: what each moves, and what it takes.

ONNX Runtime's CUDA kernel of Gemm first writes the bias over the whole `[tokens, d_sae]`, by a product with K = 1, and
lets the product read and overwrite it (beta = 1). The question is what that costs, and what would cost less:

    as_is   Gemm with the bias, as in the artifact
    add     MatMul, then Add; ONNX Runtime would make a Gemm of the two again, which is forbidden here
    rides   `[x - b_dec, 1, 0...] @ [W_enc; b_enc; 0...]`: the bias is a row of the matrix. Eight columns more, so that
            the inner dimension stays a multiple of 8, which tensor cores want; see `saeexport/graphs/passes/bias.py`
    asked   as is, but acts_pre is no output, so that ReLU may write where it reads

`candidate_graphs.py` writes them.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from torch import Tensor

from benchmarks.gpu.agreement import BOUNDS, bind, reference
from benchmarks.gpu.contenders import Way
from benchmarks.gpu.device import Cuda, Device
from benchmarks.gpu.limit import Work
from benchmarks.gpu.subjects import artifact_of, draw_inputs, dtype_of, load_weights
from benchmarks.gpu.timing import Effort, interleave
from benchmarks.shared.machine import quartiles
from runtime.arrays.dtypes import DTYPES, FLOAT32
from runtime.artifact.contracts import MODEL
from runtime.artifact.names import FEATURE_HOOKS, HOOK_ACTS_PRE, HOOK_NAMES, INPUT
from runtime.devices.options import TF32
from runtime.errors import ProviderError

PAD = 8
AS_IS, ADD, RIDES, ASKED = "as_is", "add", "rides", "asked"
CANDIDATES = (AS_IS, ADD, RIDES, ASKED)


def candidate_file(artifact: Path, name: str) -> Path:
    """Return where the graph of a candidate is."""
    return artifact / (f"{MODEL}.onnx" if name == AS_IS else f"candidate.{name}.onnx")


def moved_bytes(work: Work) -> dict[str, int]:
    """Return the bytes that each candidate moves in a call, by counting its passes.

    Of the wide tensors, `rows * d_sae`: Gemm writes the bias, reads it and writes the product (3), or MatMul writes
    and Add reads and writes (3), or the product alone writes (1); ReLU reads and writes (2), the decoder reads (1). Of
    the narrow ones, `rows * d_in`: x - b_dec (2), in one case with the tail appended (2); the encoder reads (1);
    the reconstruction with its bias as above (3); error and output read two and write one each (6); and the input is
    copied (2), because ONNX Runtime runs every node of a graph, whatever is fetched. The weights are read once.
    """
    weights = 2 * work.d_in * work.d_sae + work.d_sae + work.d_in
    wide, narrow = work.rows * work.d_sae, work.rows * work.d_in
    # Rows of zeros in the matrix, and the tail of x: written, read and written once more behind x, read.
    padding = (PAD - 1) * work.d_sae + 4 * PAD * work.rows
    numbers = {
        AS_IS: weights + 6 * wide + 14 * narrow,
        ADD: weights + 6 * wide + 14 * narrow,
        RIDES: weights + 4 * wide + 16 * narrow + padding,
        ASKED: weights + 6 * wide + 14 * narrow,
    }
    return {name: work.itemsize * count for name, count in numbers.items()}


def measure_candidates(
    folder: Path, shape: tuple[int, int], name: str, rows: int, device: Device, effort: Effort
) -> dict[str, Any]:
    """Return what each candidate takes, in the precision `name`; all write to the same memory."""
    artifact = artifact_of(folder, shape, dtype_of(name))
    weights = load_weights(artifact, device.torch)
    inputs = draw_inputs(weights, rows, 4)
    exact = load_weights(artifact_of(folder, shape, FLOAT32), device.torch)
    expected = [reference(x, exact) for x in inputs[:2]]
    del exact, weights
    outputs = {hook: inputs[0].new_empty((rows, shape[hook in FEATURE_HOOKS])) for hook in HOOK_NAMES[1:]}
    makers = {
        candidate: functools.partial(
            bound, candidate_file(artifact, candidate), inputs, outputs, device, name, candidate == ASKED
        )
        for candidate in CANDIDATES
    }
    ways, agreement, absent = bind(makers, expected, inputs[0].dtype, BOUNDS[name])
    queued, _ = interleave(ways, device, effort)
    work = Work(*shape, rows, inputs[0].itemsize)
    return {
        "d_in": shape[0], "d_sae": shape[1], "precision": name, "rows": rows, "bytes": moved_bytes(work),
        "ms": {candidate: quartiles(times) for candidate, times in queued.items()},
        "over_as_is": {candidate: quartiles(times / queued[AS_IS]) for candidate, times in queued.items()
                       if AS_IS in queued},
        "agreement": agreement, "absent": absent,
    }  # fmt: skip


def bound(
    graph: Path, inputs: Sequence[Tensor], outputs: Mapping[str, Tensor], device: Device, name: str, fewer: bool
) -> Way:
    """Return a graph whose inputs and outputs are bound in place, for nothing but its nodes to be timed.

    Args:
        graph: the file.
        inputs: sets of inputs, on the device.
        outputs: where it writes, by hook.
        device: that runs it.
        name: of the precision.
        fewer: whether acts_pre is no output of it.
    """
    session = raw_session(graph, device, name)
    written = {hook: tensor for hook, tensor in outputs.items() if not (fewer and hook == HOOK_ACTS_PRE)}
    bindings = []
    for x in inputs:
        binding = session.io_binding()
        tensors = [(binding.bind_input, INPUT, x), *((binding.bind_output, *item) for item in written.items())]
        for bind_to, tensor_name, tensor in tensors:
            bind_to(tensor_name, device.torch.type, device.torch.index or 0, DTYPES[dtype_of(name)].onnx,
                    list(tensor.shape), tensor.data_ptr())  # fmt: skip
        bindings.append(binding)
    for tensor in written.values():
        tensor.fill_(float("nan"))  # what one graph does not write must not be what another one wrote
    # The results are read on the same stream; nobody has to wait for them in between.
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return Way(bindings, lambda binding: session.run_with_iobinding(binding, options), lambda _: written)


def raw_session(graph: Path, device: Device, name: str, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime's own, on the stream that PyTorch uses.

    Args:
        graph: the file.
        device: that runs it.
        name: of the precision.
        profile: what its file of times is to be called.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; that shapes are computed on the CPU is known
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
