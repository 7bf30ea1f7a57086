"""The original and the truth: what PyTorch computes in the SAE's dtype, and what the same weights give in float64.

A feature whose preactivation lies within rounding of a threshold, or of the k-th largest, is on in one correct program
and off in another, and from there on the two differ by as much as the feature is worth. On such a token nothing can be
proved; `reference_of` finds these tokens by moving the numbers about and leaves them out.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from runtime.errors import ParityError
from runtime.inputs import Array
from runtime.interventions import Intervention
from runtime.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_ERROR, HOOK_INPUT, HOOK_NAMES, HOOK_OUTPUT, HOOK_RECONS
from runtime.parity import Reference, SteeredReference

EDITED_FEATURES = 8
"""How many features the intervention edits by which `steer.onnx` is proved: two of each kind."""

MOST_OWN_ERROR = 1e-3
"""The largest token error that the original may have itself; float32 makes it 1e-7 to 1e-6."""

REACH = 1.0
"""How far the preactivations are moved to find thresholds nearby, as a multiple of the most that they may err; those
within half of it are found. That is twice the largest error of the original: that a feature errs by more, just where
its threshold is that near, is not to be expected; and a farther reach leaves nothing to prove of SAEs that are wide."""

INPUT_REACH = 16.0
"""How much farther those are moved that no hook shows, such as a gate's, by moving the input; in all directions at
random, so that most of them move by more than their error."""

JUMP = 8.0
"""An activation that moves by more than this multiple of what its preactivation moved by may have crossed a threshold;
it has, if with half the move it still moves by most of that: where a function is only steep, it moves by half."""

HookFunction = tuple[str, Callable[..., Any]]


def reference_of(sae: Any, activations: Array, target: Array | None = None) -> Reference:
    """Return what PyTorch computes, and the truth, of those tokens that are not at a threshold.

    Args:
        sae: a HookedSAE, or any HookedRootModule with the six hooks.
        activations: `(tokens, d_in)` or `(tokens, n_heads, d_head)`, in the SAE's dtype.
        target: `(tokens, d_out)`, for a transcoder with the error term.

    Raises:
        ParityError: a number is not finite, or every token is at a threshold.
    """
    original, truth = original_and_truth(sae, activations, target)
    reference = Reference(original, truth, bool(sae.cfg.use_error_term), target)
    far = _implausible(reference)
    if far.any():
        reference = _some(reference, ~far)
    certain = ~_at_a_threshold(sae, reference)
    if not certain.any():
        raise ParityError(
            f"On each of the {reference.tokens} tokens some feature's preactivation is within rounding of its "
            "threshold, so that correct programs differ there. Give other activations: real ones, if these are not."
        )
    return reference if certain.all() else _some(reference, certain)


def _some(reference: Reference, kept: Array) -> Reference:
    """Return the reference of the tokens `kept`, the others counted as left out."""
    original, truth = ({hook: y[kept] for hook, y in hooks.items()} for hooks in (reference.original, reference.truth))
    target = None if reference.target is None else reference.target[kept]
    left_out = reference.left_out + int((~kept).sum())
    return Reference(original, truth, reference.use_error_term, target, left_out=left_out)


def steered_reference_of(sae: Any, clean: Reference, intervention: Intervention) -> SteeredReference:
    """Return what PyTorch computes from the inputs of `clean` under an intervention, and the truth of it."""
    hook = (HOOK_ACTS_POST, torch_hook(intervention))
    original, truth = original_and_truth(sae, clean.original[HOOK_INPUT], clean.target, hook)
    steered = SteeredReference(
        original, truth, clean.use_error_term, clean.target, clean=clean, intervention=intervention
    )
    _implausible(steered)
    return steered


def _implausible(reference: Reference) -> Array:
    """Tell of each token whether the original is farther from the truth than rounding explains.

    That can be, on a token whose numbers cancel; such a token proves nothing, and would let the others err as much.

    Raises:
        ParityError: it is so on most tokens, and therefore of another cause.
    """
    own = {hook: reference.token_errors(hook, y) for hook, y in reference.original.items() if hook in reference.truth}
    far = np.any([errors > MOST_OWN_ERROR for errors in own.values()], axis=0)
    if far.mean() > 0.5:
        worst = max(own, key=lambda hook: float(np.median(own[hook])))
        raise ParityError(
            f"{worst}: PyTorch's own error against the same weights in float64 is {np.median(own[worst]):.1e} in the "
            f"median; on most tokens it is more than the {MOST_OWN_ERROR:.0e} that rounding explains. Is something in "
            "it random, or computed in lower precision?"
        )
    return far


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


def typical_intervention(reference: Reference) -> Intervention:
    """Return edits of every kind, of the features that are most often on and of the one that is least often.

    The values are of the size of the activations, so that every edit shows in the reconstruction.
    """
    acts_post = reference.original[HOOK_ACTS_POST]
    on = (acts_post != 0).sum(axis=0)
    by_use = np.argsort(-on, kind="stable")
    ids = by_use if len(by_use) <= EDITED_FEATURES else np.append(by_use[: EDITED_FEATURES - 1], by_use[-1])
    size = np.array([acts_post[acts_post[:, j] != 0, j].mean() if on[j] else 1.0 for j in ids], acts_post.dtype)
    scale, shift = (np.resize(kinds, len(ids)) for kinds in ([0, 0, 3, 1], [0, 1, 0, 1]))  # ablate, clamp, scale, add
    return Intervention(ids, scale, shift * size)


def original_and_truth(
    sae: Any, activations: Array, target: Array | None, *fwd_hooks: HookFunction
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the hooks as PyTorch computes them, and without the input in float64."""
    original = all_hooks(sae, activations, target, *fwd_hooks)
    with InFloat64():
        truth = all_hooks(sae, activations, target, *fwd_hooks)
    return original, {hook: y for hook, y in truth.items() if hook != HOOK_INPUT}


def all_hooks(sae: Any, activations: Array, target: Array | None, *fwd_hooks: HookFunction) -> dict[str, Array]:
    """Return the hooks as PyTorch computes them, the error also where it does not fire, unless it needs a target."""
    device = next(sae.parameters()).device
    inputs = [torch.from_numpy(array).to(device) for array in (activations, target) if array is not None]
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
    return {hook: cache[hook].cpu().numpy() for hook in HOOK_NAMES if hook in cache}


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


class InFloat64(TorchFunctionMode):
    """Inside, every operation on floating-point tensors is carried out in float64.

    Only what an operation takes is widened, and only for as long as it runs: of an SAE one matrix at a time, where a
    copy in float64 would hold three times the weights.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Widen the tensors, and let the dtype of a tensor be what it will be widened to."""
        if getattr(func, "__name__", "") == "__get__":
            value = func(*args)
            return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs or {}))
        # What `torch.zeros` and its like make is widened too: a later operation may change it in place.
        return tree_map_only(Tensor, _widened, func(*args, **kwargs))


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _at_a_threshold(sae: Any, reference: Reference) -> Array:
    """Tell of each token whether some activation jumps when the numbers before it move by about their error."""
    error = REACH * reference.budgets[HOOK_ACTS_PRE].element
    acts_pre, acts_post = reference.truth[HOOK_ACTS_PRE], reference.truth[HOOK_ACTS_POST]
    reach = error * reference.scale(HOOK_ACTS_PRE)[:, None] / np.sqrt(acts_pre.shape[1])
    x = reference.original[HOOK_INPUT].astype(np.float64)
    x_move = INPUT_REACH * error * x * np.random.default_rng(0).choice([-1.0, 1.0], x.shape)

    def moves(x_moved: Array, pre_moved: Array | None) -> tuple[Array, Array]:
        """Return by how much the activations move, and by how much the token's preactivations do."""
        pre, post = _activations(sae, reference, x_moved, pre_moved)
        return np.abs(post - acts_post), np.abs(pre - acts_pre).max(axis=1, keepdims=True)

    jumps = np.zeros(reference.tokens, bool)
    steps: list[tuple[Array | None, Array | None]] = [(None, step) for step in _steps(acts_pre, reach)]
    for x_step, pre_step in [*steps, (x_move, None), (-x_move, None)]:
        whole, half = (
            functools.partial(
                moves,
                x if x_step is None else x + part * x_step,
                None if pre_step is None else acts_pre + part * pre_step,
            )
            for part in (1.0, 0.5)
        )
        post_move, pre_move = whole()
        steep = post_move > JUMP * np.maximum(pre_move, reach)
        if steep.any():
            jumps |= (steep & (half()[0] > 0.75 * post_move)).any(axis=1)
    return jumps


def _steps(acts_pre: Array, reach: Array) -> Iterator[Array]:
    """Yield moves of the preactivations: all up, all down, and by turns in the order of their size, signed or not.

    The first two cross every threshold nearby; the others exchange neighbours, so that the k-th largest is another one.
    """
    for direction in (1.0, -1.0):
        yield np.broadcast_to(direction * reach, acts_pre.shape)
        for size, sign in ((acts_pre, 1.0), (np.abs(acts_pre), np.sign(acts_pre))):
            by_turns = np.empty_like(acts_pre)
            turns = np.broadcast_to(direction * (-1.0) ** np.arange(acts_pre.shape[1]), acts_pre.shape)
            np.put_along_axis(by_turns, np.argsort(size, axis=1), turns, axis=1)
            yield by_turns * reach * sign


def _activations(sae: Any, reference: Reference, x: Array, acts_pre: Array | None) -> tuple[Array, Array]:
    """Return `acts_pre` and `acts_post` in float64, the first replaced if it is given; nothing after them is run."""
    seen: list[Tensor] = []

    def at_acts_pre(tensor: Tensor, hook: Any) -> Tensor:
        seen.append(tensor if acts_pre is None else torch.from_numpy(acts_pre).to(tensor.device))
        return seen[-1]

    def at_acts_post(tensor: Tensor, hook: Any) -> None:
        seen.append(tensor)
        raise _Seen

    device = next(sae.parameters()).device
    inputs = [torch.from_numpy(array).to(device) for array in (x, reference.target) if array is not None]
    with contextlib.suppress(_Seen), evaluating(sae), InFloat64():
        sae.run_with_hooks(*inputs, fwd_hooks=[(HOOK_ACTS_PRE, at_acts_pre), (HOOK_ACTS_POST, at_acts_post)])
    pre, post = (tensor.cpu().numpy() for tensor in seen)
    return pre, post


class _Seen(Exception):  # noqa: N818
    """The activations are there."""
