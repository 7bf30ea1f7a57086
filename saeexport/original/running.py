"""Runs the PyTorch original, and returns its hook tensors as numpy arrays."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runtime.arrays.tensor import Array
from runtime.artifact.names import (
    HOOK_ACTS_POST,
    HOOK_ACTS_PRE,
    HOOK_ERROR,
    HOOK_INPUT,
    HOOK_NAMES,
    HOOK_OUTPUT,
    HOOK_RECONS,
)
from runtime.session.interventions import Intervention

from .architectures import ARCHITECTURES
from .precision import HALF, HalfProducts

HookFunction = tuple[str, Callable[..., Any]]


def all_hooks(sae: Any, activations: Array, target: Array | None, *fwd_hooks: HookFunction) -> dict[str, Array]:
    """Return all hook tensors of the PyTorch original, by name.

    The error is included even where its hook does not fire, except for a transcoder, whose error needs a target.

    Args:
        sae: HookedSAE, or any HookedRootModule with the six hooks.
        activations: Inputs, `(tokens, ...)`, with values of the SAE's dtype; bfloat16 values as float32.
        target: Activations that a transcoder with the error term predicts, likewise.
        fwd_hooks: Pairs of a hook's name and a hook function.
    """
    inputs = to_inputs(sae, activations, target)
    with computing(sae):
        with sae.hooks(fwd_hooks=list(fwd_hooks)):
            output, cache = sae.run_with_cache(*inputs)
        clean = cache[HOOK_RECONS]
        if fwd_hooks:
            _, clean_cache = sae.run_with_cache(*inputs, names_filter=HOOK_RECONS)
            clean = clean_cache[HOOK_RECONS]
    if HOOK_ERROR not in cache and predicts_its_input(sae):
        cache[HOOK_ERROR] = cache[HOOK_INPUT] - clean
    cache[HOOK_OUTPUT] = output
    return {hook: to_numpy(cache[hook]) for hook in HOOK_NAMES if hook in cache}


def run_to_hook(
    sae: Any, inputs: Sequence[Array | None], hook: str, replaced: str | None = None, value: Array | None = None
) -> Array:
    """Return the tensor of one hook, optionally with the tensor of an earlier hook replaced.

    The forward pass stops at `hook`. A HookedSAE of a known architecture runs only the stage between the two hooks.

    Args:
        sae: HookedSAE, or any HookedRootModule with the six hooks.
        inputs: The activations and the target (or None), as `all_hooks` takes them.
        hook: Name of the hook to return.
        replaced: Name of the hook whose tensor is replaced by `value`; None replaces nothing.
        value: Replacement for the tensor of `replaced`.
    """
    if value is not None and (stage := _stage(sae, replaced, hook)) is not None:
        with computing(sae):
            source, given = to_inputs(sae, inputs[0], value)
            return to_numpy(stage(given, source))
    seen: list[Tensor] = []

    def replace(tensor: Tensor, hook: Any) -> Tensor:
        return torch.from_numpy(value).to(tensor.device, tensor.dtype)

    def keep(tensor: Tensor, hook: Any) -> None:
        seen.append(tensor)
        raise _Seen

    hooks = [(hook, keep)] if replaced is None else [(replaced, replace), (hook, keep)]
    with contextlib.suppress(_Seen), computing(sae):
        sae.run_with_hooks(*to_inputs(sae, *inputs), fwd_hooks=hooks)
    return to_numpy(seen[0])


def edited_hooks(sae: Any, clean: Mapping[str, Array], target: Array | None, edits: Intervention) -> dict[str, Array]:
    """Return all hook tensors of the PyTorch original under an intervention at `hook_sae_acts_post`, by name.

    Args:
        sae: HookedSAE, or any HookedRootModule with the six hooks.
        clean: What `all_hooks` returned for the same inputs, whose tensors before the intervention are used again.
        target: Activations that a transcoder with the error term predicts.
        edits: The intervention.
    """
    source, edit = clean[HOOK_INPUT], torch_hook(edits)
    if _stage(sae, HOOK_ACTS_POST, HOOK_RECONS) is None:
        return all_hooks(sae, source, target, (HOOK_ACTS_POST, edit))
    with torch.no_grad():
        acts_post = to_numpy(edit(*to_inputs(sae, clean[HOOK_ACTS_POST])))
        recons = run_to_hook(sae, [source, target], HOOK_RECONS, HOOK_ACTS_POST, acts_post)
        output = recons
        if sae.cfg.use_error_term:
            total, error = to_inputs(sae, recons, clean[HOOK_ERROR])
            output = to_numpy(total + error)
    return {**clean, HOOK_ACTS_POST: acts_post, HOOK_RECONS: recons, HOOK_OUTPUT: output}


def _stage(sae: Any, given: str | None, wanted: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the stage between two hooks as a function of the first one's tensor and of the input.

    None if the whole forward pass has to run: for a custom class, for other hooks, and if hook functions are attached.
    """
    if type(sae) not in ARCHITECTURES.values() or any(module._forward_hooks for module in sae.modules()):
        return None
    if (given, wanted) == (HOOK_ACTS_PRE, HOOK_ACTS_POST):
        return lambda acts_pre, source: sae.activation(acts_pre, sae.flatten(source))
    if (given, wanted) == (HOOK_ACTS_POST, HOOK_RECONS):
        return lambda acts, source: sae.shaped(sae.decode(acts, sae.flatten(source)), source)
    return None


class _Seen(Exception):  # noqa: N818
    """Stops the forward pass at the requested hook."""


def to_inputs(sae: Any, *arrays: Array | None) -> list[Tensor]:
    """Return the arrays that are not None as tensors of the SAE's dtype and on its device."""
    weight = next(sae.parameters())
    return [torch.from_numpy(array).to(weight.device, weight.dtype) for array in arrays if array is not None]


def to_numpy(tensor: Tensor) -> Array:
    """Return a tensor as a numpy array; bfloat16, which numpy lacks, is widened to float32."""
    tensor = tensor.detach().cpu().resolve_neg()
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def to_bits(tensor: Tensor) -> Array:
    """Return a tensor as a numpy array without a copy if it is on the CPU; bfloat16 as its bits, uint16."""
    tensor = tensor.detach().cpu().resolve_neg()
    bits: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return bits


def dtype_of(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def torch_hook(intervention: Intervention) -> Callable[..., Tensor]:
    """Return a hook function that applies an intervention at `hook_sae_acts_post` of the PyTorch original."""

    def edit(acts_post: Tensor, hook: Any = None) -> Tensor:
        ids, scale, shift = (
            torch.as_tensor(values, device=acts_post.device)
            for values in (intervention.ids, intervention.scale, intervention.shift)
        )
        edited = acts_post.clone()
        edited[..., ids] = edited[..., ids] * scale.to(acts_post.dtype) + shift.to(acts_post.dtype)
        return edited

    return edit


def predicts_its_input(sae: Any) -> bool:
    """Tell an SAE from a transcoder, whose config has the width of the activation that it predicts, `d_out`."""
    return getattr(sae.cfg, "d_out", None) is None


@contextlib.contextmanager
def computing(sae: Any) -> Iterator[None]:
    """Let an SAE compute as it is used, without gradients, and with products of half precision that take no minutes."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(sae))
        if next(sae.parameters()).dtype in HALF:  # inside of `InFloat64` it reads as float64
            stack.enter_context(HalfProducts())
        yield


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode without gradients, as an SAE is used, and restore its modes afterwards.

    It computes in its own dtype also where the caller has turned on `torch.autocast`.
    """
    modes = {child: child.training for child in module.modules()}
    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for child, mode in modes.items():
            child.training = mode
