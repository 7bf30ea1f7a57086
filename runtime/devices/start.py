"""Devices, and ONNX Runtime sessions that really run on them.

ONNX Runtime falls back to the CPU with a line in its log when CUDA cannot start. Here that is an error: a session for
a GPU lists only that GPU's provider, forbids the fallback, and is asked afterwards where it runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from ..errors import ProviderError
from .threads import thread_limit

CPU, CUDA, TENSORRT = "cpu", "cuda", "tensorrt"
PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}

LOG_WARNING, LOG_FATAL = 2, 4  # ONNX Runtime's severities; the first is its default


@dataclass(frozen=True)
class Device:
    """Where sessions run.

    Attributes:
        kind: "cpu", "cuda" or "tensorrt".
        index: of the GPU.
    """

    kind: str
    index: int = 0

    @property
    def name(self) -> str:
        """Its name for people: "cpu", "cuda:0", "tensorrt:0"."""
        return self.kind if self.kind == CPU else f"{self.kind}:{self.index}"


def start_session(
    model: str | bytes,
    device: Device,
    provider_options: Mapping[str, str] | None = None,
    *,
    threads: int | None = None,
    arena: bool = True,
    weights: Mapping[str, Any] | None = None,
) -> ort.InferenceSession:
    """Return a session of `model`, a path or the bytes of a graph, with every node on `device`.

    Args:
        model: the graph.
        device: where it runs.
        provider_options: of the device's execution provider.
        threads: of the CPU, for one call; None for one per core that this process may use.
        arena: whether freed memory of the host is kept for the next call.
        weights: initializers by name that are on the device already, as `onnxruntime.OrtValue`; the session reads them
            where they are.

    Raises:
        ProviderError: the session runs elsewhere.
        Exception: ONNX Runtime's own, which share no base class, where it refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL  # errors come as exceptions too
    # Every session has threads of its own, and after a run they would spin, waiting for the next one, on the cores that
    # another graph of the same artifact needs now. Between the nodes of one run spinning is worth it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = arena
    threads = threads or thread_limit()
    if threads is not None:
        options.intra_op_num_threads = threads
    if device.kind != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for name, value in (weights or {}).items():
        options.add_initializer(name, value)
    provider = PROVIDERS[device.kind]
    # Without a fall-back in Python either, whose second try would hide what was wrong with the first.
    chosen = [(provider, dict(provider_options or {}))]
    session = ort.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    running = session.get_providers()
    if running[0] != provider:
        raise ProviderError(f"A session for {device.name} started on {running[0]} instead.")
    return session
