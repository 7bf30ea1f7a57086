"""The contenders that ONNX Runtime runs. None of them imports PyTorch."""

import functools
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

from benchmarks.cpu.contenders.cases import ARTIFACT, PLAIN_FILE, PRODUCT_FILE
from benchmarks.cpu.contenders.names import COPY, MODEL_GRAPH, PLAIN_ONNX, PRODUCT, THIS, Call
from runtime import SAESession, read_artifact
from runtime.arrays.tensor import Array
from runtime.artifact.contracts import MODEL
from runtime.artifact.names import HOOK_ACTS_PRE, HOOK_INPUT, HOOK_NAMES, INPUT


class PlainExport:
    """The module as `torch.onnx.export` writes it, with six outputs, run with ONNX Runtime's default options."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.session = _open_session(folder / PLAIN_FILE, threads)

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the call for an input."""
        return {PLAIN_ONNX: functools.partial(self.session.run, list(HOOK_NAMES), {INPUT: x})}

    def compute_hooks(self, x: Array) -> dict[str, Array]:
        """Return the six hooks."""
        return dict(zip(HOOK_NAMES, self.session.run(list(HOOK_NAMES), {INPUT: x}), strict=True))


class ThisProject:
    """`SAESession` as its user calls it; the session chooses the graph."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.session = SAESession(folder / ARTIFACT, "cpu", threads=threads)

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the call for an input."""
        return {THIS: functools.partial(self.session.compute, x, HOOK_NAMES)}

    def compute_hooks(self, x: Array) -> dict[str, Array]:
        """Return the six hooks."""
        return cast(dict[str, Array], self.session.compute(x, HOOK_NAMES))


class ModelGraph(ThisProject):
    """The artifact's portable graph `model`, which is dense at every sparsity.

    Its copy of the input is not fetched, because `compute` returns the input itself.
    """

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the call for an input."""
        names = [hook for hook in HOOK_NAMES if hook != HOOK_INPUT]
        return {MODEL_GRAPH: functools.partial(self.session.run_graph, MODEL, {INPUT: x}, names)}

    def compute_hooks(self, x: Array) -> dict[str, Array]:
        """Return the six hooks."""
        return cast(dict[str, Array], self.session.run_graph(MODEL, {INPUT: x}, list(HOOK_NAMES)))


class Floor:
    """The least that any way must do: the encoder's product, and writing as many bytes as the other hooks have.

    ONNX Runtime computes the product with all threads and without the bias. One thread copies the bytes between arrays
    that are already in memory, so that no page has to be allocated.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.session = _open_session(folder / PRODUCT_FILE, threads)
        self.artifact = read_artifact(folder / ARTIFACT)

    def bind(self, x: Array) -> dict[str, Call]:
        """Return two calls for an input: the product and the copies."""
        shapes = [(len(x), self.artifact.manifest.sae.d_sae), *[x.shape] * 3]  # acts_post; recons, error and output
        pairs = [(np.zeros(shape, np.float32), np.ones(shape, np.float32)) for shape in shapes]

        def copy() -> None:
            for target, source in pairs:
                np.copyto(target, source)

        return {PRODUCT: functools.partial(self.session.run, ["product"], {INPUT: x}), COPY: copy}

    def compute_hooks(self, x: Array) -> dict[str, Array]:
        """Return acts_pre: the product with the biases added."""
        (product,) = self.session.run(["product"], {INPUT: x})
        weights = load_file(self.artifact.file(self.artifact.manifest.weights))
        shift = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
        return {HOOK_ACTS_PRE: product + shift}


def _open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Return a session on the CPU with the default options, except for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
