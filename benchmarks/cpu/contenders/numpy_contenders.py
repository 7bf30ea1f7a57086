"""The contenders that run in NumPy alone. OpenBLAS, which is a part of NumPy's wheels, computes the products."""

from pathlib import Path

import numpy as np

from benchmarks.cpu.contenders.cases import ARTIFACT, load_encoder, load_weights, preactivations_of_product
from benchmarks.cpu.contenders.names import Call
from benchmarks.cpu.contenders.uses import ALL_HOOKS, FEATURES, FEW
from runtime import read_artifact
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_NAMES, INDICES, VALUES


class Numpy:
    """The equations in NumPy, with each product computed once. OMP_NUM_THREADS sets the number of threads."""

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        self.use = use
        self.encoder = load_encoder(folder, use)
        self.decoder = load_weights(folder)["W_dec"]

    def bind(self, x: Array) -> Call:
        """Return the call for an input."""
        return lambda: self.compute(x)

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the outputs for an input."""
        if self.use == ALL_HOOKS:
            return dict(zip(HOOK_NAMES, self._six_hooks(x), strict=True))
        acts = self._preactivations(x)
        np.maximum(acts, 0, out=acts)
        if self.use == FEATURES:
            return _strongest(acts)
        return {HOOK_ACTS_POST: acts}

    def _preactivations(self, x: Array) -> Array:
        acts_pre = (x - self.encoder.b_dec) @ self.encoder.W_enc
        acts_pre += self.encoder.b_enc
        return acts_pre

    def _six_hooks(self, x: Array) -> tuple[Array, ...]:
        acts_pre = self._preactivations(x)
        acts_post = np.maximum(acts_pre, 0)
        recons = acts_post @ self.decoder
        recons += self.encoder.b_dec
        error = x - recons
        return x, acts_pre, acts_post, recons, error, recons + error


class Product:
    """The encoder's product alone."""

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        self.encoder = load_encoder(folder, use)

    def bind(self, x: Array) -> Call:
        """Return the call for an input."""
        return lambda: x @ self.encoder.W_enc

    def compute(self, x: Array) -> dict[str, Array]:
        """Return acts_pre: the product with the biases added."""
        return {HOOK_ACTS_PRE: preactivations_of_product(x @ self.encoder.W_enc, self.encoder)}


class Copy:
    """A copy of as many bytes as the hooks after the product have.

    One thread copies them between arrays that are already in memory, so that no page has to be allocated.
    """

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        self.d_sae = read_artifact(folder / ARTIFACT).manifest.sae.d_sae

    def bind(self, x: Array) -> Call:
        """Return the copies for an input."""
        shapes = [(len(x), self.d_sae), *[x.shape] * 3]  # acts_post; recons, error and output
        pairs = [(np.zeros(shape, np.float32), np.ones(shape, np.float32)) for shape in shapes]

        def copy() -> None:
            for target, source in pairs:
                np.copyto(target, source)

        return copy

    def compute(self, x: Array) -> dict[str, Array]:
        """Return nothing: there is nothing to compare."""
        return {}


def _strongest(acts: Array) -> dict[str, Array]:
    """Return the `FEW` largest activations of each token, the largest first, and their indices."""
    indices = np.argpartition(acts, -FEW, axis=-1)[:, -FEW:]
    values = np.take_along_axis(acts, indices, -1)
    order = np.argsort(-values, axis=-1)
    return {INDICES: np.take_along_axis(indices, order, -1), VALUES: np.take_along_axis(values, order, -1)}
