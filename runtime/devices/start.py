"""Devices, and ONNX Runtime sessions that are certain to run on them.

ONNX Runtime falls back to the CPU, with a line in its log, when CUDA cannot start. Here that is an error: a session for
a GPU lists only that GPU's provider, forbids the fallback, and is checked to run there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

from ..errors import ProviderError
from .forks import survive_fork
from .threads import bound_cores, thread_limit

CPU, CUDA, TENSORRT = "cpu", "cuda", "tensorrt"
PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}

DISABLED_OPTIMIZERS = {CUDA: {"MatMulAddFusion"}}
"""Optimizers of ONNX Runtime that are off. This one makes a Gemm of a MatMul and an Add, and on CUDA a Gemm writes its
bias to the whole result before the product, which takes longer than the Add."""

LOG_FATAL = 4
"""The ONNX Runtime log severity that silences a session. Its errors are raised as exceptions as well."""


ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    error
    for error in vars(onnxruntime_pybind11_state).values()
    if isinstance(error, type) and issubclass(error, Exception)
)
"""The exceptions of ONNX Runtime's statuses, such as `Fail` and `InvalidArgument`. They do not share a base class."""


@dataclass(frozen=True)
class Device:
    """A device that sessions run on.

    Attributes:
        kind: Kind of device: "cpu", "cuda" or "tensorrt".
        index: Index of the GPU.
    """

    kind: str
    index: int = 0

    @property
    def name(self) -> str:
        """The name that users write: "cpu", "cuda:0", "tensorrt:0"."""
        return self.kind if self.kind == CPU else f"{self.kind}:{self.index}"


def start_session(
    model: str | bytes,
    device: Device,
    provider_options: Mapping[str, str] | None = None,
    *,
    threads: int | None = None,
    arena: bool = True,
    parameters: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    whole: bool = True,
) -> ort.InferenceSession:
    """Start an ONNX Runtime session that runs a model on one device.

    Args:
        model: Path of the model, or its bytes.
        device: Device to run on.
        provider_options: Options of the device's execution provider.
        threads: Number of CPU threads per call. None means one per core that this process may use. As many threads as
            cores are bound to the cores.
        arena: Whether to keep freed host memory for the next call.
        parameters: Values in host memory of all initializers that the model keeps in another file, by name, as
            `onnxruntime.OrtValue`. They replace the file, and ONNX Runtime copies them while it loads the model.
        weights: Initializers by name, as `onnxruntime.OrtValue` on the device. The session uses them in place.
        folder: Folder of the files that a model given as bytes refers to.
        whole: Whether every node must run on the device. If not, ONNX Runtime may run nodes that compute shapes, and
            those that the device does not have, on the CPU.

    Raises:
        ProviderError: The session does not run on the device.
        Exception: ONNX Runtime refuses the model. Its exceptions do not share a base class.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL
    # Every session has its own threads. After a run they would spin while they wait for the next one, on cores that
    # another graph of the same artifact needs. Between the nodes of one run, spinning is worth it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = arena
    threads = threads or thread_limit()
    if threads is not None:
        options.intra_op_num_threads = threads
        if (cores := bound_cores(threads)) is not None:
            options.add_session_config_entry("session.intra_op_thread_affinities", cores)
    if device.kind != CPU and whole:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if parameters:
        options.add_external_initializers(list(parameters), list(parameters.values()))
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    for name, value in (weights or {}).items():
        options.add_initializer(name, value)
    provider = PROVIDERS[device.kind]
    # ONNX Runtime's Python fallback is off, too: its second attempt would hide why the first one failed.
    chosen = [(provider, dict(provider_options or {}))]
    session = ort.InferenceSession(
        model, options, providers=chosen, enable_fallback=0, disabled_optimizers=DISABLED_OPTIMIZERS.get(device.kind)
    )
    running = session.get_providers()
    if running[0] != provider:
        raise ProviderError(f"A session for {device.name} started on {running[0]} instead.")
    # ONNX Runtime does not own the memory of an OrtValue that was made from an array. A thread may still be running the
    # session when its graph is released, so the values live exactly as long as the session.
    session.values_in_use = (parameters, weights)
    survive_fork(session)
    return session


def is_from_onnx_runtime(error: Exception) -> bool:
    """Tell whether ONNX Runtime raised an exception.

    Its C++ code can throw without a status, or with a message that is not text, and its Python code checks arguments.
    The result is a plain Exception, RuntimeError or ValueError, or a UnicodeDecodeError, which counts if the innermost
    Python frame is one of ONNX Runtime's.
    """
    if type(error) not in (Exception, RuntimeError, ValueError, UnicodeDecodeError):
        return isinstance(error, ORT_ERRORS)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("onnxruntime.")
