"""One small checkpoint of every format and every kind of file, as the tests of the formats write them."""

import json
import shutil

import numpy as np
import torch

from tests.saeexport.checkpoints import (
    test_attention,
    test_dictionary_learning,
    test_gemma_scope,
    test_gemma_scope_2,
    test_llama_scope_r1,
    test_others,
    test_qwen_scope,
    test_saelens,
    test_saelens_legacy,
    test_sentence_transformers,
    test_sparsify,
    test_transcoders,
)
from tests.support.equations import D_IN, D_SAE, draw
from tests.support.samples import TINY, make_sae


def write_checkpoints(folder):
    """Write each checkpoint to a folder of its own in `folder`, which must not exist.

    Returns:
        The path of each checkpoint relative to its own folder, by the name of that folder.
    """
    paths = {}
    for name, write in WRITERS.items():
        (folder / name).mkdir(parents=True)
        paths[name] = write(folder / name).relative_to(folder / name)
    return paths


def _goodfire(path):
    path /= "Llama-3.1-8B-Instruct-SAE-l19.pth"
    torch.save(test_others.linears("encoder_linear", "decoder_linear"), path)
    return path


def _state_dict(path):
    config = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "hook_name": "blocks.0.hook_resid_pre"}
    (path / "cfg.json").write_text(json.dumps(config))
    torch.save(make_sae(D_IN, D_SAE).state_dict(), path / "sae.pt")
    return path / "sae.pt"


WRITERS = {
    "artifact": lambda path: shutil.copytree(TINY, path / "tiny"),
    "saelens": lambda path: test_saelens.folder(path, "jumprelu"),
    "saelens_legacy": lambda path: test_saelens_legacy.folder(path, test_saelens_legacy.LAST, draw("standard")),
    "gemma_scope": lambda path: test_gemma_scope.npz(path / "sae", **draw("jumprelu")),
    "gemma_scope, compressed": lambda path: test_gemma_scope.npz(path / "sae", np.savez_compressed, **draw("jumprelu")),
    "gemma_scope_2": lambda path: test_gemma_scope_2.folder(path, test_gemma_scope_2.SAE, draw("jumprelu")),
    "attention_gpt2": lambda path: test_attention.write(path / "sae"),
    "dictionary_learning": lambda path: test_dictionary_learning.folder(path, "BatchTopKSAE"),
    "sparsify": test_sparsify.folder,
    "llama_scope": test_others.llama,
    "llama_scope_r1": test_llama_scope_r1.write,
    "qwen_scope": lambda path: test_qwen_scope.qwen(path / test_qwen_scope.REPOSITORY),
    "deepseek_r1": lambda path: test_qwen_scope.deepseek(path / test_qwen_scope.DEEPSEEK),
    "circuit_tracer": lambda path: test_transcoders.transcoder(path, "jumprelu_transcoder"),
    "circuit_tracer_clt": lambda path: test_transcoders.clt(path) / "W_enc_0.safetensors",
    "sentence_transformers": test_sentence_transformers.write,
    "goodfire": _goodfire,
    "openai": test_others.gpt2,
    "state_dict": _state_dict,
}
