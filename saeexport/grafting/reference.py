"""Runs the Hugging Face model of a host: its activations at hooks, and its outputs with SAEs spliced in.

A splice replaces the tensor at the hook in place, so that every later reader gets what the SAE made of it, as with a
HookPoint of TransformerLens. A replaced output or input of a module would not reach the skip connection around
`hook_resid_mid`.
"""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.arrays.dtypes import FLOAT32
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST
from runtime.errors import GraftError
from runtime.session.interventions import Intervention

from ..original.running import evaluating, to_numpy, torch_hook
from .names import Entry, Place, find_block, find_place, layout_of, split_hook

SUM_BOUND = 1e-4
"""Largest error, relative to the norm of each token, of the residual sums of a layout in float32. A wrong layout misses
a term or a factor and is off by more than a hundredth; rounding is at most 1e-6."""


def load_model(folder: str | os.PathLike[str], weights: str = FLOAT32) -> nn.Module:
    """Return the Hugging Face model of a local folder in float32, in evaluation mode, on the CPU.

    The class is the one that the config names, so that a decoder has its language model head. Attention is computed
    step by step ("eager"), because fused kernels compute masked positions differently.

    Args:
        folder: Folder of the model.
        weights: Dtype that the weights are rounded to, as `from_pretrained` rounds them.

    Raises:
        GraftError: transformers is missing, or cannot read the folder.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise GraftError(
            f"{folder} is read with transformers, which is not installed. Run: pip install transformers"
        ) from error
    if not Path(folder, "config.json").is_file():
        raise GraftError(
            f"{folder} is not the folder of a Hugging Face model: it does not have a config.json. Models on the Hub "
            "are not downloaded; get the folder with: hf download OWNER/NAME --local-dir FOLDER"
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        kind = getattr(transformers, name, transformers.AutoModel)
        with _no_progress_bar():
            model = kind.from_pretrained(folder, dtype=getattr(torch, weights), attn_implementation="eager", **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise GraftError(f"{folder} cannot be read as a Hugging Face model: {error}") from error
    assert isinstance(model, nn.Module)
    return model.float().eval()


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def capture(model: nn.Module, feeds: Mapping[str, Array], hooks: Iterable[str]) -> dict[str, Array]:
    """Return the activations of the model at hooks, `(batch, positions, width)` float32 each, in a pass over `feeds`.

    A hook that ends in `_z` gives `(batch, positions, n_heads, d_head)`.

    Args:
        model: Hugging Face model, as `load_model` returns it.
        feeds: Inputs of the host. Those that the model does not take, such as empty past key values, are left out.
        hooks: TransformerLens names.

    Raises:
        GraftError: A hook has no place in the model, or the structure of the model is not what its names say.
    """
    places = {hook: find_place(model, hook) for hook in hooks}
    sums = {term for hook in places for equation in _sums(model, hook) for term in equation}
    seen: dict[Place, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for place in sums | {place.without_heads() for place in places.values()}:
            stack.enter_context(hooked(model, place, keep_in(seen, place)))
        run(model, feeds)
    if missing := [hook for hook, place in places.items() if place.without_heads() not in seen]:
        raise GraftError(f"{', '.join(missing)}: the model did not run the module with this tensor.")
    for hook in places:
        check_sums(hook, [[seen[term] for term in equation] for equation in _sums(model, hook)])
    result = {}
    for hook, place in places.items():
        array = to_numpy(seen[place.without_heads()])
        if place.heads is not None:
            array = array.reshape(*array.shape[:-1], place.heads, -1)
        result[hook] = array
    return result


def check_sums(hook: str, equations: Iterable[list[Tensor]]) -> None:
    """Check that the block of a hook adds what its layout says: the tensors before the last one are its terms.

    Raises:
        GraftError: They do not add up.
    """
    for *terms, total in equations:
        error = (sum(terms) - total).norm(dim=-1) / total.norm(dim=-1).clamp_min(1e-30)
        if not float(error.max()) <= SUM_BOUND:
            raise GraftError(
                f"{hook} cannot be found by its name: the block has the submodules of a known layout, but its tensors "
                f"do not add up as there; they are off by {float(error.max()):.1e} of a token's norm. Pass "
                "HOOK@VALUE, with the name of the value in the host's graph, and --reference FILE."
            )


def run(model: nn.Module, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of the model: its tensors by name, and past key values as `present.N.key`, `present.N.value`.

    Raises:
        GraftError: The model does not take one of the feeds, and it is not empty.
    """
    taken = inspect.signature(model.forward).parameters
    unknown = sorted(name for name, feed in feeds.items() if name not in taken and feed.size)
    if unknown:
        raise GraftError(
            f"{type(model).__name__} does not take {', '.join(unknown)}; it takes {', '.join(taken)}. Pass --reference "
            "FILE with feeds and activations, which needs no PyTorch model."
        )
    inputs = {name: torch.from_numpy(np.asarray(feed)) for name, feed in feeds.items() if name in taken}
    with evaluating(model):
        outputs = model(**inputs)
    return _named(outputs)


def run_spliced(
    model: nn.Module,
    feeds: Mapping[str, Array],
    saes: Mapping[str, Any],
    use_error_term: bool = False,
    edits: Mapping[str, Intervention] | None = None,
    targets: Mapping[str, str] | None = None,
) -> dict[str, Array]:
    """Return the outputs of the model with SAEs spliced in at their hooks, named as `run` names them.

    Args:
        model: Hugging Face model, as `load_model` returns it.
        feeds: Inputs of the host.
        saes: Hook to HookedSAE. SAEs at one tensor read each other's outputs, in this order.
        use_error_term: Whether every SAE adds its error term.
        edits: Hook to the intervention on the SAE's feature activations.
        targets: The hook that a transcoder reads to the hook of its target.

    Raises:
        GraftError: A hook has no place in the model.
    """
    edits, targets = edits or {}, targets or {}
    with contextlib.ExitStack() as stack:
        for hook, sae in saes.items():
            stack.enter_context(_error_term(sae, use_error_term))
            stack.enter_context(evaluating(sae))
            if hook in edits:
                stack.enter_context(sae.hooks(fwd_hooks=[(HOOK_ACTS_POST, torch_hook(edits[hook]))]))
            read: dict[Place, Tensor] = {}
            place = find_place(model, hook)
            if hook in targets:
                stack.enter_context(hooked(model, place, keep_in(read, place)))
                stack.enter_context(hooked(model, find_place(model, targets[hook]), _predictor(sae, read)))
            else:
                stack.enter_context(hooked(model, place, _replacer(sae)))
        return run(model, feeds)


def _replacer(sae: Any) -> Callable[[Tensor], None]:
    weight = next(sae.parameters())

    def replace(tensor: Tensor) -> None:
        tensor.copy_(sae(tensor.to(weight.device, weight.dtype)))

    return replace


def _predictor(sae: Any, read: Mapping[Place, Tensor]) -> Callable[[Tensor], None]:
    """Return a function that replaces the target of a transcoder, which read another tensor before."""
    weight = next(sae.parameters())

    def replace(target: Tensor) -> None:
        (x,) = (tensor.to(weight.device, weight.dtype) for tensor in read.values())
        given = (target.to(weight.device, weight.dtype),) if sae.cfg.use_error_term else ()
        target.copy_(sae(x, *given))

    return replace


@contextlib.contextmanager
def _error_term(sae: Any, use: bool) -> Iterator[None]:
    before, sae.cfg.use_error_term = sae.cfg.use_error_term, use
    try:
        yield
    finally:
        sae.cfg.use_error_term = before


def keep_in(seen: dict[Place, Tensor], place: Place) -> Callable[[Tensor], None]:
    """Return a function that puts a copy of a tensor into `seen`, because what follows may change it in place."""

    def keep(tensor: Tensor) -> None:
        seen[place] = tensor.clone()

    return keep


@contextlib.contextmanager
def hooked(model: nn.Module, place: Place, call: Callable[[Tensor], None]) -> Iterator[None]:
    """Call a function on the tensor of a place whenever the module runs."""

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call(_first_tensor((*args, *kwargs.values())))

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        call(_first_tensor(output if isinstance(output, (tuple, list)) else (output,)))

    module = model.get_submodule(place.module)
    if place.tensor == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _first_tensor(values: Iterable[Any]) -> Tensor:
    return next(value for value in values if isinstance(value, Tensor))


def _sums(model: nn.Module, hook: str) -> list[list[Place]]:
    """Return the equations of the block of a hook as places."""
    path, block = find_block(model, split_hook(hook)[0], hook)

    def place(entry: Entry) -> Place:
        child, tensor = entry
        return Place(f"{path}.{child}" if child else path, tensor)

    return [[place(entry) for entry in equation] for equation in layout_of(model, block).sums]


def _named(outputs: Any) -> dict[str, Array]:
    """Return the tensors of a model's output by name, and its past key values as `present.N.key`, `present.N.value`."""
    named: dict[str, Array] = {}
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            named[name] = to_numpy(value)
        elif name == "past_key_values":
            for index, (keys, values) in enumerate(layers_of_cache(value)):
                named[f"present.{index}.key"], named[f"present.{index}.value"] = to_numpy(keys), to_numpy(values)
    return named


def layers_of_cache(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of each layer of a transformers cache, of the releases with and without `layers`."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return [(layer[0], layer[1]) for layer in cache]
