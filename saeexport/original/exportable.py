"""Checks whether an SAE can be exported: six hooks, finite weights of one dtype, no hook functions attached."""

import copy
import reprlib
from numbers import Integral
from typing import Any

import torch

from runtime.arrays.arguments import as_integer
from runtime.arrays.dtypes import dtype_name
from runtime.artifact.budgets import FLOOR
from runtime.artifact.manifest import CUSTOM, SAEConfig
from runtime.artifact.names import HOOK_ERROR, HOOK_NAMES, INDICES, INPUT, INTERVENTION, L0, TARGET, VALUES, K
from runtime.errors import ExportError, InputError

from .architectures import ARCHITECTURES
from .dtypes import TORCH_DTYPES, DTypeLike
from .running import dtype_of

# Keys that the manifest stores outside of `options`, and the device, which it does not store.
BASE_OPTIONS = (
    "d_in", "d_sae", "d_out", "hook_name", "model_name", "neuronpedia_id", "use_error_term", "dtype", "seed", "device",
)  # fmt: skip


GRAPH_NAMES = frozenset((*HOOK_NAMES, INPUT, TARGET, *INTERVENTION, K, INDICES, VALUES, L0))
"""The names of the graphs' inputs and outputs, which no parameter may have."""


def architecture_of(sae: Any) -> str:
    """Return the name of an SAE's architecture; for a custom class "custom:" and the name of the class."""
    kind = type(sae)
    return next((name for name, known in ARCHITECTURES.items() if known is kind), f"{CUSTOM}{kind.__name__}")


def config_of(sae: Any, head_shape: tuple[int, int] | None) -> SAEConfig:
    """Return the config of an SAE as the manifest stores it.

    Raises:
        ExportError: The SAE does not take `(tokens, *head_shape)`, or its `cfg` is not a config.
        InputError: `head_shape` is not a pair of whole numbers.
    """
    cfg = sae.cfg
    d_in, d_sae, d_out = _sizes_of(sae)
    if head_shape is not None:
        try:
            n_heads, d_head = (as_integer("head_shape", size) for size in head_shape)
        except (TypeError, ValueError):  # it is not a pair, or not one of whole numbers
            raise InputError(f"head_shape is {head_shape!r}; it must be (n_heads, d_head), or None.") from None
        if not cfg.hook_name.endswith("_z") or n_heads * d_head != d_in or n_heads < 2:
            raise ExportError(
                f"head_shape is {tuple(head_shape)}; it needs a hook_name that ends in _z (it is {cfg.hook_name!r}) "
                f"and n_heads * d_head = d_in = {d_in} with at least 2 heads."
            )
    seed = getattr(cfg, "seed", None)
    options = {name: value for name, value in getattr(cfg, "__dict__", {}).items() if name not in BASE_OPTIONS}
    return SAEConfig(
        architecture=architecture_of(sae),
        d_in=d_in,
        d_sae=d_sae,
        hook_name=cfg.hook_name,
        model_name=_text_of(cfg, "model_name"),
        neuronpedia_id=_text_of(cfg, "neuronpedia_id"),
        use_error_term=bool(cfg.use_error_term),
        dtype=dtype_of(next(sae.parameters())),
        seed=int(seed) if isinstance(seed, Integral) else None,
        head_shape=None if head_shape is None else (int(head_shape[0]), int(head_shape[1])),
        d_out=d_out,
        options={name: value for name, value in options.items() if isinstance(value, bool | int | float | str)},
        fired_hooks=tuple(hook for hook in HOOK_NAMES if cfg.use_error_term or hook != HOOK_ERROR),
        feature_ids=getattr(sae, "feature_ids", None),
    )


CONFIG = ("d_in", "d_sae", "hook_name", "use_error_term")
"""Attributes that the config of every SAE must have."""


def _sizes_of(sae: Any) -> tuple[int, int, int | None]:
    """Return `d_in`, `d_sae` and `d_out` of an SAE's config, as ints.

    Raises:
        ExportError: The config lacks an attribute, or one has a value that no SAE can have.
    """
    cfg: Any = getattr(sae, "cfg", None)
    kind = type(sae).__name__
    if missing := [name for name in CONFIG if not hasattr(cfg, name)]:
        raise ExportError(
            f"The cfg of this {kind} is {reprlib.repr(cfg)}, without the attributes {', '.join(missing)}; it must be "
            f"an object with {', '.join(CONFIG)}."
        )
    if not isinstance(cfg.hook_name, str):
        raise ExportError(f"cfg.hook_name of this {kind} is {cfg.hook_name!r}; it must be a string.")
    given = getattr(cfg, "d_out", None)
    try:
        d_in, d_sae = (as_integer(f"cfg.{name}", getattr(cfg, name), 1) for name in ("d_in", "d_sae"))
        return d_in, d_sae, None if given is None else as_integer("cfg.d_out", given, 1)
    except InputError as error:
        raise ExportError(str(error)) from None


def _text_of(cfg: Any, name: str) -> str | None:
    """Return a string attribute of a config; None if a custom class's config lacks it or has another type there."""
    value = getattr(cfg, name, None)
    return value if isinstance(value, str) else None


def check_hooks(sae: Any) -> None:
    """Refuse a module without the six hooks.

    Raises:
        ExportError: The module has other hooks; the message names them.
    """
    hooks = getattr(sae, "hook_dict", None)
    if hooks is None or list(hooks) != list(HOOK_NAMES):
        raise ExportError(
            f"A {type(sae).__name__} with the hooks {list(hooks) if hooks is not None else None} cannot be exported. "
            f"Pass a HookedSAE, or a HookedRootModule with exactly the hooks {', '.join(HOOK_NAMES)} in this order."
        )


TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_functions(sae: Any) -> None:
    """Refuse a module with hook functions: they would become part of the graph, or would be lost.

    Raises:
        ExportError: Hook functions are attached; the message names the modules.
    """
    attached: dict[str, bool] = {}  # whether TransformerLens attached all of them
    for name, module in sae.named_modules():
        ours = sum(len(getattr(module, kind, ())) for kind in ("fwd_hooks", "bwd_hooks"))
        torchs = sum(len(getattr(module, kind, None) or ()) for kind in TORCH_HOOKS)
        if ours or torchs:
            attached[name or "the SAE itself"] = ours >= torchs
    if attached:
        by_handle = (
            "handle.remove() of the handle that PyTorch returned, or the function that undoes what attached them"
        )
        raise ExportError(
            f"Hook functions are attached to {', '.join(attached)}; the artifact cannot have them. Remove them: "
            f"{'sae.reset_hooks(including_permanent=True)' if all(attached.values()) else by_handle}"
        )


def check_tensors(sae: Any) -> None:
    """Refuse an SAE whose parameters do not hold values that can be read, or are not those of its architecture.

    Raises:
        ExportError: The message names the parameter.
    """
    kind, tensors = type(sae).__name__, dict([*sae.named_parameters(), *sae.named_buffers()])
    if next(iter(sae.parameters()), None) is None:
        raise ExportError(f"This {kind} has no parameters; its weights must be parameters, see torch.nn.Parameter.")
    for name, tensor in tensors.items():
        if problem := _unreadable(tensor):
            raise ExportError(f"{name} of this {kind} {problem}")
        if name in GRAPH_NAMES:
            raise ExportError(f"{name} is the name of an input or output of a graph. Give this parameter another name.")
    _sizes_of(sae)  # which the shapes depend on
    if type(sae) in ARCHITECTURES.values():
        found = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
        wanted = sae.parameter_shapes(sae.cfg)
        if found != wanted:
            shapes, needed = (", ".join(f"{name} {list(s[name])}" for name in sorted(s)) for s in (found, wanted))
            raise ExportError(
                f"This {kind} holds {shapes}; by its config it must hold {needed}. If it computes something else than "
                f"a {kind}, make it a subclass."
            )


def _unreadable(tensor: torch.Tensor) -> str | None:
    """Return what is wrong with a parameter whose values cannot be read, and what to do; None if nothing is."""
    if torch.nn.parameter.is_lazy(tensor):
        return "is not initialised. Run the SAE on a batch first."
    if tensor.is_meta:
        return "is on the device meta, which holds no values. Load the weights first."
    if tensor.layout != torch.strided:
        return f"has the layout {str(tensor.layout).removeprefix('torch.')}. Convert it: tensor.to_dense()"
    if hasattr(tensor, "__tensor_flatten__"):  # the protocol of subclasses that wrap other tensors
        return f"is a {type(tensor).__name__}, which wraps other tensors. Convert it to a tensor of one dtype."
    if tensor.is_inference():
        return "is an inference tensor, which PyTorch cannot trace. Load the SAE outside of torch.inference_mode()."
    return None


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
    if counts := [name for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise ExportError(
            f"{', '.join(f'{name} is {dtype_of(state[name])}' for name in counts)}; weights must be one of "
            f"{', '.join(FLOOR)}. Register a buffer that is no weight with persistent=False."
        )
    if len(dtypes) != 1 or not dtypes <= set(FLOOR):
        raise ExportError(
            f"The weights are {', '.join(sorted(dtypes))}; they must all be one of {', '.join(FLOOR)}. "
            'Convert them: export(..., dtype="float32"), or --dtype float32 on the command line.'
        )
    for name, tensor in state.items():
        if not tensor.numel() or all(torch.isfinite(bound) for bound in tensor.aminmax()):
            continue  # one pass over a matrix of a gigabyte, without a second matrix
        finite = torch.isfinite(tensor)
        if not finite.all():
            index = tuple(int(i) for i in (~finite).nonzero()[0])
            raise ExportError(f"{name} is {tensor[index].item()} at {list(index)}; every weight must be finite.")
