"""SAELens 6 checkpoints: every architecture and option against the equations, and refusals."""

import numpy as np
import pytest
import torch

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import saelens
from saeexport.checkpoints.registry import recognise
from tests.support.equations import (
    D_IN,
    D_OUT,
    D_SAE,
    PARAMETERS,
    K,
    X,
    check,
    draw,
    is_mapped,
    linked,
    reference,
    write,
)

TRANSCODERS = [name for name in PARAMETERS if "transcoder" in name]


def config(architecture, /, **changes):
    values = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cuda",
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "sae_lens_training_version": "6.54.12",
            "model_name": "gpt2-small",
            "hook_name": "blocks.3.hook_resid_pre",
            "hook_head_index": None,
            "prepend_bos": True,
        },
        "architecture": architecture,
    }
    if architecture in ("topk", "abstopk"):
        values |= {"k": K, "rescale_acts_by_decoder_norm": False}
    if "transcoder" in architecture:
        values["d_out"] = D_OUT
        values["metadata"]["hook_name_out"] = "blocks.3.hook_mlp_out"
    values |= changes
    return {key: value for key, value in values.items() if value != "absent"}


def folder(path, architecture, /, tensors=None, **changes):
    tensors = draw(architecture) if tensors is None else tensors
    return write(path / "sae", config(architecture, **changes), tensors, "cfg.json", "sae_weights.safetensors")


@pytest.mark.parametrize("architecture", PARAMETERS)
def test_every_architecture(tmp_path, architecture):
    path = folder(tmp_path, architecture)
    assert recognise(path) is saelens
    sae = load(path)
    assert (sae.architecture, sae.cfg.hook_name) == (architecture, "blocks.3.hook_resid_pre")
    assert getattr(sae.cfg, "hook_name_out", None) == ("blocks.3.hook_mlp_out" if architecture in TRANSCODERS else None)
    check(sae, reference(architecture, draw(architecture), subtract=architecture not in TRANSCODERS))


def test_every_architecture_is_claimed():
    assert set(saelens.ARCHITECTURES) == set(PARAMETERS)


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("subtract", [True, False])
def test_input_options(tmp_path, normalization, subtract):
    path = folder(tmp_path, "jumprelu", apply_b_dec_to_input=subtract, normalize_activations=normalization)
    check(load(path), reference("jumprelu", draw("jumprelu"), subtract=subtract, normalization=normalization))


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_rescaling_by_the_decoders_norms_is_folded(tmp_path, architecture):
    path = folder(tmp_path, architecture, rescale_acts_by_decoder_norm=True)
    expected = reference(architecture, draw(architecture), rescaled=True)
    plain = reference(architecture, draw(architecture))
    assert not np.array_equal(expected["hook_sae_acts_post"] != 0, plain["hook_sae_acts_post"] != 0)
    check(load(path), expected)


def test_a_feature_without_a_decoder_is_off(tmp_path):
    tensors = draw("topk")
    tensors["W_dec"][3] = 0
    sae = load(folder(tmp_path, "topk", tensors, rescale_acts_by_decoder_norm=True))
    _, cache = sae.run_with_cache(torch.from_numpy(X).to(sae.W_enc.device))
    assert not cache["hook_sae_acts_post"][:, 3].any()
    assert cache["hook_sae_recons"].isfinite().all()


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescaled", [True, False])
def test_a_checkpoint_in_training_becomes_jumprelu(tmp_path, architecture, rescaled):
    tensors = draw("topk")
    options = {"k": 3.5, "rescale_acts_by_decoder_norm": rescaled, "matryoshka_widths": [4, 16]}
    path = tmp_path / "sae"
    stored = {**tensors, "topk_threshold": np.array(0.7)}  # float64, as the trainer keeps it
    write(path, config(architecture, **options), stored, "cfg.json", "sae_weights.safetensors")
    sae = load(path)
    assert sae.architecture == "jumprelu"
    thresholds = {**tensors, "threshold": np.full(D_SAE, 0.7)}
    check(sae, reference("jumprelu", thresholds, rescaled=rescaled))


def test_hook_z(tmp_path):
    metadata = {"hook_name": "blocks.1.attn.hook_z"}
    sae = load(folder(tmp_path, "standard", reshape_activations="hook_z", metadata=metadata))
    heads = X.reshape(40, 2, 3)
    assert sae(torch.from_numpy(heads).to(sae.W_enc.device)).shape == (40, 2, 3)
    check(sae, reference("standard", draw("standard")), heads)


@pytest.mark.parametrize(
    ("metadata", "top", "name"),
    [({"hook_name": "a"}, "b", "a"), ({}, "b", "b"), ({"hook_name": None}, None, ""), ({}, "absent", "")],
)
def test_the_hook_name(tmp_path, metadata, top, name):
    path = folder(tmp_path, "standard", metadata=metadata, hook_name=top)
    assert load(path).cfg.hook_name == name
    assert load(path, hook_name="blocks.0.hook_mlp_out").cfg.hook_name == "blocks.0.hook_mlp_out"


@pytest.mark.parametrize("place", ["metadata", "top"])
@pytest.mark.parametrize("key", ["model_name", "neuronpedia_id"])
def test_the_names_of_the_model_and_on_neuronpedia(tmp_path, key, place):
    changes = {"metadata": {key: "a name"}} if place == "metadata" else {"metadata": {}, key: "a name"}
    cfg = load(folder(tmp_path, "standard", **changes)).cfg
    assert {cfg.model_name, cfg.neuronpedia_id} == {"a name", None}
    assert getattr(cfg, key) == "a name"


@pytest.mark.parametrize("said", ["float16", "torch.float16", "absent", "float64"])
def test_the_dtype_is_the_configs(tmp_path, said):
    sae = load(folder(tmp_path, "standard", draw("standard", np.float16), dtype=said))
    dtype = torch.float64 if said == "float64" else torch.float16
    assert sae.cfg.dtype == sae.W_enc.dtype == sae.b_dec.dtype == dtype


@pytest.mark.parametrize("name", ["", "cfg.json", "sae_weights.safetensors"])
def test_the_hubs_links(tmp_path, name):
    check(load(linked(folder(tmp_path, "gated"), tmp_path) / name), reference("gated", draw("gated")))


def test_nothing_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = folder(tmp_path, "skip_transcoder")
    for name, parameter in load(path).named_parameters():
        assert is_mapped(parameter, path / "sae_weights.safetensors"), name
    folded = load(folder(tmp_path, "topk", rescale_acts_by_decoder_norm=True))
    assert not is_mapped(folded.W_enc, path / "sae_weights.safetensors")


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("temporal", {}, "architecture is 'temporal'; it is not supported: its features depend on other tokens"),
        ("standard", {"architecture": "absent"}, "cfg.json has no 'architecture'"),
        ("standard", {"normalize_activations": "covariance_whitening"}, "normalize_activations is 'covariance_whiten"),
        ("standard", {"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q'; it must be one of none, h"),
        (
            "standard",
            {"reshape_activations": "hook_z"},
            "it needs a hook_name that ends in '_z', not 'blocks.3",
        ),
        ("standard", {"temperature": 2}, "unknown options, which may change what the SAE computes: temperature = 2"),
        ("standard", {"k": 3, "d_out": 5}, "may change what the SAE computes: d_out = 5, k = 3"),
        ("gated", {"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is True; a gated SAE has no"),
        ("topk", {"k": "absent"}, "cfg.json has no 'k'"),
        ("topk", {"k": 2.5}, "k is 2.5; it must be of the type int"),
        ("topk", {"k": 17}, r"The config of .* does not fit: k is 17; it must be from 1 to d_sae = 16"),
        ("topk", {"k": True}, "k is True; it must be of the type int"),
        ("standard", {"d_in": "6"}, "d_in is '6'; it must be of the type int"),
        ("standard", {"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1; it must be of the type bool"),
        ("standard", {"dtype": "int8"}, "dtype is 'int8'; it must be one of float32, float64, float16, bfloat16"),
        ("standard", {"metadata": {"model_name": 2}}, "The metadata of .*cfg.json: model_name is 2; it must be of the"),
        ("standard", {"metadata": []}, r"metadata is \[\]; it must be of the type dict"),
        ("transcoder", {"apply_b_dec_to_input": True}, "another activation than its input, so they must be False"),
        ("transcoder", {"d_out": "absent"}, "cfg.json has no 'd_out'"),
        ("standard", {"d_sae": 15}, r"W_enc \[6, 16\].*; the standard SAE of its config has .*W_enc \[6, 15\]"),
    ],
)
def test_what_is_refused(tmp_path, architecture, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(
            folder(tmp_path, architecture, draw("standard" if architecture == "temporal" else architecture), **changes)
        )


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("standard", {"b_enc": None}, r"the standard SAE of its config has .*b_enc \[16\]"),
        ("standard", {"threshold": np.ones(16, np.float32)}, r"threshold \[16\]; the standard SAE"),
        ("topk", {"W_dec": None}, r"the topk SAE of its config has W_dec \[16, 6\]"),
        ("topk", {"b_enc": None}, r"the topk SAE of its config has .*b_enc \[16\]"),
        ("topk", {"W_dec": np.ones((15, 6), np.float32)}, r"W_dec \[15, 6\].*; the topk SAE"),
        ("batchtopk", {"topk_threshold": None}, r"the jumprelu SAE of its config has .*threshold \[16\]"),
        ("batchtopk", {"topk_threshold": np.ones(3)}, r"the jumprelu SAE of its config has .*threshold \[16\]"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, architecture, changes, message):
    tensors = {**draw("standard"), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    options = {"rescale_acts_by_decoder_norm": True} if architecture != "standard" else {}
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path, architecture, tensors, **options))


@pytest.mark.parametrize("factor", [0.02, None])
def test_a_scaling_that_is_not_yet_in_the_weights_is_refused(tmp_path, factor):
    path = folder(tmp_path, "standard", normalize_activations="expected_average_only_in")
    (path / "activation_scaler.json").write_text('{"scaling_factor": %s}' % ("null" if factor is None else factor))
    if factor is None:
        check(load(path, already_folded=True), reference("standard", draw("standard")))
        return
    with pytest.raises(
        CheckpointError, match="still has the scaling factor: this is a checkpoint in training, without"
    ):
        load(path)
