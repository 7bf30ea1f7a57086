"""Checks whether an SAE can be exported: six hooks, finite weights of one dtype, no hook functions attached."""

import copy
from typing import Any

import torch

from runtime.arrays.arguments import as_integer
from runtime.arrays.dtypes import dtype_name
from runtime.artifact.budgets import FLOOR
from runtime.artifact.manifest import CUSTOM, SAEConfig
from runtime.artifact.names import HOOK_ERROR, HOOK_NAMES
from runtime.errors import ExportError, InputError

from .architectures import ARCHITECTURES
from .dtypes import TORCH_DTYPES, DTypeLike
from .running import dtype_of

# Keys that the manifest stores outside of `options`, and the device, which it does not store.
BASE_OPTIONS = (
    "d_in", "d_sae", "hook_name", "model_name", "neuronpedia_id", "use_error_term", "dtype", "seed", "device",
)  # fmt: skip


def architecture_of(sae: Any) -> str:
    """Return the name of an SAE's architecture; for a custom class "custom:" and the name of the class."""
    kind = type(sae)
    return next((name for name, known in ARCHITECTURES.items() if known is kind), f"{CUSTOM}{kind.__name__}")


def config_of(sae: Any, head_shape: tuple[int, int] | None) -> SAEConfig:
    """Return the config of an SAE as the manifest stores it.

    Raises:
        ExportError: The SAE does not take `(tokens, *head_shape)`.
        InputError: `head_shape` is not a pair of whole numbers.
    """
    cfg = sae.cfg
    if head_shape is not None:
        try:
            n_heads, d_head = (as_integer("head_shape", size) for size in head_shape)
        except (TypeError, ValueError):  # it is not a pair, or not one of whole numbers
            raise InputError(f"head_shape is {head_shape!r}; it must be (n_heads, d_head), or None.") from None
        if not cfg.hook_name.endswith("_z") or n_heads * d_head != cfg.d_in or n_heads < 2:
            raise ExportError(
                f"head_shape is {tuple(head_shape)}; it needs a hook_name that ends in _z (it is {cfg.hook_name!r}) "
                f"and n_heads * d_head = d_in = {cfg.d_in} with at least 2 heads."
            )
    options = {name: value for name, value in vars(cfg).items() if name not in BASE_OPTIONS}
    return SAEConfig(
        architecture=architecture_of(sae),
        d_in=cfg.d_in,
        d_sae=cfg.d_sae,
        hook_name=cfg.hook_name,
        model_name=_text_of(cfg, "model_name"),
        neuronpedia_id=_text_of(cfg, "neuronpedia_id"),
        use_error_term=bool(cfg.use_error_term),
        dtype=dtype_of(next(sae.parameters())),
        seed=getattr(cfg, "seed", None),
        head_shape=None if head_shape is None else (int(head_shape[0]), int(head_shape[1])),
        d_out=options.pop("d_out", None),
        options={name: value for name, value in options.items() if isinstance(value, bool | int | float | str)},
        fired_hooks=tuple(hook for hook in HOOK_NAMES if cfg.use_error_term or hook != HOOK_ERROR),
        feature_ids=getattr(sae, "feature_ids", None),
    )


def _text_of(cfg: Any, name: str) -> str | None:
    """Return a string attribute of a config; None if a custom class's config lacks it or has another type there."""
    value = getattr(cfg, name, None)
    return value if isinstance(value, str) else None


def check_hooks(sae: Any) -> None:
    """Refuse a module without the six hooks, or with hook functions, see `check_functions`.

    Raises:
        ExportError: The module has other hooks, or hook functions are attached; the message names them.
    """
    hooks = getattr(sae, "hook_dict", None)
    if hooks is None or list(hooks) != list(HOOK_NAMES):
        raise ExportError(
            f"A {type(sae).__name__} with the hooks {list(hooks) if hooks is not None else None} cannot be exported. "
            f"Pass a HookedSAE, or a HookedRootModule with exactly the hooks {', '.join(HOOK_NAMES)} in this order."
        )
    check_functions(sae)


def check_functions(sae: Any) -> None:
    """Refuse a module with hook functions: they would become part of the graph, or would be lost.

    Raises:
        ExportError: Hook functions are attached; the message names the modules.
    """
    attached = [
        name or "the SAE itself"
        for name, module in sae.named_modules()
        if any(getattr(module, kind, None) for kind in ("fwd_hooks", "bwd_hooks", *TORCH_HOOKS))
    ]
    if attached:
        raise ExportError(
            f"Hook functions are attached to {', '.join(attached)}; the artifact cannot have them. "
            "Remove them: sae.reset_hooks(including_permanent=True)"
        )


TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def in_dtype(sae: Any, dtype: DTypeLike | None) -> Any:
    """Return the SAE itself if `dtype` is None or its own dtype, otherwise a copy converted to `dtype`.

    Raises:
        ExportError: Parity cannot be proved in `dtype`.
    """
    if dtype is None:
        return sae
    try:
        name = dtype_name(dtype)
    except InputError:
        name = ""
    if name and {dtype_of(parameter) for parameter in sae.parameters()} == {name}:
        return sae
    if name not in FLOOR:
        raise ExportError(f"dtype is {dtype!r}; it must be one of {', '.join(FLOOR)}, or None for the SAE's own.")
    converted = copy.deepcopy(sae).to(TORCH_DTYPES[name])
    # The config may be a frozen dataclass of the user's; this copy of it is ours to change.
    object.__setattr__(converted.cfg, "dtype", TORCH_DTYPES[name])
    return converted


def check_weights(state: dict[str, torch.Tensor]) -> None:
    """Refuse weights for which parity cannot be proved.

    Raises:
        ExportError: Weights have several dtypes or an unsupported one, or are not finite; the message names them.
    """
    dtypes = {dtype_of(tensor) for tensor in state.values()}
    if len(dtypes) != 1 or not dtypes <= set(FLOOR):
        raise ExportError(
            f"The weights are {', '.join(sorted(dtypes))}; they must all be one of {', '.join(FLOOR)}. "
            'Convert them: export(..., dtype="float32")'
        )
    for name, tensor in state.items():
        if not tensor.numel() or all(torch.isfinite(bound) for bound in tensor.aminmax()):
            continue  # one pass over a matrix of a gigabyte, without a second matrix
        finite = torch.isfinite(tensor)
        if not finite.all():
            index = tuple(int(i) for i in (~finite).nonzero()[0])
            raise ExportError(f"{name} is {tensor[index].item()} at {list(index)}; every weight must be finite.")
