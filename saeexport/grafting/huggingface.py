"""Exports a Hugging Face model to ONNX as a host, with the tensors at the hooks as named values.

An encoder takes `input_ids`, `attention_mask` and what else its tokenizer gives; a decoder takes and returns the keys
and values of earlier tokens as well, `past_key_values.N.key` and `present.N.key`, as optimum names them.
"""

import contextlib
import inspect
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from runtime.arrays.arguments import as_path
from runtime.errors import GraftError
from runtime.hosts.names import ATTENTION_MASK, INPUT_IDS, POSITION_IDS, TOKEN_TYPE_IDS

from ..graphs.trace import quiet_exporter
from ..original.running import evaluating
from .names import Place, find_place
from .reference import hooked, keep_in, layers_of_cache, load_model

MODEL = "model.onnx"
STACK_TRACE = "pkg.torch.onnx.stack_trace"
PAST_KEY_VALUES, PRESENT = "past_key_values.", "present."
BATCH, POSITIONS, PAST = 2, 5, 3
"""Sizes of the inputs that the model is traced with; all different, and none 1, so that no dimension becomes fixed."""


PREFIX = "hf:"
"""Beginning of a host's address that is the folder of a Hugging Face model."""


@contextlib.contextmanager
def opened(
    host: "str | os.PathLike[str]", hf: "str | os.PathLike[str] | None", hooks: Sequence[str]
) -> Iterator[tuple[Path, "Path | None"]]:
    """Yield the ONNX file of a host, and the folder of the Hugging Face model to compare with.

    A host "hf:FOLDER" is exported to a temporary folder, which is removed at the end, and is compared with its own
    model.

    Raises:
        GraftError: `hf` is another model than the one to export, or the model cannot be exported.
    """
    if not str(host).startswith(PREFIX):
        yield as_path("host", host), None if hf is None else as_path("hf", hf)
        return
    folder = Path(str(host).removeprefix(PREFIX))
    if hf is not None and as_path("hf", hf).absolute() != folder.absolute():
        raise GraftError(f"The host is {host}, and it is to be compared with {hf}. Leave the second one away.")
    with tempfile.TemporaryDirectory(prefix="saeexport-") as temporary:
        yield export_host(folder, hooks, Path(temporary) / folder.absolute().name), folder


def export_host(folder: "str | os.PathLike[str]", hooks: Sequence[str], out: Path, cache: bool = True) -> Path:
    """Export a Hugging Face model to `out/model.onnx` in float32, and return the path of this file.

    The weights are in a file of their own beside it. The values at the hooks are called like the hooks.

    Args:
        folder: Folder of the model.
        hooks: TransformerLens names.
        out: Folder to write to.
        cache: Whether a decoder takes and returns keys and values.

    Raises:
        GraftError: The model cannot be read or traced, or a hook has no place in it.
    """
    model = load_model(folder)
    names, inputs, dynamic = _inputs(model, cache)
    traced = _Traced(model, names, hooks)
    try:
        with quiet_exporter(), evaluating(traced):
            program = torch.onnx.export(
                traced, tuple(inputs), dynamo=True, dynamic_shapes=(tuple(dynamic),), input_names=names,
                output_names=traced.output_names(), external_data=True, verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch.export raises exceptions of many kinds, some of which are not public
        raise GraftError(
            f"{folder} cannot be exported: {_cause(error)}. Export the model with another "
            "exporter, such as optimum, and pass its file."
        ) from error
    assert program is not None
    model_ir = program.model
    for hook in hooks:
        _keep_as_value(model_ir.graph, hook)
    for node in model_ir.graph.all_nodes():  # what tells where the model's code lies on this machine
        node.metadata_props.pop(STACK_TRACE, None)
    out.mkdir(parents=True, exist_ok=True)
    ir.save(model_ir, out / MODEL, external_data=f"{MODEL}.data")
    return out / MODEL


class _Traced(nn.Module):
    """The model with flat inputs and outputs: (hidden states or logits, keys and values, tensors at the hooks)."""

    def __init__(self, model: nn.Module, names: Sequence[str], hooks: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._names = list(names)
        self._hooks = list(hooks)
        self._places = [find_place(model, hook).without_heads() for hook in hooks]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        feeds: dict[str, Any] = dict(zip(self._names, inputs, strict=True))
        past = [feeds.pop(name) for name in self._names if name.startswith(PAST_KEY_VALUES)]
        if past:
            feeds["past_key_values"] = _cache(self.model, past)
        seen: dict[Place, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for place in set(self._places):
                stack.enter_context(hooked(self.model, place, keep_in(seen, place)))
            outputs = self.model(**feeds, return_dict=True)
        main = outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]
        kept = [tensor for layer in layers_of_cache(outputs["past_key_values"]) for tensor in layer] if past else []
        return (main, *kept, *(seen[place] for place in self._places))

    def output_names(self) -> list[str]:
        """Return the names of the outputs, in order."""
        past = [name for name in self._names if name.startswith(PAST_KEY_VALUES)]
        main = "logits" if is_decoder(self.model) else "last_hidden_state"
        return [main, *(name.replace(PAST_KEY_VALUES, PRESENT) for name in past), *self._hooks]


def is_decoder(model: nn.Module) -> bool:
    """Tell whether a model predicts the next token, by the name of its class, as transformers does."""
    return "CausalLM" in type(model).__name__ or type(model).__name__.endswith("LMHeadModel")


def _inputs(model: nn.Module, cache: bool) -> tuple[list[str], list[Tensor], list[dict[int, Any]]]:
    """Return the names of the inputs, tensors to trace with, and which of their dimensions are dynamic."""
    config: Any = model.config
    taken = inspect.signature(model.forward).parameters
    decoder = is_decoder(model)
    past = PAST if decoder and cache else 0
    ids = torch.arange(BATCH * POSITIONS).reshape(BATCH, POSITIONS) % config.vocab_size
    most = getattr(config, "max_position_embeddings", None)  # models with a table of positions refuse more
    batch, positions = torch.export.Dim("batch"), torch.export.Dim("sequence", max=most)
    total: Any = torch.export.Dim.DYNAMIC if past else positions  # PyTorch has no dimension that is a sum of two
    known: dict[str, tuple[Tensor, dict[int, Any]]] = {
        INPUT_IDS: (ids, {0: batch, 1: positions}),
        ATTENTION_MASK: (
            torch.ones(BATCH, past + POSITIONS, dtype=torch.int64),
            {0: batch, 1: total},
        ),
        TOKEN_TYPE_IDS: (torch.zeros_like(ids), {0: batch, 1: positions}),
    }
    if decoder:
        known[POSITION_IDS] = (torch.arange(past, past + POSITIONS).expand(BATCH, -1), {0: batch, 1: positions})
        del known[TOKEN_TYPE_IDS]
    chosen = {name: value for name, value in known.items() if name in taken}
    if past:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        earlier = torch.export.Dim("past_sequence", max=most)
        for layer in range(config.num_hidden_layers):
            for part in ("key", "value"):
                chosen[f"{PAST_KEY_VALUES}{layer}.{part}"] = (
                    torch.zeros(BATCH, heads, past, width), {0: batch, 2: earlier},
                )  # fmt: skip
    return list(chosen), [tensor for tensor, _ in chosen.values()], [dims for _, dims in chosen.values()]


def _cache(model: nn.Module, past: Sequence[Tensor]) -> Any:
    """Return transformers' cache of keys and values, of which two for each layer are given."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
        cache.update(keys, values, layer)
    return cache


def _keep_as_value(graph: ir.Graph, hook: str) -> None:
    """Make the output that is called like a hook an inner value of this name."""
    output = next(value for value in graph.outputs if value.name == hook)
    graph.outputs.remove(output)
    node = output.producer()
    if node is not None and node.op_type == "Identity":  # the exporter gives a tensor that is read twice a copy
        source = node.inputs[0]
        assert source is not None
        output.replace_all_uses_with(source)
        graph.remove(node, safe=True)
        if not source.is_graph_output() and not source.is_graph_input():
            source.name = hook


def _cause(error: BaseException) -> str:
    """Return the first line of the error that PyTorch's exporter wraps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
