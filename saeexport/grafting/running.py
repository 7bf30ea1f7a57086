"""Runs the graphs of a grafted host with ONNX Runtime on the CPU, and its stages with the PyTorch SAEs between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arrays.dtypes import BFLOAT16, rounded, widened
from runtime.arrays.tensor import Array
from runtime.artifact.manifest import GraphSpec
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_RECONS
from runtime.errors import GraftError
from runtime.hosts.graphs import run_with_binding
from runtime.hosts.names import STAGE
from runtime.session.interventions import Intervention

from ..original.running import all_hooks, torch_hook
from .grafts import Graft
from .sessions import start_on_cpu

Replace = Callable[[str, Array], Array]
"""A function of a hook and the tensor there, whose result the next stage reads."""


class Graph:
    """An ONNX model that runs on the CPU."""

    def __init__(self, path: Path, optimize: bool = True) -> None:
        """Load a model.

        Args:
            path: File of the model.
            optimize: Whether ONNX Runtime rewrites the graph, as it does by default.

        Raises:
            GraftError: ONNX Runtime refuses the model.
        """
        self.path = path
        try:
            self._session: Any = start_on_cpu(str(path), optimize=optimize)
        except Exception as error:  # its exceptions do not share a base class
            raise GraftError(f"ONNX Runtime cannot load {path}: {error}") from error
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]
        optional = self._session.get_overridable_initializers()
        self._optional = {value.name for value in optional}
        values = (*self._session.get_inputs(), *self._session.get_outputs(), *optional)
        self._has_bfloat16 = any(value.type == f"tensor({BFLOAT16})" for value in values)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name. Of `feeds`, those that the model takes are used."""
        given = {name: feeds[name] for name in feeds if name in self.inputs or name in self._optional}
        try:
            if self._has_bfloat16:
                return dict(zip(self.outputs, run_with_binding(self._session, given, self.outputs), strict=True))
            return dict(zip(self.outputs, self._session.run(self.outputs, given), strict=True))
        except Exception as error:
            raise GraftError(f"ONNX Runtime cannot run {self.path}: {error}") from error


def run_stages(
    folder: Path,
    graphs: Mapping[str, GraphSpec],
    hooks: "list[str]",
    feeds: Mapping[str, Array],
    replace: Replace,
    optimize: bool = True,
) -> dict[str, Array]:
    """Run the stages of a host one after another, and return every tensor by its name in the stages.

    Args:
        folder: Folder of the graphs.
        graphs: Specs of the graphs by name.
        hooks: The hooks at which the host is cut, in the order of the host.
        feeds: Inputs of the host.
        replace: Function of a hook and the tensor there, whose result the next stages read.
        optimize: Whether ONNX Runtime rewrites the graphs.
    """
    tensors: dict[str, Array] = dict(feeds)
    for i in range(len(hooks) + 1):
        if f"{STAGE}{i}" in graphs:
            tensors.update(Graph(folder / graphs[f"{STAGE}{i}"].file, optimize)(tensors))
        else:  # the SAE before is at the same value
            tensors[hooks[i]] = tensors[hooks[i - 1]]
        if i < len(hooks):
            tensors[hooks[i]] = replace(hooks[i], tensors[hooks[i]])
    return tensors


@dataclass(frozen=True)
class Reconstruction:
    """What an SAE makes of a host's tensor.

    Attributes:
        recons: The reconstruction, in the shape and dtype of the tensor, or of a transcoder's target.
        acts_post: The feature activations, with the leading dimensions of the tensor.
    """

    recons: Array
    acts_post: Array


def reconstruct(
    graft: Graft, sae: Any, x: Array, intervention: Intervention | None = None, target: "Array | None" = None
) -> Reconstruction:
    """Return what a PyTorch SAE makes of a host's tensor without the error term.

    Args:
        graft: The SAE and its place.
        sae: HookedSAE.
        x: The tensor that it reads.
        intervention: Edits of its features.
        target: For a transcoder, the tensor that it predicts; None for an SAE.
    """
    replaced = x if target is None else target
    edits = () if intervention is None else ((HOOK_ACTS_POST, torch_hook(intervention)),)
    predicted = None
    with np.errstate(over="ignore"):  # `Expected` refuses it
        rows = rounded(widened(x).reshape(-1, *graft.sae.input_shape), graft.sae.dtype)
        if target is not None and graft.sae.takes_target:
            predicted = rounded(widened(target).reshape(-1, target.shape[-1]), graft.sae.dtype)
    hooks = all_hooks(sae, rows, predicted, *edits)
    trailing = 1 if x.shape[-1] == graft.sae.d_in else 2
    recons = hooks[HOOK_RECONS].reshape(replaced.shape).astype(replaced.dtype)
    return Reconstruction(recons, hooks[HOOK_ACTS_POST].reshape(*x.shape[:-trailing], -1))
