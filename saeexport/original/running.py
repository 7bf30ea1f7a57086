"""The PyTorch original, run: all its hooks, as numpy arrays."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ERROR, HOOK_INPUT, HOOK_NAMES, HOOK_OUTPUT, HOOK_RECONS
from runtime.session.interventions import Intervention

HookFunction = tuple[str, Callable[..., Any]]


def all_hooks(sae: Any, activations: Array, target: Array | None, *fwd_hooks: HookFunction) -> dict[str, Array]:
    """Return the hooks as PyTorch computes them, the error also where it does not fire, unless it needs a target.

    Args:
        sae: a HookedSAE, or any HookedRootModule with the six hooks.
        activations: `(tokens, ...)`; numbers of the SAE's dtype, those of bfloat16 in float32.
        target: for a transcoder with the error term, likewise.
        fwd_hooks: (name, function) pairs.
    """
    inputs = inputs_of(sae, activations, target)
    with evaluating(sae):
        with sae.hooks(fwd_hooks=list(fwd_hooks)):
            output, cache = sae.run_with_cache(*inputs)
        clean = cache[HOOK_RECONS]
        if fwd_hooks:
            _, clean_cache = sae.run_with_cache(*inputs, names_filter=HOOK_RECONS)
            clean = clean_cache[HOOK_RECONS]
    if HOOK_ERROR not in cache and predicts_its_input(sae):
        cache[HOOK_ERROR] = cache[HOOK_INPUT] - clean
    cache[HOOK_OUTPUT] = output
    return {hook: numbers_of(cache[hook]) for hook in HOOK_NAMES if hook in cache}


def hook_of(
    sae: Any, inputs: Sequence[Array | None], hook: str, replaced: str | None = None, value: Array | None = None
) -> Array:
    """Return the tensor of one hook, after that of another was replaced; nothing behind it is run.

    Args:
        sae: a HookedSAE, or any HookedRootModule with the six hooks.
        inputs: the activations and, or None, the target, as `all_hooks` takes them.
        hook: whose tensor.
        replaced: which hook's is replaced, before it; None for none.
        value: by what.
    """
    seen: list[Tensor] = []

    def replace(tensor: Tensor, hook: Any) -> Tensor:
        return torch.from_numpy(value).to(tensor.device, tensor.dtype)

    def keep(tensor: Tensor, hook: Any) -> None:
        seen.append(tensor)
        raise _Seen

    hooks = [(hook, keep)] if replaced is None else [(replaced, replace), (hook, keep)]
    with contextlib.suppress(_Seen), evaluating(sae):
        sae.run_with_hooks(*inputs_of(sae, *inputs), fwd_hooks=hooks)
    return numbers_of(seen[0])


class _Seen(Exception):  # noqa: N818
    """What was asked for is there; nothing after it is run."""


def inputs_of(sae: Any, *arrays: Array | None) -> list[Tensor]:
    """Return what an SAE is called with, in its dtype and on its device; what is None is left out."""
    weight = next(sae.parameters())
    return [torch.from_numpy(array).to(weight.device, weight.dtype) for array in arrays if array is not None]


def numbers_of(tensor: Tensor) -> Array:
    """Return a tensor as a numpy array; of bfloat16, which numpy has not, in float32."""
    tensor = tensor.detach().cpu()
    numbers: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return numbers


def bits_of(tensor: Tensor) -> Array:
    """Return a tensor as a numpy array, without a copy if it is on the CPU; of bfloat16 its bits."""
    tensor = tensor.detach().cpu()
    bits: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return bits


def dtype_of(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def torch_hook(intervention: Intervention) -> Callable[..., Tensor]:
    """Return an intervention as a hook function for `hook_sae_acts_post` of the PyTorch original."""

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
    """Tell an SAE from a transcoder, whose config says how wide the activation is that it predicts."""
    return getattr(sae.cfg, "d_out", None) is None


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch a module to evaluation, without gradients, and back: what is exported is the SAE in use."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, mode in modes.items():
            child.training = mode
