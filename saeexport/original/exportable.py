"""What can be exported: an SAE with the six hooks, sound weights, and nothing attached that a trace would bake in."""

import copy
from typing import Any

import torch

from runtime.artifact.manifest import CUSTOM, SAEConfig
from runtime.artifact.names import HOOK_ERROR, HOOK_NAMES
from runtime.errors import ExportError
from runtime.parity.reference import FLOOR

from .architectures import ARCHITECTURES
from .running import dtype_of

# What the manifest has keys of its own for, and where the SAE happened to live.
BASE_OPTIONS = (
    "d_in", "d_sae", "hook_name", "model_name", "neuronpedia_id", "use_error_term", "dtype", "seed", "device",
)  # fmt: skip


def architecture_of(sae: Any) -> str:
    """Return the name of an SAE's architecture; of a class not in `ARCHITECTURES`, "custom:" and the class's name."""
    kind = type(sae)
    return next((name for name, known in ARCHITECTURES.items() if known is kind), f"{CUSTOM}{kind.__name__}")


def config_of(sae: Any, head_shape: tuple[int, int] | None) -> SAEConfig:
    """Return what an artifact says of an SAE.

    Raises:
        ExportError: it does not take `(tokens, *head_shape)`.
    """
    cfg = sae.cfg
    if head_shape is not None:
        n_heads, d_head = head_shape
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
    )


def _text_of(cfg: Any, name: str) -> str | None:
    """Return a string attribute of a config; None if a custom class's config lacks it or has another type there."""
    value = getattr(cfg, name, None)
    return value if isinstance(value, str) else None


def check_hooks(sae: Any) -> None:
    """Refuse a module that is no SAE, or whose export would not be what its owner thinks.

    Raises:
        ExportError: it has not the six hooks, or has hook functions attached; the message names them.
    """
    hooks = getattr(sae, "hook_dict", None)
    if hooks is None or list(hooks) != list(HOOK_NAMES):
        raise ExportError(
            f"A {type(sae).__name__} with the hooks {list(hooks) if hooks is not None else None} was given; what can "
            f"be exported is a HookedSAE, or a HookedRootModule with exactly {', '.join(HOOK_NAMES)} in this order."
        )
    attached = [
        name or "the SAE itself"
        for name, module in sae.named_modules()
        if any(getattr(module, kind, None) for kind in ("fwd_hooks", "bwd_hooks", *TORCH_HOOKS))
    ]
    if attached:
        raise ExportError(
            f"Hook functions are attached to {', '.join(attached)}; the graph would contain what they do. "
            "Remove them: sae.reset_hooks(including_permanent=True)"
        )


TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def in_dtype(sae: Any, dtype: str | None) -> Any:
    """Return an SAE in a dtype: itself if it is in it already, or if that is None; else a copy that is converted.

    Raises:
        ExportError: the dtype is none that parity can be proved in.
    """
    if dtype is None or {dtype_of(parameter) for parameter in sae.parameters()} == {dtype}:
        return sae
    if dtype not in FLOOR:
        raise ExportError(f"dtype is {dtype!r}; it must be one of {', '.join(FLOOR)}, or None for the SAE's own.")
    converted = copy.deepcopy(sae).to(getattr(torch, dtype))
    # Past a frozen dataclass, too: the copy is ours.
    object.__setattr__(converted.cfg, "dtype", getattr(torch, dtype))
    return converted


def check_weights(state: dict[str, torch.Tensor]) -> None:
    """Refuse weights in which parity cannot be proved.

    Raises:
        ExportError: they have mixed or unsupported dtypes, or are not finite; the message names them.
    """
    dtypes = {dtype_of(tensor) for tensor in state.values()}
    if len(dtypes) != 1 or not dtypes <= set(FLOOR):
        raise ExportError(
            f"The weights are {', '.join(sorted(dtypes))}; parity can be proved in one of {', '.join(FLOOR)}. "
            'Convert them: dtype="float32"'
        )
    for name, tensor in state.items():
        finite = torch.isfinite(tensor)
        if not finite.all():
            index = tuple(int(i) for i in (~finite).nonzero()[0])
            raise ExportError(f"{name} is {tensor[index].item()} at {list(index)}; every weight must be finite.")
