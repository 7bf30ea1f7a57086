"""Finds the tensor of a Hugging Face model that a TransformerLens hook names.

A layout says where a block keeps the hooks: which submodule, and whether the tensor is its input or its output. A block
has a layout if it has exactly the submodules that tell it from the others, so that a class which nobody listed is
recognised by its structure. `reference.check_layout` then proves the residual sums on the model itself.

Source: TransformerLens, `HookedTransformer` and `HookedEncoder` (releases 2 and 3) and `model_bridge` (release 4).
"""

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from runtime.errors import GraftError

RESID_PRE, RESID_MID, RESID_POST = "hook_resid_pre", "hook_resid_mid", "hook_resid_post"
ATTN_OUT, MLP_OUT, Z, POST = "hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_post"
MLP_IN, NORMALIZED_RESID_POST = "mlp.hook_in", "hook_normalized_resid_post"

ALIASES = {
    "hook_in": RESID_PRE,
    "hook_out": RESID_POST,
    "attn.o.hook_in": Z,
    "mlp.hook_out": MLP_OUT,
    "mlp.out.hook_in": POST,
}
"""Names of release 4 for hooks that have another name as well."""

INSIDE_NORM = "it lies inside the layer normalisation, before the gain, where neither PyTorch nor ONNX has a tensor"
INSIDE_ATTENTION = "attention is one operator in most hosts, which does not give this tensor out"
REFUSED = {
    r"ln(1|2|_final)(_post)?\.hook_(normalized|scale)": INSIDE_NORM,
    r"attn\.hook_(q|k|v|rot_q|rot_k|pattern|attn_scores|result)": INSIDE_ATTENTION,
    r"hook_(q|k|v|attn)_(input|in)": "it is a copy for each head, which no host makes",
    r"hook_mlp_in": f"TransformerLens copies {RESID_MID} for it; name {RESID_MID}, or {MLP_IN} for what the MLP reads",
}
"""Hooks that no host has a tensor for, as patterns, with the reasons."""

Tensor = Literal["input", "output"]


@dataclass(frozen=True)
class Place:
    """A tensor of a PyTorch module: its first input or its first output.

    Attributes:
        module: Path of the module in the model, as `get_submodule` takes it.
        tensor: Whether it is the input or the output.
        heads: Number of attention heads if the hook is `(..., n_heads, d_head)`; None if it is `(..., width)`.
    """

    module: str
    tensor: Tensor
    heads: int | None = None

    def without_heads(self) -> "Place":
        """Return the place of the tensor as the module has it, `(..., width)`."""
        return Place(self.module, self.tensor)


Entry = tuple[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Where the blocks of a family of models keep the hooks.

    Attributes:
        name: Families with this layout.
        has: Submodules that every block of the layout has.
        lacks: Submodules that no block of the layout has.
        places: Hook to (submodule, tensor); the submodule "" is the block itself.
        sums: Equations `(a, b, ..., total)`: the tensors before the last one add up to it.
        absent: Hooks that the layout does not have, with the reasons.
    """

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    places: dict[str, Entry]
    sums: tuple[tuple[Entry, ...], ...]
    absent: dict[str, str]


BLOCK: dict[str, Entry] = {RESID_PRE: ("", "input"), RESID_POST: ("", "output")}
ONLY_POST_NORM = {
    NORMALIZED_RESID_POST: f"only models that normalise after they add have it; this block's output is {RESID_POST}"
}


def _pre_norm(
    name: str, norm: str, o: str, mlp: str, down: str, has: tuple[str, ...] = (), lacks: tuple[str, ...] = (),
    post_norms: tuple[str, str] | None = None,
) -> Layout:  # fmt: skip
    """Return the layout of blocks that normalise what attention and the MLP read, one after the other.

    Args:
        norm: Norm between the two, whose input is `hook_resid_mid`.
        o: Projection of the attention's output.
        mlp: The MLP.
        down: Its last projection.
        has: Further submodules that tell this layout from the others.
        lacks: Submodules that other layouts have.
        post_norms: Norms of the outputs of attention and the MLP before they are added.
    """
    attn_out, mlp_out = post_norms or (o, down)
    places: dict[str, Entry] = BLOCK | {
        RESID_MID: (norm, "input"), ATTN_OUT: (attn_out, "output"), MLP_OUT: (mlp_out, "output"), Z: (o, "input"),
        POST: (down, "input"), MLP_IN: (mlp, "input"),
    }  # fmt: skip
    sums = (
        (places[RESID_PRE], places[ATTN_OUT], places[RESID_MID]),
        (places[RESID_MID], places[MLP_OUT], places[RESID_POST]),
    )
    return Layout(name, (norm, o, mlp, down, *has, *(post_norms or ())), lacks, places, sums, ONLY_POST_NORM)


def _post_norm(name: str, o: str, norm_1: str, up: str, down: str, norm_2: str) -> Layout:
    """Return the layout of blocks that normalise after they add: `norm_1(x + attn_out)`, then `norm_2(... + mlp_out)`.

    `hook_resid_mid` and `hook_resid_post` are the sums before the norms and `hook_normalized_resid_post` is the block's
    output, as in `HookedEncoder`.
    """
    places: dict[str, Entry] = {
        RESID_PRE: ("", "input"), RESID_MID: (norm_1, "input"), RESID_POST: (norm_2, "input"),
        NORMALIZED_RESID_POST: ("", "output"), ATTN_OUT: (o, "output"), MLP_OUT: (down, "output"), Z: (o, "input"),
        POST: (down, "input"), MLP_IN: (up, "input"),
    }  # fmt: skip
    sums: tuple[tuple[Entry, ...], ...] = (
        (places[RESID_PRE], places[ATTN_OUT], places[RESID_MID]),
        ((norm_1, "output"), places[MLP_OUT], places[RESID_POST]),
    )
    return Layout(name, (o, norm_1, up, down, norm_2), (), places, sums, {})


LLAMA = ("post_attention_layernorm", "self_attn.o_proj", "mlp", "mlp.down_proj")
SANDWICH = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
LAYOUTS = (
    _post_norm(
        "BERT, RoBERTa, ELECTRA", "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
        "output.dense", "output.LayerNorm",
    ),
    _post_norm(
        "MPNet", "attention.attn.o", "attention.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
    ),
    _post_norm("DistilBERT", "attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
    _pre_norm("GPT-2", "ln_2", "attn.c_proj", "mlp", "mlp.c_proj", has=("ln_1",)),
    _pre_norm("Llama, Mistral, Qwen2, Qwen3", *LLAMA, has=("input_layernorm",), lacks=SANDWICH),
    _pre_norm(
        "Gemma 2, Gemma 3", "pre_feedforward_layernorm", *LLAMA[1:], has=("input_layernorm",),
        post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    _pre_norm(
        "GPT-NeoX, Pythia", "post_attention_layernorm", "attention.dense", "mlp", "mlp.dense_4h_to_h",
        has=("input_layernorm",),
    ),
)  # fmt: skip


def in_parallel(layout: Layout) -> Layout:
    """Return a layout for blocks whose attention and MLP both read the block's input, as GPT-NeoX does by default."""
    places = {hook: entry for hook, entry in layout.places.items() if hook != RESID_MID}
    sums = ((places[RESID_PRE], places[ATTN_OUT], places[MLP_OUT], places[RESID_POST]),)
    reason = "attention and the MLP run in parallel, so that there is no residual stream between them"
    return Layout(layout.name, layout.has, layout.lacks, places, sums, layout.absent | {RESID_MID: reason})


def find_place(model: nn.Module, hook: str) -> Place:
    """Return where a Hugging Face model keeps the tensor of a hook, such as `blocks.2.hook_resid_post`.

    Raises:
        GraftError: The name is not that of a hook in a block, the model does not have the block, its structure is
            unknown, or no module has the tensor; the message gives the reason.
    """
    index, name = split_hook(hook)
    path, block = find_block(model, index, hook)
    layout = layout_of(model, block)
    if name in layout.absent:
        raise GraftError(f"{hook}: {type(block).__name__} does not have this tensor: {layout.absent[name]}.")
    child, tensor = layout.places[name]
    return Place(f"{path}.{child}" if child else path, tensor, _heads(model, hook) if name == Z else None)


def split_hook(hook: str) -> tuple[int, str]:
    """Return the block's number and the hook's name inside the block, without aliases.

    Raises:
        GraftError: The name is not that of a hook in a block, or it is one of `REFUSED`.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    known = [RESID_PRE, RESID_MID, RESID_POST, NORMALIZED_RESID_POST, ATTN_OUT, MLP_OUT, MLP_IN, Z, POST]
    if match is None:
        raise GraftError(
            f"{hook!r} is not a hook in a block. Hooks are blocks.N.NAME, where NAME is one of {', '.join(known)}; "
            "for another tensor pass HOOK@VALUE, with the name of the value in the host's graph, and --reference FILE."
        )
    index, name = int(match[1]), ALIASES.get(match[2], match[2])
    if name in known:
        return index, name
    for pattern, reason in REFUSED.items():
        if re.fullmatch(pattern, name):
            raise GraftError(f"{hook} cannot be found by its name: {reason}.")
    raise GraftError(
        f"{hook} is not a known hook. Known are {', '.join(known)} in a block; for another tensor pass HOOK@VALUE, "
        "with the name of the value in the host's graph, and --reference FILE."
    )


def block_of(hook: str) -> int:
    """Return the number of the block of a hook; -1 if the name is not that of a hook in a block."""
    match = re.match(r"blocks\.(\d+)\.", hook)
    return -1 if match is None else int(match[1])


def find_block(model: nn.Module, index: int, hook: str) -> tuple[str, nn.Module]:
    """Return the path of block `index` and the block.

    The blocks are the list of as many modules as the config has layers.

    Raises:
        GraftError: There is not exactly one such list, or it does not have the block.
    """
    config = getattr(model, "config", None)
    layers = getattr(config, "num_hidden_layers", None)  # an attribute of every config; GPT-2's maps it to n_layer
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers and all(any(b.children()) for b in module)
    ]
    outer = [(path, module) for path, module in lists if not any(path.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        found = ", ".join(path for path, _ in outer) or "none"
        raise GraftError(
            f"{hook}: the blocks of {type(model).__name__} cannot be told: lists of {layers} modules, as many as the "
            f"config has layers: {found}. Pass HOOK@VALUE, with the name of the value in the host's graph."
        )
    path, blocks = outer[0]
    if index >= len(blocks):
        raise GraftError(f"{hook}: the model has {len(blocks)} blocks, blocks.0 to blocks.{len(blocks) - 1}.")
    return f"{path}.{index}", blocks[index]


def layout_of(model: nn.Module, block: nn.Module) -> Layout:
    """Return the layout of a block.

    Raises:
        GraftError: No layout fits its submodules.
    """
    children = {path for path, _ in block.named_modules()}
    for layout in LAYOUTS:
        if children.issuperset(layout.has) and children.isdisjoint(layout.lacks):
            parallel = getattr(getattr(model, "config", None), "use_parallel_residual", False)
            return in_parallel(layout) if parallel else layout
    raise GraftError(
        f"The structure of {type(block).__name__} is unknown. Known are the blocks of "
        f"{'; '.join(layout.name for layout in LAYOUTS)}. Pass HOOK@VALUE, with the name of the value in the host's "
        "graph, and --reference FILE with the activations there."
    )


def _heads(model: nn.Module, hook: str) -> int:
    heads = getattr(getattr(model, "config", None), "num_attention_heads", None)
    if not isinstance(heads, int):
        raise GraftError(f"{hook}: the config of {type(model).__name__} does not say how many attention heads it has.")
    return heads
