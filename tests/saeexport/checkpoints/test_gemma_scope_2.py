"""Gemma Scope 2 checkpoints against the equations, and refusals."""

import numpy as np
import pytest
import torch

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import gemma_scope_2
from saeexport.checkpoints.registry import recognise
from tests.support.equations import D_SAE, check, draw, is_mapped, linked, reference, write

LOWER = {"W_enc": "w_enc", "W_dec": "w_dec"}
SAE = {
    "hf_hook_point_in": "model.layers.17.output",
    "hf_hook_point_out": "model.layers.17.output",
    "width": D_SAE,
    "model_name": "google/gemma-3-4b-pt",
    "architecture": "jump_relu",
    "l0": 60,
    "affine_connection": False,
    "type": "sae",
}
TRANSCODER = {
    **SAE,
    "hf_hook_point_in": "model.layers.12.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output",
    "type": "transcoder",
}


def folder(path, config, tensors):
    stored = {LOWER.get(name, name): tensor for name, tensor in tensors.items() if tensor is not None}
    if "W_skip" in stored:
        stored["affine_skip_connection"] = stored.pop("W_skip").T
    config = {key: value for key, value in config.items() if value != "absent"}
    return write(path / "sae", config, stored, "config.json", "params.safetensors")


@pytest.mark.parametrize("name", ["", "config.json", "params.safetensors"])
def test_gemma_scope_2(tmp_path, name):
    path = linked(folder(tmp_path, SAE, draw("jumprelu")), tmp_path) / name
    assert recognise(path) is gemma_scope_2
    sae = load(path)
    assert (sae.architecture, sae.cfg.hook_name) == ("jumprelu", "blocks.17.hook_resid_post")
    assert sae.cfg.model_name == "google/gemma-3-4b-pt"
    check(sae, reference("jumprelu", draw("jumprelu"), subtract=False))


@pytest.mark.parametrize("architecture", ["jumprelu_transcoder", "jumprelu_skip_transcoder"])
@pytest.mark.parametrize("kind", ["transcoder", "absent"])
def test_gemma_scope_2_transcoders(tmp_path, architecture, kind):
    config = {**TRANSCODER, "affine_connection": "skip" in architecture, "type": kind}
    sae = load(folder(tmp_path, config, draw(architecture)))
    assert (sae.architecture, sae.cfg.hook_name) == (architecture, "")
    assert (sae.cfg.hook_name_out, sae.cfg.use_error_term) == ("blocks.12.hook_mlp_out", False)
    check(sae, reference(architecture, draw(architecture), subtract=False))


def test_gemma_scope_2_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = folder(tmp_path, {**TRANSCODER, "affine_connection": True}, draw("jumprelu_skip_transcoder"))
    for name, parameter in load(path).named_parameters():
        assert is_mapped(parameter, path / "params.safetensors"), name


@pytest.mark.parametrize(
    ("point", "hook_name"),
    [
        ("model.layers.3.output", "blocks.3.hook_resid_post"),
        ("model.layers.3.self_attn.o_proj.input", "blocks.3.attn.hook_z"),
        ("model.layers.3.post_feedforward_layernorm.output", "blocks.3.hook_mlp_out"),
        ("model.layers.3.mlp.output", ""),
        ("somewhere", ""),
        ("absent", ""),
    ],
)
def test_gemma_scope_2_names_the_hooks_that_it_knows(tmp_path, point, hook_name):
    config = {**SAE, "hf_hook_point_in": point, "hf_hook_point_out": "absent"}
    assert load(folder(tmp_path, config, draw("jumprelu"))).cfg.hook_name == hook_name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "relu"}, "architecture is 'relu'; it must be one of jump_relu"),
        ({"type": "crosscoder"}, "type is 'crosscoder'; it must be one of sae, transcoder"),
        ({"affine_connection": True}, "is of an SAE with affine_connection True from 'model.layers.17.output' to"),
        ({"hf_hook_point_out": "model.layers.18.output"}, "to 'model.layers.18.output'; only a transcoder can have a"),
        ({"width": 17}, "width is 17; params.safetensors holds 16 features, so one of the two is of another SAE"),
        ({"input_scale": 0.5}, "unknown options, which may change what the SAE computes: input_scale = 0.5"),
    ],
)
def test_gemma_scope_2_refuses(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path, {**SAE, **changes}, draw("jumprelu")))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SAE, {"W_enc": None}, "params.safetensors has no W_enc; it holds W_dec, b_dec, b_enc, threshold"),
        (SAE, {"b_enc": None}, r"the jumprelu SAE of its config has .*b_enc \[16\]"),
        (SAE, {"W_skip": np.ones((5, 6), np.float32)}, r"holds .*W_skip \[5, 6\].*; the jumprelu SAE"),
        (SAE, {"b_dec": np.ones(6, np.float16)}, "mixes the dtypes float16, float32"),
        ({**TRANSCODER, "affine_connection": True}, {}, r"the jumprelu_skip_transcoder SAE of .*W_skip \[6, 6\]"),
        (TRANSCODER, {"W_dec": np.ones((2, 16, 6), np.float32)}, r"W_dec of .* has shape \[2, 16, 6\]; it must be a m"),
    ],
)
def test_gemma_scope_2_tensors_that_do_not_fit(tmp_path, config, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path, config, {**draw("jumprelu"), **changes}))


@pytest.mark.parametrize(
    ("place", "architecture", "hook_name", "hook_name_out"),
    [
        ("resid_post/layer_9_width_16k_l0_small", "jumprelu", "blocks.9.hook_resid_post", ""),
        ("resid_post_all/layer_9_width_16k_l0_small", "jumprelu", "blocks.9.hook_resid_post", ""),
        ("attn_out/layer_9_width_16k_l0_big", "jumprelu", "blocks.9.attn.hook_z", ""),
        ("mlp_out/layer_9_width_16k_l0_big", "jumprelu", "blocks.9.hook_mlp_out", ""),
        ("transcoder/layer_9_width_16k_l0_small", "jumprelu_transcoder", "", "blocks.9.hook_mlp_out"),
        ("transcoder_all/layer_9_width_1m_l0_big_affine", "jumprelu_skip_transcoder", "", "blocks.9.hook_mlp_out"),
    ],
)
@pytest.mark.parametrize("name", ["", "params.safetensors"])
def test_gemma_scope_2_without_a_config(tmp_path, place, architecture, hook_name, hook_name_out, name):
    path = folder(tmp_path / "gemma-scope-2-4b-pt" / place, SAE, draw(architecture))
    (path / "config.json").unlink()
    assert recognise(path / name) is gemma_scope_2
    sae = load(path / name)
    assert (sae.architecture, sae.cfg.hook_name, sae.cfg.model_name) == (
        architecture,
        hook_name,
        "google/gemma-3-4b-pt",
    )
    assert getattr(sae.cfg, "hook_name_out", "") == hook_name_out
    check(sae, reference(architecture, draw(architecture), subtract=False))


def test_gemma_scope_2_without_anything_that_tells_what_it_is(tmp_path):
    path = folder(tmp_path, SAE, draw("jumprelu"))
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no folder above it is named after an activation"):
        load(path)
    assert load(path, transcoder=False).architecture == "jumprelu"
    assert load(path, transcoder=True).architecture == "jumprelu_transcoder"
    skip = folder(tmp_path / "with_skip", SAE, draw("jumprelu_skip_transcoder"))
    (skip / "config.json").unlink()
    assert load(skip).architecture == "jumprelu_skip_transcoder"
    with pytest.raises(CheckpointError, match="only a transcoder can have a skip connection"):
        load(skip, transcoder=False)


def test_the_nearest_folder_says_what_it_is(tmp_path):
    path = folder(tmp_path / "transcoder" / "resid_post" / "layer_9_width_16k_l0_small", SAE, draw("jumprelu"))
    (path / "config.json").unlink()
    assert load(path).architecture == "jumprelu"
