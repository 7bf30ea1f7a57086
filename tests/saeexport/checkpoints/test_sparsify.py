"""sparsify checkpoints: SAEs, transcoders and skip transcoders against the equations, and refusals."""

import numpy as np
import pytest

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import sparsify
from saeexport.checkpoints.registry import recognise
from saeexport.checkpoints.request import Request
from tests.support.equations import D_IN, D_SAE, K, X, check, draw, is_mapped, largest, linked, reference, write

# As sparsify 1.3.3 writes it, and as its first releases did.
CONFIG = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": D_SAE,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D_IN,
}
OLD = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": D_SAE, "k": K, "signed": False, "d_in": D_IN}
W = {
    **draw("topk"),
    "W_skip": np.random.default_rng(11).normal(0, 0.4, (D_IN, D_IN)).astype(np.float32),
}


def tensors(skip=False, **changes):
    stored = {
        "encoder.weight": W["W_enc"].T,
        "encoder.bias": W["b_enc"],
        "W_dec": W["W_dec"],
        "b_dec": W["b_dec"],
        **({"W_skip": W["W_skip"]} if skip else {}),
        **changes,
    }
    return {name: tensor for name, tensor in stored.items() if tensor is not None}


def folder(path, config=CONFIG, stored=None, name="layers.3"):
    stored = tensors(config.get("skip_connection", False)) if stored is None else stored
    return write(path / name, config, stored, "cfg.json", "sae.safetensors")


def equations(subtract=True, skip=False):
    """Return the k largest after a ReLU, as `fused_encoder` and `SparseCoder.forward` compute them."""
    w = {name: tensor.astype(np.float64) for name, tensor in W.items()}
    x = X.astype(np.float64)
    pre = (x - w["b_dec"] if subtract else x) @ w["W_enc"] + w["b_enc"]
    post = largest(np.maximum(pre, 0), np.maximum(pre, 0), K)
    recons = post @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if skip else 0)
    return {"hook_sae_acts_pre": pre, "hook_sae_acts_post": post, "hook_sae_recons": recons}


@pytest.mark.parametrize("config", [CONFIG, OLD])
def test_an_sae(tmp_path, config):
    path = folder(tmp_path, config)
    assert recognise(path) is sparsify
    sae = load(path)
    assert (sae.architecture, sae.cfg.k, sae.cfg.hook_name) == ("topk", K, "blocks.3.hook_resid_post")
    check(sae, equations())


@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_transcoders(tmp_path, transcode, skip):
    sae = load(folder(tmp_path, CONFIG | {"transcode": transcode, "skip_connection": skip}, name="layers.3.mlp"))
    expected = "topk_skip_transcoder" if skip else "topk_transcoder" if transcode else "topk"
    assert (sae.architecture, sae.cfg.hook_name) == (expected, "")
    assert sae.architecture in sparsify.ARCHITECTURES
    check(sae, equations(subtract=not transcode, skip=skip))


@pytest.mark.parametrize("config", [{"num_latents": 0}, {"num_latents": None}])
def test_the_width_follows_from_the_expansion_factor(tmp_path, config):
    wide = {"encoder.weight": np.ones((3 * D_IN, D_IN)), "encoder.bias": np.ones(3 * D_IN)}
    stored = {**wide, "W_dec": np.ones((3 * D_IN, D_IN)), "b_dec": np.zeros(D_IN)}
    sae = load(folder(tmp_path, CONFIG | config | {"expansion_factor": 3}, stored))
    assert sae.cfg.d_sae == 3 * D_IN


@pytest.mark.parametrize(
    ("name", "hook_name"),
    [
        ("layers.11", "blocks.11.hook_resid_post"),
        ("gpt_neox.layers.0", "blocks.0.hook_resid_post"),
        ("layers.11.mlp", ""),
        ("layers.11.attention", ""),
        ("embed_tokens", ""),
        ("my-layers.x", ""),
    ],
)
def test_the_hook_name_is_the_folders_where_it_is_certain(tmp_path, name, hook_name):
    assert load(folder(tmp_path, name=name)).cfg.hook_name == hook_name


def test_a_file_of_the_folder_and_links(tmp_path):
    path = folder(tmp_path)
    snapshot = linked(path, tmp_path)
    for place in (path / "cfg.json", path / "sae.safetensors", snapshot):
        check(load(place), equations())


def test_nothing_is_copied(tmp_path):
    path = folder(tmp_path)
    sae = sparsify.read(path, Request())
    if sae.W_enc.device.type == "cpu":
        assert is_mapped(sae.W_enc, path / "sae.safetensors")
        assert is_mapped(sae.W_dec, path / "sae.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "groupmax"}, "cfg.json: activation is 'groupmax'; it is not supported: it keeps the largest"),
        ({"signed": True, "transcode": True}, "cfg.json: signed is True; only SAEs of sparsify have negative"),
        ({"pre_act_bias": 2}, "unknown options, .*: pre_act_bias = 2"),
        ({"k": None}, "cfg.json has no 'k'"),
        ({"k": 17}, r"k is 17; it must be from 1 to d_sae = 16"),
        ({"d_in": None}, "cfg.json has no 'd_in'"),
        ({"num_latents": 15}, r"W_enc \[6, 16\].* of its config has .*W_enc \[6, 15\]"),
        ({"transcode": "yes"}, "transcode is 'yes'; it must be of the type bool"),
    ],
)
def test_configs_that_are_refused(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path, CONFIG | changes))


@pytest.mark.parametrize(
    ("stored", "config", "message"),
    [
        (tensors(W_dec=None), {}, r"lacks the tensors \['W_dec'\] and has the unknown tensors \[\]"),
        (tensors(skip=True), {}, r"lacks the tensors \[\] and has the unknown tensors \['W_skip'\]"),
        (tensors(), {"skip_connection": True}, r"lacks the tensors \['W_skip'\]"),
        (tensors(W_dec=W["W_dec"].T), {}, r"W_dec \[6, 16\].* has .*W_dec \[16, 6\]"),
        (tensors(b_dec=W["b_dec"].astype(np.float16)), {}, "mixes the dtypes float16, float32"),
    ],
)
def test_tensors_that_are_refused(tmp_path, stored, config, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path, CONFIG | config, stored))


def test_a_signed_sae_keeps_the_largest_absolute_values(tmp_path):
    path = folder(tmp_path, OLD | {"signed": True})
    sae = load(path)
    assert (sae.architecture, sae.cfg.k, sae.cfg.hook_name) == ("abstopk", K, "blocks.3.hook_resid_post")
    expected = reference("abstopk", W)
    assert (expected["hook_sae_acts_post"] < 0).any()
    check(sae, expected)


def test_an_sae_in_a_folder_of_huggingface_hub(tmp_path):
    path = write(tmp_path / "layers.3", CONFIG, tensors(), "config.json", "model.safetensors")
    assert recognise(path) is sparsify
    check(load(path), equations())
