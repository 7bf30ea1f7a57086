"""Llama Scope, Goodfire and OpenAI checkpoints: their published layouts against the equations, and refusals."""

import json
from collections import OrderedDict
from decimal import Decimal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import goodfire, llama_scope, openai
from saeexport.checkpoints.registry import recognise
from saeexport.checkpoints.request import Request
from tests.support.equations import D_IN, D_SAE, K, X, check, draw, is_mapped, linked, reference

W = {name: torch.from_numpy(tensor) for name, tensor in draw("standard").items()}
NORM = 8.75
SCALE = D_IN**0.5 / NORM
SCOPE = {  # as published
    "device": "cuda:0",
    "seed": 42,
    "dtype": "torch.float32",
    "hook_point_in": "blocks.15.hook_resid_post",
    "hook_point_out": "blocks.15.hook_resid_post",
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "expansion_factor": 8,
    "d_model": D_IN,
    "d_sae": D_SAE,
    "bias_init_method": "all_zero",
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.75390625,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": NORM, "out": NORM},
    "decoder_exactly_fixed_norm": False,
    "sparsity_include_decoder_norm": True,
    "use_glu_encoder": False,
    "init_decoder_norm": 0.5,
    "init_encoder_norm": None,
    "init_encoder_with_decoder_transpose": True,
    "lp": 1,
    "l1_coefficient": 8e-05,
    "l1_coefficient_warmup_steps": 78125,
    "top_k": 50,
    "k_warmup_steps": 78125,
    "use_batch_norm_mse": True,
    "use_ghost_grads": False,
    "tp_size": 1,
    "ddp_size": 1,
}


def linears(encoder, decoder, dtype=torch.float32):
    """Return the state dict of two `torch.nn.Linear`s."""
    return {
        f"{encoder}.weight": W["W_enc"].T.contiguous().to(dtype),
        f"{encoder}.bias": W["b_enc"].to(dtype),
        f"{decoder}.weight": W["W_dec"].T.contiguous().to(dtype),
        f"{decoder}.bias": W["b_dec"].to(dtype),
    }


def llama(path, stored=torch.float32, tensors=None, **changes):
    path = path / "Llama3_1-8B-Base-L15R-8x"
    (path / "checkpoints").mkdir(parents=True)
    save_file(tensors or linears("encoder", "decoder", stored), path / "checkpoints" / "final.safetensors")
    config = {key: value for key, value in {**SCOPE, **changes}.items() if value != "absent"}
    (path / "hyperparams.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("include", [True, False, "absent"])
def test_llama_scope(tmp_path, include):
    path = llama(tmp_path, sparsity_include_decoder_norm=include)
    assert recognise(path) is llama_scope
    sae = load(path)
    assert (sae.architecture, sae.cfg.hook_name) == ("jumprelu", "blocks.15.hook_resid_post")
    w = {name: tensor.double().numpy() for name, tensor in W.items()}
    norms = np.linalg.norm(w["W_dec"], axis=1) if include else 1.0
    pre = (X.astype(np.float64) * SCALE) @ w["W_enc"] + w["b_enc"]
    post = np.where(pre * norms > SCOPE["jump_relu_threshold"] * SCALE, np.maximum(pre, 0), 0)
    recons = (post @ w["W_dec"] + w["b_dec"]) / SCALE
    check(sae, {"hook_sae_acts_pre": pre, "hook_sae_acts_post": post, "hook_sae_recons": recons})


def test_llama_scope_is_bfloat16_as_stored(tmp_path):
    sae = load(llama(tmp_path, torch.bfloat16, dtype="torch.bfloat16"))
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.bfloat16}
    assert torch.equal(sae.W_dec.cpu(), W["W_dec"].bfloat16() / SCALE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "topk"}, "act_fn is 'topk'; it must be one of jumprelu"),
        ({"norm_activation": "token-wise"}, "norm_activation is 'token-wise'; it must be one of dataset-wise"),
        ({"use_decoder_bias": False}, "use_decoder_bias is False; it must be True"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder is True; it must be False"),
        ({"apply_decoder_bias_to_pre_encoder": "absent"}, "has no 'apply_decoder_bias_to_pre_encoder'"),
        ({"use_glu_encoder": True}, "use_glu_encoder is True; it must be False"),
        (
            {"hook_point_out": "blocks.15.hook_mlp_out"},
            "hook_point_out is .*hook_mlp_out'; .*transcoders are not",
        ),
        (
            {"dataset_average_activation_norm": {"in": 8.75, "out": 2.0}},
            "it must have the same positive",
        ),
        (
            {"dataset_average_activation_norm": {}},
            "norm is {}; it must have the same positive",
        ),
        ({"dataset_average_activation_norm": "absent"}, "has no 'dataset_average_activation_norm'"),
        ({"jump_relu_threshold": "absent"}, "has no 'jump_relu_threshold'"),
        ({"jump_relu_threshold": -0.5}, "jump_relu_threshold is -0.5; with a negative threshold, features can be neg"),
        ({"dtype": "torch.bfloat16"}, "dtype is 'torch.bfloat16'; checkpoints/final.safetensors holds float32"),
        ({"feature_scale": 2}, "unknown options, .*: feature_scale = 2"),
        ({"d_sae": 15}, r"W_enc \[6, 16\].* of its config has .*W_enc \[6, 15\]"),
        (
            {"tensors": linears("encoder", "decoding")},
            r"lacks the tensors \['decoder.bias', 'decoder.weight'\] and has the unknown tensors \['decodi",
        ),
    ],
)
def test_llama_scope_refusals(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(llama(tmp_path, **changes))


@pytest.mark.parametrize("name", ["Llama-3.3-70B-Instruct-SAE-l50.pt", "Llama-3.1-8B-Instruct-SAE-l19.pth"])
def test_goodfire(tmp_path, name):
    path = tmp_path / "files" / name
    path.parent.mkdir()
    torch.save(linears("encoder_linear", "decoder_linear"), path)
    for place in (path, linked(path.parent, tmp_path) / name):
        assert recognise(place) is goodfire
        sae = load(place)
        assert (sae.architecture, sae.cfg.hook_name, sae.cfg.apply_b_dec_to_input) == ("standard", "", False)
        check(sae, reference("standard", W, subtract=False))
    if goodfire.read(path, Request()).W_enc.device.type == "cpu":
        assert is_mapped(goodfire.read(path, Request()).W_dec, path)


def test_a_goodfire_file_with_more_tensors_is_refused(tmp_path):
    torch.save({**linears("encoder_linear", "decoder_linear"), "k": torch.tensor(3)}, tmp_path / "sae.pt")
    with pytest.raises(CheckpointError, match=r"lacks the tensors \[\] and has the unknown tensors \['k'\]"):
        load(tmp_path / "sae.pt")


TOPK = {"activation": "TopK", "activation_state_dict": OrderedDict(k=K, postact_fn="ReLU")}
RELU = {"activation": "ReLU", "activation_state_dict": OrderedDict()}


def gpt2(path, **values):
    """Write a file with what `Autoencoder.state_dict` returns."""
    stored = OrderedDict(
        {
            "pre_bias": W["b_dec"],
            "latent_bias": W["b_enc"],
            "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
            "encoder.weight": W["W_enc"].T.contiguous(),
            "decoder.weight": W["W_dec"].T.contiguous(),
            **values,
        }
    )
    torch.save(OrderedDict((name, value) for name, value in stored.items() if value is not None), path / "7.pt")
    return path / "7.pt"


@pytest.mark.parametrize("values", [RELU, {}, {"latents_mean_square": torch.zeros(D_SAE)}, {"activation": "ReLU"}])
def test_openai_with_relu(tmp_path, values):
    path = gpt2(tmp_path, **values)
    assert recognise(path) is openai
    sae = load(path)
    assert (sae.architecture, sae.cfg.normalize_activations) == ("standard", "none")
    check(sae, reference("standard", W))


def test_openai_with_topk(tmp_path):
    path = gpt2(tmp_path, **TOPK)
    assert recognise(path) is openai
    sae = load(path)
    assert (sae.architecture, sae.cfg.k, sae.cfg.normalize_activations) == ("topk", K, "layer_norm")
    check(sae, reference("topk", W, normalization="layer_norm"))
    if openai.read(path, Request()).W_enc.device.type == "cpu":
        assert is_mapped(openai.read(path, Request()).W_enc, path)


def topk(**state):
    return {"activation": "TopK", "activation_state_dict": OrderedDict(state)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation": "Identity"}, "7.pt: activation is 'Identity'; it must be one of ReLU, TopK"),
        ({"activation": "TopK"}, "The activation_state_dict of .*7.pt has no 'k'"),
        (topk(k=K, postact_fn="Identity"), "postact_fn is 'Identity'; it must be one of ReLU"),
        (topk(k=K), "has no 'postact_fn'"),
        (topk(k="4", postact_fn="ReLU"), "k is '4'; it must be of the type int"),
        (topk(k=K, postact_fn="ReLU", scale=2), "unknown options, .*: scale = 2"),
        ({"activation": "ReLU", "activation_state_dict": OrderedDict(k=3)}, "unknown options, .*: k = 3"),
        ({"normalize": True}, "unknown options, .*: normalize = True"),
        (
            {"decoder.weight": None, "decoder.linear.weight": W["W_enc"].T},
            r"lacks the tensors \['decoder.weight'\] and has the unknown tensors",
        ),
        ({"encoder.weight": W["W_enc"]}, r"holds .*W_dec \[16, 6\].* has .*W_dec \[6, 16\]"),
    ],
)
def test_openai_refusals(tmp_path, values, message):
    with pytest.raises(CheckpointError, match=message):
        load(gpt2(tmp_path, **values))


@pytest.mark.parametrize("sizes", [{"d_sae": 2**60}, {"d_sae": -1}, {"d_model": -6}, {"d_model": 0}])
def test_sizes_of_a_llama_scope_config_that_do_not_fit_are_not_allocated(tmp_path, sizes):
    with pytest.raises(CheckpointError, match="the jumprelu SAE of its config has|must be at least 1"):
        load(llama(tmp_path, **sizes))


@pytest.mark.parametrize("value", [Decimal("1"), print])
def test_nothing_else_is_unpickled(tmp_path, value):
    path = gpt2(tmp_path, activation=value)
    assert not openai.recognises(path)
    assert not goodfire.recognises(path)
    with pytest.raises(CheckpointError, match="7.pt cannot be read"):
        load(path)


def test_a_file_that_is_not_a_dict_of_names(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "7.pt")
    with pytest.raises(CheckpointError, match="holds a list, not a dict of named values"):
        openai.read(tmp_path / "7.pt", Request())
