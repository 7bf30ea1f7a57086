"""SAELens checkpoints before version 6: their older keys against the equations, and refusals."""

import numpy as np
import pytest
import torch

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import saelens_legacy
from saeexport.checkpoints.registry import recognise
from tests.support.equations import D_IN, D_SAE, K, check, draw, linked, reference, write

# As in the published residual-stream SAEs of GPT-2 small. The keys that name the SAE were the last ones to change.
FIRST = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.8.hook_resid_pre",
    "hook_point_layer": 8,
    "hook_point_head_index": None,
    "dataset_path": "Skylion007/openwebtext",
    "is_dataset_tokenized": False,
    "context_size": 128,
    "use_cached_activations": False,
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "torch.float32",
    "device": "cuda",
    "b_dec_init_method": "geometric_median",
    "expansion_factor": 32,
    "l1_coefficient": 8e-05,
    "lp_norm": 1,
    "n_checkpoints": 10,
}
LAST = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "apply_b_dec_to_input": False,
    "finetuning_scaling_factor": False,
    "context_size": 1024,
    "model_name": "gemma-2-2b",
    "hook_name": "blocks.0.hook_resid_post",
    "hook_layer": 0,
    "hook_head_index": None,
    "prepend_bos": True,
    "dataset_path": "monology/pile-uncopyrighted",
    "dataset_trust_remote_code": True,
    "normalize_activations": "none",
    "dtype": "float32",
    "device": "mps",
    "sae_lens_training_version": "5.3.1",
    "neuronpedia_id": None,
    "model_from_pretrained_kwargs": {},
    "seqpos_slice": [None],
}
TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}


def folder(path, config, tensors):
    config = {key: value for key, value in config.items() if value != "absent"}
    return write(path / "sae", config, tensors, "cfg.json", "sae_weights.safetensors")


def test_the_first(tmp_path):
    path = folder(tmp_path, FIRST, draw("standard"))
    assert recognise(path) is saelens_legacy
    sae = load(path)
    assert (sae.architecture, sae.cfg.hook_name) == ("standard", "blocks.8.hook_resid_pre")
    assert sae.cfg.dtype == torch.float32
    assert (sae.cfg.model_name, sae.cfg.neuronpedia_id) == ("gpt2-small", None)
    check(sae, reference("standard", draw("standard")))


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize("subtract", [True, False])
def test_the_last(tmp_path, architecture, subtract):
    config = {**LAST, "architecture": architecture, "apply_b_dec_to_input": subtract, "neuronpedia_id": "gemma-2-2b/0"}
    sae = load(folder(tmp_path, config, draw(architecture)))
    assert (sae.architecture, sae.cfg.hook_name) == (architecture, "blocks.0.hook_resid_post")
    assert (sae.cfg.model_name, sae.cfg.neuronpedia_id) == ("gemma-2-2b", "gemma-2-2b/0")
    check(sae, reference(architecture, draw(architecture), subtract=subtract))


@pytest.mark.parametrize(
    "changes",
    [
        TOPK,
        {**TOPK, "architecture": "standard"},
        {**TOPK, "architecture": "topk"},
        {"activation_fn_str": "absent", "activation_fn": "topk", "activation_fn_kwargs": {"k": K}},
        {"activation_fn_str": "absent", "activation_fn_kwargs": "absent", "architecture": "topk", "k": K},
    ],
)
def test_topk(tmp_path, changes):
    sae = load(folder(tmp_path, {**LAST, **changes}, draw("topk")))
    assert (sae.architecture, sae.cfg.k) == ("topk", K)
    check(sae, reference("topk", draw("topk"), subtract=False))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (False, "none"),
        (None, "none"),
        ("absent", "none"),
        ("layer_norm", "layer_norm"),
        ("constant_norm_rescale", "constant_norm_rescale"),
    ],
)
def test_normalization(tmp_path, said, meant):
    sae = load(folder(tmp_path, {**LAST, "normalize_activations": said}, draw("standard")))
    assert sae.cfg.normalize_activations == meant
    check(sae, reference("standard", draw("standard"), subtract=False, normalization=meant))


@pytest.mark.parametrize("scaled", [True, False, "absent"])
def test_a_scaling_factor_of_ones_is_dropped(tmp_path, scaled):
    tensors = {**draw("standard"), "scaling_factor": np.ones(D_SAE, np.float32)}
    sae = load(folder(tmp_path, {**LAST, "finetuning_scaling_factor": scaled}, tensors))
    check(sae, reference("standard", draw("standard"), subtract=False))


def test_a_scaling_factor_becomes_part_of_the_decoder(tmp_path):
    factor = np.linspace(0.5, 2, D_SAE, dtype=np.float32)
    tensors = {**draw("standard"), "scaling_factor": factor}
    sae = load(folder(tmp_path, {**LAST, "finetuning_scaling_factor": True}, tensors))
    expected = reference("standard", draw("standard"), subtract=False)
    unscaled = expected["hook_sae_recons"]
    scaled = draw("standard")["W_dec"].astype(np.float64) * factor[:, None]
    expected["hook_sae_recons"] = expected["hook_sae_acts_post"] @ scaled + tensors["b_dec"]
    assert not np.allclose(expected["hook_sae_recons"], unscaled)
    check(sae, expected)


@pytest.mark.parametrize("name", ["", "cfg.json", "sae_weights.safetensors"])
def test_the_hubs_links(tmp_path, name):
    path = linked(folder(tmp_path, FIRST, draw("standard")), tmp_path)
    check(load(path / name), reference("standard", draw("standard")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "transcoder"}, "architecture is 'transcoder'; it must be one of standard, jumprelu, gated"),
        (
            {"activation_fn_str": "tanh-relu"},
            "activation_fn_str is 'tanh-relu'; for a standard SAE it must be relu or topk",
        ),
        ({**TOPK, "architecture": "jumprelu"}, "activation_fn_str is 'topk'; for a jumprelu SAE it must be relu"),
        ({"architecture": "topk"}, "activation_fn_str is 'relu'; for a topk SAE it must be topk"),
        ({"activation_fn_kwargs": {"k": 3}}, "activation_fn_kwargs of .* may change what the SAE computes: k = 3"),
        ({"activation_fn_str": "topk"}, "cfg.json has no 'k'"),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "postact_fn": "tanh"}},
            "activation_fn_kwargs of .* unknown options.*: postact_fn = 'tanh'",
        ),
        ({"normalize_activations": "whitening"}, "normalize_activations is 'whitening'; it must be one of none, con"),
        (
            {"reshape_activations": "hook_z"},
            "it needs a hook_name that ends in '_z', not 'blocks.0.hook_resid_post",
        ),
        ({"use_jacobian_loss": True}, "cfg.json has unknown options.*: use_jacobian_loss = True"),
        ({"d_sae": "absent"}, "cfg.json has no 'd_sae'"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of"),
    ],
)
def test_what_is_refused(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path, {**LAST, **changes}, draw("standard")))


@pytest.mark.parametrize("factor", [2, 1.000001])
def test_a_scaling_factor_that_the_config_denies_is_refused(tmp_path, factor):
    tensors = {**draw("standard"), "scaling_factor": np.full(D_SAE, factor, np.float32)}
    with pytest.raises(CheckpointError, match="finetuning_scaling_factor is False; sae_weights.safetensors has a scal"):
        load(folder(tmp_path, LAST, tensors))
    tensors["scaling_factor"] = np.full(D_SAE + 1, 2, np.float32)
    with pytest.raises(CheckpointError, match=r"scaling_factor \[17\]; the standard SAE"):
        load(folder(tmp_path, {**LAST, "finetuning_scaling_factor": True}, tensors))


def test_a_config_that_is_not_json(tmp_path):
    path = folder(tmp_path, LAST, draw("standard"))
    (path / "cfg.json").write_text("{")
    with pytest.raises(CheckpointError, match="cfg.json is not JSON"):
        load(path)


def test_the_hook_may_be_named_under_both_keys(tmp_path):
    assert load(folder(tmp_path, {**LAST, "hook_point": LAST["hook_name"]}, draw("standard"))).cfg.hook_name
