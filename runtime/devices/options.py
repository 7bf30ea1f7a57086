"""The options of a session: what they may be, and what goes with what."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..arrays.dlpack import LEGACY_STREAM, PER_THREAD_STREAM
from ..arrays.dtypes import FLOAT32
from ..errors import InputError

FAMILIES = ("auto", "cpu", "portable")
TF32 = "tf32"
PRECISIONS = (FLOAT32, TF32)


@dataclass(frozen=True)
class Options:
    """See `SAESession`, whose arguments they are."""

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

    def __post_init__(self) -> None:
        for name, value, known in (("graphs", self.graphs, FAMILIES), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}.")
        if self.block_tokens is not None and self.block_tokens < 1:
            raise InputError(f"block_tokens is {self.block_tokens}; it must be at least 1.")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads is {self.threads}; it must be at least 1, or None for one per core.")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise InputError(f"memory_limit is {self.memory_limit}; it is in bytes, and None for no limit.")
        if any(isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1 for tokens in self.cuda_graph):
            raise InputError(
                f"cuda_graph is {self.cuda_graph!r}; it must be a list of numbers of tokens, such as [1, 8]."
            )

    @property
    def only_for_gpus(self) -> list[str]:
        """The options that were given and mean nothing without a GPU."""
        given = {
            "precision": self.precision != FLOAT32,
            "stream": self.stream is not None,
            "cuda_graph": bool(self.cuda_graph),
        }
        return [name for name, is_given in given.items() if is_given]


def stream_handle(stream: Any) -> int:
    """Return the address of a CUDA stream of any library.

    That is a number, or what has `__cuda_stream__` (the protocol of NVIDIA's cuda.core), `cuda_stream` (torch) or `ptr`
    (CuPy). 0, the default stream of both, is the legacy default stream, which the driver also calls 1.

    Raises:
        InputError: it is none of these.
    """
    protocol = getattr(stream, "__cuda_stream__", None)
    own = protocol()[1] if callable(protocol) else stream
    for address in (own, getattr(stream, "cuda_stream", None), getattr(stream, "ptr", None)):
        if isinstance(address, int) and not isinstance(address, bool) and address != PER_THREAD_STREAM:
            return address or LEGACY_STREAM
    raise InputError(f"stream is {stream!r}; it must be a CUDA stream of torch or CuPy, or its address; and not the "
                     "one of each thread, which is another in every thread.")  # fmt: skip
