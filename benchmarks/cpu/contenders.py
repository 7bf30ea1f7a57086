"""Who is measured: the ways to compute an SAE with every hook, by name.

A contender is a class in a module that is imported only in the process that runs it, so that no process pays for the
libraries of another's.
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
    """A contender that this machine cannot run, with the reason; it is left out of the results."""


class Way(Protocol):
    """What a contender's class does; it is made of a case's folder (see `cases.py`) and a number of threads."""

    def bind(self, x: Array) -> dict[str, Call]:
        """Return what is timed for an input, by name; nothing that is not computation is left to do in the calls."""

    def outputs(self, x: Array) -> dict[str, Array]:
        """Return hooks of an input, computed as in the calls, to be compared with the original's."""


@dataclass(frozen=True)
class Contender:
    """One of the ways.

    Attributes:
        title: in tables and plots.
        where: module and class.
        hooks: those of which its `outputs` are compared.
        parts: the names of its calls that are timed.
    """

    title: str
    where: tuple[str, str]
    hooks: tuple[str, ...]
    parts: tuple[str, ...]

    def make(self, folder: Path, threads: int) -> Way:
        """Return the contender, ready for inputs."""
        module, kind = self.where
        return cast(Way, getattr(importlib.import_module(f"benchmarks.cpu.{module}"), kind)(folder, threads))


def _contender(name: str, title: str, module: str, kind: str, hooks: tuple[str, ...] = HOOK_NAMES) -> Contender:
    return Contender(title, (module, kind), hooks, (name,))


CONTENDERS = {
    ORIGINAL: _contender(ORIGINAL, "PyTorch original", "torch_contenders", "Original"),
    ORIGINAL_WITHOUT_ERROR: _contender(
        ORIGINAL_WITHOUT_ERROR,
        "PyTorch original, error term off",
        "torch_contenders",
        "OriginalWithoutError",
        tuple(hook for hook in HOOK_NAMES if hook not in (HOOK_ERROR, HOOK_OUTPUT)),
    ),
    DEDUPLICATED: _contender(DEDUPLICATED, "PyTorch, deduplicated", "torch_contenders", "Deduplicated"),
    COMPILED: _contender(COMPILED, "torch.compile", "torch_contenders", "Compiled"),
    PLAIN_ONNX: _contender(PLAIN_ONNX, "plain ONNX export", "onnx_contenders", "PlainExport"),
    THIS: _contender(THIS, "this project", "onnx_contenders", "ThisProject"),
    FLOOR: Contender("floor", ("onnx_contenders", "Floor"), (HOOK_ACTS_PRE,), (PRODUCT, COPY)),
    MODEL_GRAPH: _contender(MODEL_GRAPH, "`model`, dense", "onnx_contenders", "ModelGraph"),
}
GRID = (ORIGINAL, ORIGINAL_WITHOUT_ERROR, DEDUPLICATED, COMPILED, PLAIN_ONNX, THIS, FLOOR)
ALTERNATIVES = (DEDUPLICATED, COMPILED, PLAIN_ONNX)
"""What somebody could do instead of using this project, and not pay for the original's second pass."""
