"""The contenders that OpenVINO runs, in an environment of their own, without PyTorch.

A model is compiled for each number of rows, as OpenVINO recommends. In float32: without the hint it would multiply in
bfloat16 where the processor can. The input and the results are shared with NumPy, not copied.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import openvino

from benchmarks.cpu.contenders.cases import (
    ARTIFACT,
    load_encoder,
    plain_file,
    preactivations_of_product,
    product_file,
)
from benchmarks.cpu.contenders.names import PRODUCT, Call
from benchmarks.cpu.contenders.uses import ALL_HOOKS, FEATURES, WATCH
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_NAMES, INDICES, VALUES

OUTPUTS = {ALL_HOOKS: HOOK_NAMES, FEATURES: (INDICES, VALUES), WATCH: (HOOK_ACTS_POST,)}


class OpenVino:
    """The artifact's `model.onnx` with all hooks; for the other uses the plain ONNX export, which computes less."""

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        self.path = folder / ARTIFACT / "model.onnx" if use == ALL_HOOKS else plain_file(folder, use)
        self.outputs: Sequence[str] = OUTPUTS[use]
        self.threads = threads
        self.core = openvino.Core()

    def bind(self, x: Array) -> Call:
        """Return the call for an input after compiling the model for it."""
        request = self._compile(x).create_infer_request()
        return lambda: request.infer([x], share_inputs=True, share_outputs=True)

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the outputs for an input."""
        compiled = self._compile(x)
        found = compiled.create_infer_request().infer([x])
        return {name: cast(Array, np.array(found[compiled.output(name)])) for name in self.outputs}

    def _compile(self, x: Array) -> Any:
        model = self.core.read_model(self.path)
        model.reshape(x.shape)
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.threads,
                   "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
        return self.core.compile_model(model, "CPU", options)


class Product(OpenVino):
    """The encoder's product alone."""

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        super().__init__(folder, use, threads)
        self.path, self.outputs = product_file(folder, use), [PRODUCT]
        self.encoder = load_encoder(folder, use)

    def compute(self, x: Array) -> dict[str, Array]:
        """Return acts_pre: the product with the biases added."""
        return {HOOK_ACTS_PRE: preactivations_of_product(super().compute(x)[PRODUCT], self.encoder)}
