"""The contenders by name. Each computes an SAE with every hook in another way.

The class of a contender is imported only in the process that runs it, so that no process pays for the libraries of
another.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_PRE, HOOK_ERROR, HOOK_NAMES, HOOK_OUTPUT

ORIGINAL, ORIGINAL_WITHOUT_ERROR = "original", "original_without_error"
DEDUPLICATED, COMPILED, PLAIN_ONNX = "deduplicated", "compiled", "plain_onnx"
THIS, MODEL_GRAPH = "this", "model_graph"
FLOOR, PRODUCT, COPY = "floor", "product", "copy"

Call = Callable[[], object]


class UnavailableError(Exception):
    """A contender cannot run on this machine. It is left out of the results, which give the reason."""


class Runner(Protocol):
    """What the class of a contender does. It is constructed with a folder (see `cases.py`) and a number of threads."""

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the calls to time for an input, by name; they do nothing but compute."""

    def compute_hooks(self, x: Array) -> dict[str, Array]:
        """Return hooks of an input, computed as in the calls, to compare with the original's."""


@dataclass(frozen=True)
class Contender:
    """A way to compute the SAE.

    Attributes:
        title: Name in tables and plots.
        module: Module of the class, in `benchmarks.cpu.contenders`.
        kind: Name of the class.
        hooks: Hooks that are compared with the original's.
        parts: Names of the calls that are timed.
    """

    title: str
    module: str
    kind: str
    parts: tuple[str, ...]
    hooks: tuple[str, ...] = HOOK_NAMES

    def make(self, folder: Path, threads: int) -> Runner:
        """Return a runner that is ready for inputs."""
        module = importlib.import_module(f"benchmarks.cpu.contenders.{self.module}")
        return cast(Runner, getattr(module, self.kind)(folder, threads))


_TORCH, _ONNX = "torch_contenders", "onnx_contenders"
CONTENDERS = {
    ORIGINAL: Contender("PyTorch original", _TORCH, "Original", (ORIGINAL,)),
    ORIGINAL_WITHOUT_ERROR: Contender(
        "PyTorch original, error term off", _TORCH, "OriginalWithoutError", (ORIGINAL_WITHOUT_ERROR,),
        tuple(hook for hook in HOOK_NAMES if hook not in (HOOK_ERROR, HOOK_OUTPUT)),
    ),
    DEDUPLICATED: Contender("PyTorch, deduplicated", _TORCH, "Deduplicated", (DEDUPLICATED,)),
    COMPILED: Contender("torch.compile", _TORCH, "Compiled", (COMPILED,)),
    PLAIN_ONNX: Contender("plain ONNX export", _ONNX, "PlainExport", (PLAIN_ONNX,)),
    THIS: Contender("this project", _ONNX, "ThisProject", (THIS,)),
    FLOOR: Contender("floor", _ONNX, "Floor", (PRODUCT, COPY), (HOOK_ACTS_PRE,)),
    MODEL_GRAPH: Contender("`model`, dense", _ONNX, "ModelGraph", (MODEL_GRAPH,)),
}  # fmt: skip
GRID = (ORIGINAL, ORIGINAL_WITHOUT_ERROR, DEDUPLICATED, COMPILED, PLAIN_ONNX, THIS, FLOOR)
ALTERNATIVES = (DEDUPLICATED, COMPILED, PLAIN_ONNX)
"""Contenders that a user can run instead of this project and that do not make the original's second pass."""
