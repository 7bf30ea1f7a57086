"""The contenders that ONNX Runtime runs, none of which imports PyTorch."""

import functools
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

from benchmarks.cpu.cases import ARTIFACT, PLAIN_FILE, PRODUCT_FILE
from benchmarks.cpu.contenders import COPY, MODEL_GRAPH, PLAIN_ONNX, PRODUCT, THIS, Call
from runtime import SAESession, read_artifact
from runtime.arrays.tensor import Array
from runtime.artifact.contracts import MODEL
from runtime.artifact.names import HOOK_ACTS_PRE, HOOK_INPUT, HOOK_NAMES, INPUT


class PlainExport:
    """What `torch.onnx.export` makes of the module, six outputs, run with ONNX Runtime's default options."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.session = _session(folder / PLAIN_FILE, threads)

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the call for an input."""
        return {PLAIN_ONNX: functools.partial(self.session.run, list(HOOK_NAMES), {INPUT: x})}

    def outputs(self, x: Array) -> dict[str, Array]:
        """Return the six hooks."""
        return dict(zip(HOOK_NAMES, self.session.run(list(HOOK_NAMES), {INPUT: x}), strict=True))


class ThisProject:
    """The runtime of this project as its user calls it; which graph runs is its own choice."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.session = SAESession(folder / ARTIFACT, "cpu", threads=threads)

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the call for an input."""
        return {THIS: functools.partial(self.session.compute, x, HOOK_NAMES)}

    def outputs(self, x: Array) -> dict[str, Array]:
        """Return the six hooks."""
        return self.session.compute(x, HOOK_NAMES)


class ModelGraph(ThisProject):
    """The artifact's portable graph `model`, dense at every sparsity, run as it is.

    Its copy of the input is not fetched, since `compute` gives the input back without one.
    """

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the call for an input."""
        names = [hook for hook in HOOK_NAMES if hook != HOOK_INPUT]
        return {MODEL_GRAPH: functools.partial(self.session.run_graph, MODEL, {INPUT: x}, names)}

    def outputs(self, x: Array) -> dict[str, Array]:
        """Return the six hooks."""
        return self.session.run_graph(MODEL, {INPUT: x}, list(HOOK_NAMES))


class Floor:
    """What cannot be left out: the encoder's product, and as many bytes written as the other hooks have.

    The product runs in ONNX Runtime, with all threads and without the bias. The bytes are copied by one thread from
    arrays of the same size into others that are already there, so that no page of memory has to be asked for.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.session = _session(folder / PRODUCT_FILE, threads)
        self.artifact = read_artifact(folder / ARTIFACT)

    def bind(self, x: Array) -> dict[str, Call]:
        """Return the product and the copies for an input, two calls."""
        shapes = [(len(x), self.artifact.manifest.sae.d_sae), *[x.shape] * 3]  # acts_post; recons, error and output
        pairs = [(np.zeros(shape, np.float32), np.ones(shape, np.float32)) for shape in shapes]

        def copy() -> None:
            for target, source in pairs:
                np.copyto(target, source)

        return {PRODUCT: functools.partial(self.session.run, ["product"], {INPUT: x}), COPY: copy}

    def outputs(self, x: Array) -> dict[str, Array]:
        """Return acts_pre as the product makes it, once the biases are added."""
        (product,) = self.session.run(["product"], {INPUT: x})
        weights = load_file(self.artifact.file(self.artifact.manifest.weights))
        shift = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
        return {HOOK_ACTS_PRE: product + shift}


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Return a session on the CPU whose options are the default ones, but for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
