"""The options of a session: their values, and which of them need a GPU."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np

from ..arrays.arguments import as_integer
from ..arrays.dlpack import LEGACY_STREAM, PER_THREAD_STREAM
from ..arrays.dtypes import FLOAT32
from ..errors import InputError

FAMILIES = ("auto", "cpu", "portable")
TF32 = "tf32"
PRECISIONS = (FLOAT32, TF32)

MOST_THREADS = 4096
"""Largest number of threads that may be asked for. ONNX Runtime starts every one of them, for every graph."""


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `SAESession`, which documents them."""

    graphs: str = "auto"
    precision: str = FLOAT32
    threads: int | None = None
    arena: bool = True
    memory_limit: int | None = None
    block_tokens: int | None = None
    stream: Any = None
    cuda_graph: Sequence[int] = ()
    cache: str | os.PathLike[str] | None = None
    check_integrity: bool = True
    shared_stages: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (("graphs", self.graphs, FAMILIES), ("precision", self.precision, PRECISIONS)):
            if not isinstance(value, str) or value not in known:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}.")
        for name, most, hint in (
            ("block_tokens", None, ", or None for the default"),
            ("threads", MOST_THREADS, ", or None for one per core"),
            ("memory_limit", None, " (bytes), or None for no limit"),
        ):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_integer(name, given, 1, most, hint))
        for name in ("arena", "check_integrity", "shared_stages"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        try:
            sizes = tuple(as_integer("A batch size", tokens, 1) for tokens in self.cuda_graph)
        except (TypeError, InputError):
            raise InputError(
                f"cuda_graph is {self.cuda_graph!r}; it must be a list of batch sizes, such as [1, 8]."
            ) from None
        object.__setattr__(self, "cuda_graph", sizes)
        if not isinstance(self.cache, (str, os.PathLike, NoneType)):
            raise InputError(f"cache is {self.cache!r}; it must be the path of a folder, or None.")

    @property
    def only_for_gpus(self) -> list[str]:
        """The names of the options that were set and need a GPU."""
        given = {
            "precision": self.precision != FLOAT32,
            "stream": self.stream is not None,
            "cuda_graph": bool(self.cuda_graph),
        }
        return [name for name, is_given in given.items() if is_given]


def stream_handle(stream: Any) -> int:
    """Return the address of a CUDA stream.

    Args:
        stream: The address itself, or an object with `__cuda_stream__` (NVIDIA's cuda.core), `cuda_stream` (PyTorch)
            or `ptr` (CuPy). Address 0, the default stream of PyTorch and CuPy, becomes 1, the driver's name for the
            legacy default stream.

    Raises:
        InputError: `stream` is none of these, or it is the per-thread default stream.
    """
    protocol = getattr(stream, "__cuda_stream__", None)
    own = protocol()[1] if callable(protocol) else stream
    for address in (own, getattr(stream, "cuda_stream", None), getattr(stream, "ptr", None)):
        if isinstance(address, int) and not isinstance(address, bool) and address != PER_THREAD_STREAM:
            return address or LEGACY_STREAM
    raise InputError(
        f"stream is {stream!r}; it must be a CUDA stream of PyTorch or CuPy, or its address. It cannot be the "
        "per-thread default stream, which differs from thread to thread."
    )
