"""Checks the forward pass of an SAE on a few tokens, before anything is traced.

An artifact reproduces hook functions only if the forward pass does with them what that of `HookedSAE` does.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runtime.arrays.tensor import Array
from runtime.artifact.manifest import CUSTOM, SAEConfig
from runtime.artifact.names import (
    FEATURE_HOOKS,
    HOOK_ACTS_POST,
    HOOK_ACTS_PRE,
    HOOK_ERROR,
    HOOK_INPUT,
    HOOK_NAMES,
    HOOK_OUTPUT,
    HOOK_RECONS,
)
from runtime.errors import ExportError

from .running import computing, dtype_of, to_inputs

TOKENS = 3

NOTICES = {
    HOOK_ACTS_PRE: HOOK_ACTS_POST,
    HOOK_ACTS_POST: HOOK_RECONS,
    HOOK_RECONS: HOOK_OUTPUT,
    HOOK_ERROR: HOOK_OUTPUT,
}
"""For each hook at which a hook function may replace the tensor, the hook whose tensor must then change."""

Edit = Callable[[Tensor], Tensor]


def check_forward(sae: Any, config: SAEConfig) -> None:
    """Refuse an SAE whose forward pass fails, or whose hooks are not those that an artifact reproduces.

    Raises:
        ExportError: The message says what the forward pass does, and what it must do.
    """
    kind = type(sae).__name__
    inputs = _draw(sae, [config.input_shape, *([config.output_shape] if config.takes_target else [])])
    given = [tensor.clone() for tensor in inputs]
    output, fired = _run(sae, inputs)
    if any(not torch.equal(*pair) for pair in zip(inputs, given, strict=True)):
        raise ExportError(f"{kind} changes its input in place; it must compute with a copy of it.")
    names, optional = [name for name, _ in fired], set() if config.use_error_term else {HOOK_ERROR}
    if names not in ([*HOOK_NAMES], [name for name in HOOK_NAMES if name not in optional]):
        raise ExportError(
            f"The hooks of {kind} fire in the order {', '.join(names) or 'of none'}; each must fire once, in the order "
            f"{', '.join(config.fired_hooks)}."
        )
    hooks = dict(fired)
    for name, tensor in hooks.items():
        _check_tensor(kind, name, tensor, inputs[0].dtype, _shape(name, config))
    if not torch.equal(hooks[HOOK_INPUT], inputs[0]):
        raise ExportError(f"{HOOK_INPUT} of {kind} is not the input that it is called with; it must be.")
    if not isinstance(output, Tensor) or not _near(output, hooks[HOOK_OUTPUT]):
        what = f"another tensor than {HOOK_OUTPUT}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ExportError(f"{kind} returns {what}; it must return the tensor of {HOOK_OUTPUT}.")
    _check_cached(sae, inputs, hooks)


def check_edits(sae: Any, config: SAEConfig, activations: Array, target: Array | None) -> None:
    """Refuse an SAE of a custom class that ignores what a hook function returns, or whose error depends on it.

    Args:
        sae: An SAE that `check_forward` accepts.
        config: Its config.
        activations: Tokens on which features are on, because one that is off may stay off at every `acts_pre`, as
            behind a closed gate.
        target: Activations that a transcoder with the error term predicts.

    Raises:
        ExportError: The message names the hooks.
    """
    if not config.architecture.startswith(CUSTOM):
        return
    every = to_inputs(sae, activations, target)
    for inputs in ([tensor[:: max(1, len(tensor) // TOKENS)] for tensor in every], every):
        hooks = dict(_run(sae, inputs)[1])
        if hooks[HOOK_ACTS_POST].any():
            for edited in (hook for hook in NOTICES if hook in hooks):
                _check_edit(sae, inputs, hooks, edited)
            break


def _draw(sae: Any, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Return random inputs of an SAE, without a change of PyTorch's own generator."""
    weight, generator = next(sae.parameters()), torch.Generator().manual_seed(0)
    draws = (torch.randn(TOKENS, *shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes)
    return [draw.to(weight.device, weight.dtype) for draw in draws]


def _run(sae: Any, inputs: list[Tensor], edits: dict[str, Edit] | None = None) -> tuple[Any, list[tuple[str, Any]]]:
    """Return what the forward pass returns, and the hooks in the order in which they fired, with their tensors.

    Raises:
        ExportError: The forward pass raised an error.
    """
    fired: list[tuple[str, Any]] = []

    def keep(tensor: Tensor, hook: Any) -> Tensor:
        tensor = (edits or {}).get(hook.name, lambda same: same)(tensor)
        fired.append((hook.name, tensor.clone() if isinstance(tensor, Tensor) else tensor))
        return tensor

    try:
        with computing(sae):
            output = sae.run_with_hooks(*inputs, fwd_hooks=[(name, keep) for name in HOOK_NAMES])
    except Exception as error:
        shapes = " and ".join(f"{dtype_of(tensor)} {list(tensor.shape)}" for tensor in inputs)
        raise ExportError(
            f"{type(sae).__name__} fails on inputs of {shapes}: {type(error).__name__}: {error}"
        ) from error
    return output, fired


def _shape(hook: str, config: SAEConfig) -> list[int]:
    """Return the shape that a hook's tensor must have."""
    if hook in FEATURE_HOOKS:
        return [TOKENS, config.d_sae]
    return [TOKENS, *(config.input_shape if hook == HOOK_INPUT else config.output_shape)]


def _check_tensor(kind: str, hook: str, tensor: Any, dtype: torch.dtype, shape: list[int]) -> None:
    """Refuse a hook with another dtype or shape than the config and the weights say."""
    wanted = f"{str(dtype).removeprefix('torch.')} {shape}"
    found = f"{dtype_of(tensor)} {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
    if found != wanted:
        raise ExportError(
            f"{hook} of {kind} is {found} for {TOKENS} tokens; by its cfg and its weights it must be {wanted}."
        )


def _near(found: Tensor, wanted: Tensor) -> bool:
    """Tell whether two tensors are equal but for rounding, which may differ from run to run on a GPU."""
    finite = wanted.isfinite()
    if found.shape != wanted.shape or not torch.equal(finite, found.isfinite()):
        return False
    found, wanted = found[finite].double(), wanted[finite].double()
    return not wanted.numel() or bool((found - wanted).abs().max() <= 1e-2 * wanted.abs().max())


def _check_cached(sae: Any, inputs: list[Tensor], hooks: dict[str, Tensor]) -> None:
    """Refuse an SAE whose `run_with_cache`, from which the proof has the original's values, computes something else."""
    with computing(sae):
        _, cache = sae.run_with_cache(*inputs)
    differing = [name for name, tensor in hooks.items() if name not in cache or not _near(cache[name], tensor)]
    if differing:
        raise ExportError(
            f"{', '.join(differing)} of {type(sae).__name__} differ between run_with_cache and run_with_hooks on the "
            "same input. Is something in it random, does it change the tensor of a hook in place, or does it override "
            "__call__ or run_with_cache? Both must compute what forward computes."
        )


def _check_edit(sae: Any, inputs: list[Tensor], hooks: dict[str, Tensor], edited: str) -> None:
    """Refuse an SAE that ignores what a hook function returns at a hook, or whose error depends on it."""
    dtype, notices = inputs[0].dtype, NOTICES[edited]
    size = min(torch.finfo(dtype).max / 4, 1e9)  # far more than activations and thresholds
    signs = torch.randn(hooks[edited].shape, generator=torch.Generator().manual_seed(1), device="cpu").sign()
    change = (size * signs).to(inputs[0].device, dtype)
    found = dict(_run(sae, inputs, {edited: lambda tensor: tensor + change})[1])
    is_same = torch.equal(found[notices], hooks[notices])
    if is_same:  # weights that are 0 hide every finite change, and not NaN
        unlike = dict(_run(sae, inputs, {edited: lambda tensor: tensor * torch.nan})[1])
        is_same = torch.equal(unlike[notices], hooks[notices])
    if is_same:
        raise ExportError(
            f"{notices} of {type(sae).__name__} is the same whatever a hook function returns at {edited}; it must be "
            f"computed from the tensor that self.{edited}(...) returns."
        )
    if edited != HOOK_ERROR and HOOK_ERROR in hooks and not _near(found[HOOK_ERROR], hooks[HOOK_ERROR]):
        raise ExportError(
            f"{HOOK_ERROR} of {type(sae).__name__} changes with what a hook function returns at {edited}. Its error "
            "must be computed in a pass without hooks, as HookedSAE.run does."
        )
