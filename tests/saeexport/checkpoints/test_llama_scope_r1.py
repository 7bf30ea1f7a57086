"""Llama Scope R1: the layout of OpenMOSS' lm_saes against its equations, and refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import llama_scope_r1
from saeexport.checkpoints.registry import recognise
from tests.support.equations import D_IN, D_SAE, X, check, draw, linked

HOOK = "blocks.15.hook_resid_post"
NORM = 1.75
SCALE = D_IN**0.5 / NORM
W = {name: torch.from_numpy(tensor) for name, tensor in draw("standard").items()}
LOG_THRESHOLD = torch.linspace(-3, 0.5, D_SAE)
CONFIG = {
    "sae_type": "sae",
    "hook_point_in": HOOK,
    "hook_point_out": HOOK,
    "d_model": D_IN,
    "expansion_factor": D_SAE / D_IN,
    "use_decoder_bias": True,
    "use_glu_encoder": False,
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "top_k": 50,
    "sae_pretrained_name_or_path": None,
    "strict_loading": True,
    "use_triton_kernel": False,
    "sparsity_threshold_for_triton_spmm_kernel": 0.99,
    "jumprelu_threshold_window": 2.0,
}
TENSORS = {
    "encoder.weight": W["W_enc"].T.contiguous(),
    "encoder.bias": W["b_enc"],
    "decoder.weight": W["W_dec"].T.contiguous(),
    "decoder.bias": W["b_dec"],
    "log_jumprelu_threshold": LOG_THRESHOLD,
    f"dataset_average_activation_norm.{HOOK}": torch.tensor(NORM),
}
LATER = {
    "W_E": W["W_enc"],
    "b_E": W["b_enc"],
    "W_D": W["W_dec"],
    "b_D": W["b_dec"],
    "activation_function.log_jumprelu_threshold": LOG_THRESHOLD,
    f"dataset_average_activation_norm.{HOOK}": torch.tensor(NORM),
}


def write(path, tensors=TENSORS, absent=(), **changes):
    path = path / "L15R"
    path.mkdir(exist_ok=True)
    save_file(
        {name: tensor for name, tensor in tensors.items() if name not in absent}, path / "sae_weights.safetensors"
    )
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value != "absent"}
    (path / "config.json").write_text(json.dumps(config))
    return path


def expected(scale=SCALE, include=True):
    w = {name: tensor.double().numpy() for name, tensor in W.items()}
    norms = np.linalg.norm(w["W_dec"], axis=1) if include else 1.0
    pre = (X.astype(np.float64) * scale) @ w["W_enc"] + w["b_enc"]
    post = np.where(pre * norms > np.exp(LOG_THRESHOLD.double().numpy()), np.maximum(pre, 0), 0)
    recons = (post @ w["W_dec"] + w["b_dec"]) / scale
    return {"hook_sae_acts_pre": pre, "hook_sae_acts_post": post, "hook_sae_recons": recons}


@pytest.mark.parametrize("tensors", [TENSORS, LATER], ids=["Linear", "later"])
@pytest.mark.parametrize("include", [True, False, "absent"])
@pytest.mark.parametrize("given", ["", "config.json", "sae_weights.safetensors"])
def test_llama_scope_r1(tmp_path, tensors, include, given):
    path = linked(write(tmp_path, tensors, sparsity_include_decoder_norm=include), tmp_path) / given
    assert recognise(path) is llama_scope_r1
    sae = load(path)
    assert (sae.architecture, sae.cfg.hook_name, sae.cfg.apply_b_dec_to_input) == ("jumprelu", HOOK, False)
    check(sae, expected(include=bool(include)))


def test_the_norm_may_be_folded_already(tmp_path):
    check(load(write(tmp_path, norm_activation="inference")), expected(scale=1.0))


def test_the_norm_may_be_given(tmp_path):
    path = write(tmp_path, absent=[f"dataset_average_activation_norm.{HOOK}"])
    with pytest.raises(
        CheckpointError, match=r"does not hold the average norm .*norm_scaling_factor=F"
    ):
        load(path)
    check(load(path, norm_scaling_factor=SCALE), expected())


def test_weights_are_widened_before_they_are_folded(tmp_path):
    weights = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")  # thresholds are always float32
    narrow = {name: tensor.bfloat16() if name in weights else tensor for name, tensor in TENSORS.items()}
    path = write(tmp_path, narrow)
    assert {parameter.dtype for parameter in load(path).parameters()} == {torch.bfloat16}
    product = (W["W_enc"].bfloat16().double() * SCALE).float()
    assert torch.equal(load(path, dtype="float32").W_enc.detach().cpu(), product)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "topk"}, "act_fn is 'topk'; it must be one of jumprelu"),
        ({"sae_type": "crosscoder"}, "sae_type is 'crosscoder'; it must be one of sae"),
        (
            {"norm_activation": "token-wise"},
            "norm_activation is 'token-wise'; it must be one of dataset-wise",
        ),
        ({"use_decoder_bias": False}, "use_decoder_bias is False; it must be True"),
        ({"use_glu_encoder": True}, "use_glu_encoder is True; it must be False"),
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "transcoders are not supported"),
        ({"expansion_factor": 2}, r"holds .*W_enc \[6, 16\].* of its config has .*W_enc \[6, 12\]"),
        ({"feature_scale": 2}, "unknown options, .*: feature_scale = 2"),
        ({"absent": ["log_jumprelu_threshold"]}, r"lacks the tensors \['log_jumprelu_threshold'\]"),
        (
            {"tensors": {**TENSORS, f"dataset_average_activation_norm.{HOOK}": torch.tensor(0.0)}},
            "the average norm of the activations is 0.0; it must be positive",
        ),
    ],
)
def test_llama_scope_r1_refusals(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(write(tmp_path, **changes))
