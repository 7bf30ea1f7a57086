"""Traces a PyTorch HookedSAE to an ONNX graph with its hook tensors as outputs."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from runtime.artifact.manifest import SAEConfig
from runtime.artifact.names import HOOK_ERROR, HOOK_INPUT, HOOK_NAMES, HOOK_RECONS, INPUT, TARGET, TOKENS
from runtime.errors import ExportError

from ..original.running import evaluating
from .portable import IR_VERSION, OPSET

OF_THE_EXPORTER = (
    (".*LeafSpec.*", FutureWarning),
    (".*axis name: tokens will not be used", UserWarning),
)
"""Warnings of torch.onnx that do not concern the user: of a deprecation, and of the inputs' common tokens axis."""


class _SixHooks(nn.Module):
    """The SAE as a module that returns the hook tensors in firing order."""

    def __init__(self, sae: Any, hooks: tuple[str, ...]) -> None:
        super().__init__()
        self.sae = sae
        self.hooks = hooks

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        seen: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: Any) -> None:
            seen[hook.name] = tensor

        self.sae.run_with_hooks(*inputs, fwd_hooks=[(name, keep) for name in HOOK_NAMES])
        if HOOK_ERROR not in seen and HOOK_ERROR in self.hooks:  # the hook did not fire
            seen[HOOK_ERROR] = seen[HOOK_INPUT] - seen[HOOK_RECONS]
        return tuple(seen[name] for name in self.hooks)


def trace(sae: Any, config: SAEConfig) -> ir.Model:
    """Return the graph of an SAE, with its parameters under their names in the state dict.

    Args:
        sae: HookedRootModule with the six hooks and without hook functions.
        config: Config of the artifact, which determines the inputs, their shapes and the hooks.

    Raises:
        ExportError: PyTorch cannot trace the SAE.
    """
    weight = next(sae.parameters())
    shapes = [config.input_shape, *([config.output_shape] if config.takes_target else [])]
    examples = tuple(torch.zeros(3, *shape, dtype=weight.dtype, device=weight.device) for shape in shapes)
    tokens = torch.export.Dim(TOKENS)
    traced = _SixHooks(sae, config.hooks)
    with evaluating(traced), quiet_exporter(*OF_THE_EXPORTER):
        try:
            program = torch.onnx.export(
                traced,
                examples,
                dynamic_shapes=(tuple({0: tokens} for _ in examples),),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error  # the message of the exporter is a page of advice with colours
            raise ExportError(
                f"PyTorch cannot trace this {type(sae).__name__}: {type(cause).__name__}: {cause}"
            ) from error
    assert program is not None
    model = program.model
    model.ir_version = IR_VERSION
    # Common-subexpression elimination merges the second pass of the error term. Outputs are named afterwards, because a
    # value that is returned twice becomes two outputs only then.
    optimize_ir(model, should_fold=_without_parameters)
    for value, name in zip(model.graph.inputs, (INPUT, TARGET), strict=False):
        value.name = name
    for value, name in zip(model.graph.outputs, config.hooks, strict=True):
        value.name = name
    values = ir.convenience.create_value_mapping(model.graph)
    for name in list(model.graph.initializers):
        if name.startswith("sae."):
            plain = name.removeprefix("sae.")
            if plain in values:  # PyTorch has given this name to the result of an operation
                values[plain].name = f"{name}.result"
            model.graph.initializers[name].name = plain
    return model


def _without_parameters(node: ir.Node) -> bool | None:
    """Prevent constant folding of parameters: the result would be stored in the graph, not in the weights file."""
    return False if any(value is not None and value.is_initializer() for value in node.inputs) else None


@contextlib.contextmanager
def quiet_exporter(*messages: tuple[str, type[Warning]]) -> Iterator[None]:
    """Silence the log of torch.onnx, which reports operators of libraries that are not installed, and warnings.

    Args:
        messages: Patterns of the warnings' messages, with their categories; without any, all warnings are silenced.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message, category in messages or (("", Warning),):
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        logger.setLevel(level)
