"""The contenders that ONNX Runtime runs. None of them imports PyTorch."""

import functools
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime

from benchmarks.cpu.contenders.cases import (
    ARTIFACT,
    WATCHED,
    load_encoder,
    plain_file,
    preactivations_of_product,
    product_file,
)
from benchmarks.cpu.contenders.names import PRODUCT, Call
from benchmarks.cpu.contenders.uses import ALL_HOOKS, FEATURES, FEW
from benchmarks.shared.machine import available_cores
from runtime import SAESession
from runtime.arrays.tensor import Array
from runtime.artifact.contracts import MODEL
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_INPUT, HOOK_NAMES, INDICES, INPUT, VALUES


class PlainExport:
    """The module as `torch.onnx.export` writes it for a use, run with ONNX Runtime's default options."""

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        self.session = _open_session(plain_file(folder, use), threads)
        self.outputs = [output.name for output in self.session.get_outputs()]

    def bind(self, x: Array) -> Call:
        """Return the call for an input."""
        return functools.partial(self.session.run, self.outputs, {INPUT: x})

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the outputs for an input."""
        return dict(zip(self.outputs, self.session.run(self.outputs, {INPUT: x}), strict=True))


class ThisProject:
    """`SAESession` as its user calls it; the session chooses the graph."""

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        self.use = use
        self.session = SAESession(folder / ARTIFACT, "cpu", threads=_unless_default(threads))
        self.watch = None if use in (ALL_HOOKS, FEATURES) else self.session.watch(np.load(folder / WATCHED))

    def bind(self, x: Array) -> Call:
        """Return the call for an input."""
        if self.watch is not None:
            return functools.partial(self.watch, x)
        if self.use == FEATURES:
            return functools.partial(self.session.top_features, x, FEW)
        return functools.partial(self.session.compute, x, HOOK_NAMES)

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the outputs for an input."""
        found: Any = self.bind(x)()
        if self.watch is not None:
            return {HOOK_ACTS_POST: found}
        if self.use == FEATURES:
            return {INDICES: found.indices, VALUES: found.values}
        return cast(dict[str, Array], found)


class ModelGraph(ThisProject):
    """The artifact's portable graph `model`, which is dense at every sparsity.

    Its copy of the input is not fetched, because `compute` returns the input itself.
    """

    def bind(self, x: Array) -> Call:
        """Return the call for an input."""
        names = [hook for hook in HOOK_NAMES if hook != HOOK_INPUT]
        return functools.partial(self.session.run_graph, MODEL, {INPUT: x}, names)

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the six hooks."""
        return cast(dict[str, Array], self.session.run_graph(MODEL, {INPUT: x}, list(HOOK_NAMES)))


class Product:
    """The encoder's product alone, without the bias."""

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        self.session = _open_session(product_file(folder, use), threads)
        self.encoder = load_encoder(folder, use)

    def bind(self, x: Array) -> Call:
        """Return the call for an input."""
        return functools.partial(self.session.run, [PRODUCT], {INPUT: x})

    def compute(self, x: Array) -> dict[str, Array]:
        """Return acts_pre: the product with the biases added."""
        (product,) = self.session.run([PRODUCT], {INPUT: x})
        return {HOOK_ACTS_PRE: preactivations_of_product(product, self.encoder)}


def _unless_default(threads: int) -> int | None:
    """Return a number of threads that a user has to ask for, or None for one per core.

    Only by default does ONNX Runtime bind each thread to a core, and a session choose one thread for few tokens.
    """
    return None if threads == available_cores() else threads


def _open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Return a session on the CPU with the default options, except for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _unless_default(threads) or 0
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
