"""Small Hugging Face models with random weights, saved as folders, for tests without a download.

The gains and biases of norms are drawn as well: with gains of 1 and biases of 0, the tensors before and after a gain
would be the same, and a test could not tell them apart.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import nn

LAYERS, WIDTH, HEADS, VOCABULARY = 3, 64, 4, 500
GPT = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "vocab_size": VOCABULARY, "n_positions": 128}
LLAMA = {
    "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
}  # fmt: skip
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
HEAD_DIM = {"head_dim": 32}
"""Other than `WIDTH / HEADS`, as in Qwen3 and Gemma, so that `hook_z` is wider than the residual stream."""

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", NEOX),
    "roberta": ("RobertaModel", "RobertaConfig", NEOX),
    "mpnet": ("MPNetModel", "MPNetConfig", NEOX),
    "distilbert": (
        "DistilBertModel", "DistilBertConfig",
        {"n_layers": LAYERS, "dim": WIDTH, "n_heads": HEADS, "hidden_dim": 96, "vocab_size": VOCABULARY},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "mistral": ("MistralForCausalLM", "MistralConfig", LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", LLAMA | HEAD_DIM),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", LLAMA | HEAD_DIM),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX),
    "gpt_neox_sequential": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX | {"use_parallel_residual": False}),
}  # fmt: skip
"""Name to the class of the model, the class of its config, and the config."""

ENCODERS = ("bert", "roberta", "mpnet", "distilbert")
DECODERS = tuple(name for name in MODELS if name not in ENCODERS)


def build(name: str, **config: Any) -> nn.Module:
    """Return a model of `MODELS` with random weights, in evaluation mode.

    Args:
        name: One of `MODELS`.
        config: Further options of its config.
    """
    kind, config_kind, options = MODELS[name]
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made = getattr(transformers, config_kind)(**ids | options | config)
    made._attn_implementation = "eager"
    model: nn.Module = getattr(transformers, kind)(made)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif "embed" in path or "wte" in path:
                parameter.mul_(20)  # as large as what the blocks add to them
    return model.eval()


def save(name: str, folder: Path, **config: Any) -> Path:
    """Write a model of `MODELS` with a tokenizer to a folder, and return the folder."""
    build(name, **config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@functools.cache
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of single ASCII characters, after "<pad>", "<s>" and "</s>"."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(i): i - 29 for i in range(32, 127)}
    made = Tokenizer(WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def saved(tmp_path_factory: Any) -> Callable[..., Path]:
    """Return `save` with a cache, for a fixture of the session."""
    folders: dict[str, Path] = {}

    def folder(name: str, **config: Any) -> Path:
        key = f"{name}-{sorted(config.items())}"
        if key not in folders:
            folders[key] = save(name, tmp_path_factory.mktemp(name), **config)
        return folders[key]

    return folder
