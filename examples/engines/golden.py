"""Compares what a graph computed with the golden batch, by the rule of docs/other-languages.md."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

ACTS_PRE, ACTS_POST, ERROR, RECONS, OUTPUT = (
    f"hook_sae_{name}" for name in ("acts_pre", "acts_post", "error", "recons", "output")
)
OUTLIER_RATIO = 32


class Golden:
    """The golden batch of an artifact in float32.

    Args:
        manifest: The content of sae.json.
        tensors: The tensors of golden.safetensors.
    """

    def __init__(self, manifest: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
        self.manifest, self.tensors = manifest, tensors

    def feeds(self, spec: Mapping[str, Any]) -> dict[str, Array]:
        """Return what a graph of sae.json takes, by name; `k` is large enough for every feature that is on."""
        on = (self.tensors[ACTS_POST] != 0).sum(axis=1).max()
        more = {"input": self.tensors["hook_sae_input"], "k": np.array([min(self.manifest["sae"]["d_sae"], on + 8)])}
        return {tensor["name"]: {**self.tensors, **more}[tensor["name"]] for tensor in spec["inputs"]}

    def differences(self, kind: str, outputs: Mapping[str, Array]) -> list[str]:
        """Return what is wrong with the outputs of a graph, as texts; empty if nothing is.

        Args:
            kind: Name of the portable graph that has the same contract, such as "features".
            outputs: The outputs, by name.
        """
        record = self.manifest["parity"]
        if kind == "steer":
            names = [RECONS, OUTPUT]
            found = {f"steered.{name}": (outputs[name], record["steered"][name]["budget"]) for name in names}
            return [text for name, (array, budget) in found.items() for text in self.compare(name, array, budget)]
        if kind == "features":
            outputs = {ACTS_POST: scatter(outputs, self.tensors[ACTS_POST].shape), "l0": outputs["l0"]}
        texts = []
        for name, array in outputs.items():
            if name in record["hooks"]:
                texts += self.compare(name, array, record["hooks"][name]["budget"])
        on = self.tensors[ACTS_POST] != 0
        exact = {
            "hook_sae_input": lambda x: np.array_equal(x, self.tensors["hook_sae_input"]),
            ACTS_POST: lambda acts: np.array_equal(acts != 0, on),
            OUTPUT: lambda output: np.array_equal(output, self.sum_of(outputs)),
            "l0": lambda l0: np.array_equal(l0, on.sum(axis=1)),
        }
        return texts + [
            f"{name}: not exact" for name, holds in exact.items() if name in outputs and not holds(outputs[name])
        ]

    def sum_of(self, outputs: Mapping[str, Array]) -> Array:
        """Return what the output has to be: the reconstruction, with the error if the SAE adds it."""
        return outputs[RECONS] + outputs[ERROR] if self.manifest["sae"]["use_error_term"] else outputs[RECONS]

    def compare(self, name: str, found: Array, budget: Mapping[str, float]) -> list[str]:
        """Return how a tensor exceeds its budget; empty if it does not."""
        if found.shape != self.tensors[name].shape or not np.isfinite(found).all():
            return [f"{name}: shape {found.shape}, or not finite"]
        truth, pre = (self.tensors[n].astype(float) + self.tensors[f"residual.{n}"] for n in (name, ACTS_PRE))
        scale = self.tensors[f"scale.{name}"].reshape(-1, *(1,) * (found.ndim - 1))
        if name in (ACTS_PRE, ACTS_POST):
            scale = np.maximum(scale, abs(pre) / OUTLIER_RATIO)
        difference = abs(found - truth)
        error = np.divide(difference, scale, out=np.where(difference == 0, 0, np.inf), where=scale > 0)
        error = error.reshape(len(error), -1)
        largest = {"token": np.sqrt((error**2).mean(axis=1)).max(), "element": error.max()}
        return [f"{name}: {kind} error {largest[kind]:.1e}" for kind in largest if not largest[kind] <= budget[kind]]


def scatter(outputs: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """Return the activations, `(tokens, d_sae)`, that the outputs of a graph `features` stand for."""
    acts, indices = np.zeros(shape, np.float32), outputs["indices"]
    token, place = np.nonzero(indices >= 0)
    acts[token, indices[token, place]] = outputs["values"][token, place]
    return acts
