"""Attention SAEs of GPT-2: values against the equations, distinction from state dicts, and refusals."""

import json

import numpy as np
import pytest
import torch

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import attention_gpt2, state_dict
from saeexport.checkpoints.registry import recognise
from tests.support.equations import D_IN, D_SAE, X, check, draw, is_mapped, linked, reference

# The keys of the published ones.
CONFIG = {
    "seed": 49,
    "batch_size": 4096,
    "lr": 0.0012,
    "num_tokens": 2000000000,
    "dict_mult": 32,
    "seq_len": 128,
    "enc_dtype": "fp32",
    "model_name": "gpt2-small",
    "site": "z",
    "layer": 5,
    "device": "cuda",
    "head": "cat",
    "concat_heads": True,
    "resample_scheme": "anthropic",
    "act_name": "blocks.5.attn.hook_z",
    "act_size": D_IN,
    "dict_size": D_SAE,
    "name": "gpt2-small_5_24576_z",
}
RUN = "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_v9"


def write(folder, config=CONFIG, **changes):
    tensors = {**draw("standard"), **changes}
    folder.mkdir(exist_ok=True)
    (folder / f"{RUN}_cfg.json").write_text(json.dumps(config))
    path = folder / f"{RUN}.pt"
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def test_values(tmp_path):
    path = write(tmp_path)
    assert recognise(path) is attention_gpt2
    sae = load(path)
    assert (sae.architecture, sae.cfg.hook_name, sae.cfg.dtype) == ("standard", "blocks.5.attn.hook_z", torch.float32)
    assert sae.cfg.model_name == "gpt2-small"
    check(sae, reference("standard", draw("standard")))
    check(sae, reference("standard", draw("standard")), X.reshape(40, 3, 2))


def test_the_hubs_links_and_no_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = linked(write(tmp_path / "sae").parent, tmp_path) / f"{RUN}.pt"
    sae = load(path)
    check(sae, reference("standard", draw("standard")))
    assert all(is_mapped(parameter, path) for parameter in sae.parameters())


def test_a_state_dict_is_not_an_attention_sae(tmp_path):
    config = {"d_in": D_IN, "d_sae": D_SAE, "hook_name": "", "normalize_activations": "layer_norm"}
    path = write(tmp_path, config)
    assert recognise(path) is state_dict
    check(load(path), reference("standard", draw("standard"), normalization="layer_norm"))


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"enc_dtype": "fp16"}, {}, f"enc_dtype is 'fp16'; {RUN}.pt holds float32"),
        ({"enc_dtype": "int8"}, {}, "enc_dtype is 'int8'; it must be one of fp32, fp16, bf16"),
        ({"sae_type": "batchtopk", "top_k": 32}, {}, "may change what the SAE computes: sae_type = 'batchtopk', top_k"),
        ({"act_size": "6"}, {}, "act_size is '6'; it must be of the type int"),
        ({"dict_size": 17}, {}, r"W_enc \[6, 16\].*; the standard SAE of its config has .*W_enc \[6, 17\]"),
        ({}, {"b_enc": None}, r"the standard SAE of its config has .*b_enc \[16\]"),
        ({}, {"b_dec": np.ones(6)}, "mixes the dtypes float32, float64"),
    ],
)
def test_what_is_refused(tmp_path, config, tensors, message):
    with pytest.raises(CheckpointError, match=message.replace("+", r"\+")):
        load(write(tmp_path, {**CONFIG, **config}, **tensors))


@pytest.mark.parametrize(
    ("key", "value"), [("architecture", ["standard"]), ("k", 2.5), ("apply_b_dec_to_input", "yes"), ("d_out", "5")]
)
def test_the_types_of_a_state_dicts_options(tmp_path, key, value):
    config = {"d_in": D_IN, "d_sae": D_SAE, "hook_name": "", key: value}
    with pytest.raises(CheckpointError, match=f"{key} is {value!r}; it must be of the type".replace("[", r"\[")):
        load(write(tmp_path, config))
