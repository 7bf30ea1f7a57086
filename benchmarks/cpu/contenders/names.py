"""The contenders by name. Each computes what an SAE is used for in another way.

The class of a contender is imported only in the process that runs it, so that no process pays for the libraries of
another. Libraries whose dependencies exclude those of this project have an environment of their own.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from benchmarks.cpu.contenders.uses import ALL_HOOKS, FEATURES, USES, WATCH
from benchmarks.shared.machine import ROOT
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_PRE, HOOK_ERROR, HOOK_NAMES, HOOK_OUTPUT

ORIGINAL, ORIGINAL_WITHOUT_ERROR = "original", "original_without_error"
DEDUPLICATED, COMPILED, AUTOTUNED = "deduplicated", "compiled", "autotuned"
PLAIN_ONNX, OPENVINO, SAELENS, NUMPY = "plain_onnx", "openvino", "saelens", "numpy"
THIS, MODEL_GRAPH = "this", "model_graph"
ONNXRUNTIME_PRODUCT, OPENVINO_PRODUCT, NUMPY_PRODUCT = "onnxruntime_product", "openvino_product", "numpy_product"
COPY = "copy"
PRODUCT, FLOOR = "product", "floor"
"""The fastest of the products, and with the copy the floor. They are computed from the times of the contenders."""

Call = Callable[[], object]


class UnavailableError(Exception):
    """A contender cannot run on this machine. It is left out of the results, which give the reason."""


class Runner(Protocol):
    """What the class of a contender does. It is constructed with a folder (see `cases.py`), a use, and threads."""

    def bind(self, x: Array) -> Call:
        """Return the call to time for an input; it does nothing but compute."""

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the outputs for an input, computed as in the call, to compare with the original's."""


@dataclass(frozen=True)
class Contender:
    """A way to compute what an SAE is used for.

    Attributes:
        title: Name in tables and plots.
        module: Module of the class, in `benchmarks.cpu.contenders`.
        kind: Name of the class.
        outputs: Outputs that are compared with the original's; None for those of the use.
        environment: Folder of the Python environment that it runs in; "" for that of the benchmark.
        library: Distribution in that environment whose version is told with the results.
    """

    title: str
    module: str
    kind: str
    outputs: tuple[str, ...] | None = None
    environment: str = ""
    library: str = ""

    def compared(self, use: str) -> tuple[str, ...]:
        """Return the outputs that are compared with the original's."""
        return USES[use].outputs if self.outputs is None else self.outputs

    @property
    def python(self) -> str:
        """The interpreter that runs it.

        Raises:
            UnavailableError: Its environment is not installed.
        """
        if not self.environment:
            return sys.executable
        path = ROOT / self.environment / "bin" / "python"
        if not path.exists():
            raise UnavailableError(f"{self.environment} is not installed; `make {self.environment}/ready` installs it")
        return str(path)

    @property
    def version(self) -> str:
        """The version of its library in its environment, "" if it is not installed."""
        paths = [str(path) for path in (ROOT / self.environment).glob("lib/python*/site-packages")]
        found = importlib.metadata.distributions(name=self.library, path=paths)
        return next((distribution.version for distribution in found), "")

    def make(self, folder: Path, use: str, threads: int) -> Runner:
        """Return a runner that is ready for inputs.

        Raises:
            UnavailableError: A library is not installed.
        """
        try:
            module = importlib.import_module(f"benchmarks.cpu.contenders.{self.module}")
        except ModuleNotFoundError as error:
            where = self.environment or sys.prefix
            raise UnavailableError(f"{error.name} is not installed in {where}; `make bench` installs it") from error
        return cast(Runner, getattr(module, self.kind)(folder, use, threads))


_TORCH, _ONNX, _OPENVINO = "torch_contenders", "onnx_contenders", "openvino_contenders"
_OPENVINO_ENVIRONMENT, _PEERS = ".venv-openvino", ".venv-peers"
_PRODUCT = (HOOK_ACTS_PRE,)
CONTENDERS = {
    ORIGINAL: Contender("PyTorch original", _TORCH, "Original"),
    ORIGINAL_WITHOUT_ERROR: Contender(
        "PyTorch original, error term off", _TORCH, "OriginalWithoutError",
        tuple(hook for hook in HOOK_NAMES if hook not in (HOOK_ERROR, HOOK_OUTPUT)),
    ),
    DEDUPLICATED: Contender("PyTorch, its equations alone", _TORCH, "Equations"),
    COMPILED: Contender("torch.compile", _TORCH, "Compiled"),
    AUTOTUNED: Contender("torch.compile, max-autotune", _TORCH, "Autotuned"),
    PLAIN_ONNX: Contender("plain ONNX export", _ONNX, "PlainExport"),
    OPENVINO: Contender("OpenVINO", _OPENVINO, "OpenVino", environment=_OPENVINO_ENVIRONMENT, library="openvino"),
    SAELENS: Contender("SAELens", "saelens_contender", "SAELens", environment=_PEERS, library="sae-lens"),
    NUMPY: Contender("NumPy", "numpy_contenders", "Numpy"),
    THIS: Contender("this project", _ONNX, "ThisProject"),
    MODEL_GRAPH: Contender("`model`, dense", _ONNX, "ModelGraph"),
    ONNXRUNTIME_PRODUCT: Contender("product in ONNX Runtime", _ONNX, "Product", _PRODUCT),
    OPENVINO_PRODUCT: Contender(
        "product in OpenVINO", _OPENVINO, "Product", _PRODUCT, _OPENVINO_ENVIRONMENT
    ),
    NUMPY_PRODUCT: Contender("product in NumPy", "numpy_contenders", "Product", _PRODUCT),
    COPY: Contender("copy of what else is written", "numpy_contenders", "Copy", ()),
}  # fmt: skip
PRODUCTS = (ONNXRUNTIME_PRODUCT, OPENVINO_PRODUCT, NUMPY_PRODUCT)
ALTERNATIVES = (DEDUPLICATED, COMPILED, AUTOTUNED, PLAIN_ONNX, OPENVINO, SAELENS, NUMPY)
"""Contenders that a user can run instead of this project, apart from the original."""
GRID = {
    ALL_HOOKS: (ORIGINAL, ORIGINAL_WITHOUT_ERROR, *ALTERNATIVES, THIS, *PRODUCTS, COPY),
    FEATURES: (ORIGINAL, *ALTERNATIVES, THIS, *PRODUCTS),
    WATCH: (ORIGINAL, *ALTERNATIVES, THIS, *PRODUCTS),
}
"""The contenders that are compared in each use. The first one computes what the others are compared with."""
