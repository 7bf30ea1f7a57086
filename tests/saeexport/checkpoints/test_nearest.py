"""Files and folders of no format: the error names the nearest format, or why the layout is not supported."""

import json

import pytest
import torch
from safetensors.torch import save_file

from saeexport import CheckpointError, load
from tests.support.equations import D_IN, D_SAE, draw

W = {name: torch.from_numpy(tensor) for name, tensor in draw("standard").items()}
GOODFIRE = {
    "encoder_linear.weight": W["W_enc"].T.contiguous(),
    "encoder_linear.bias": W["b_enc"],
    "decoder_linear.weight": W["W_dec"].T.contiguous(),
    "decoder_linear.bias": W["b_dec"],
}
LINEAR = {name.replace("_linear", ""): tensor for name, tensor in GOODFIRE.items()}


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("sae.safetensors", GOODFIRE, r"is nearest to Goodfire \(Goodfire, .pt or .pth .*\), but it has another name"),
        ("sae.pt", LINEAR, r"nearest to .*DeepSeek R1 .*<model>-SAE-l<layer>.pt .*\), but it has another name"),
        (
            "sae.pt",
            {**GOODFIRE, "decoder_linear.weight": None, "k": W["b_enc"]},
            "lacks decoder_linear.weight and has k",
        ),
        (
            "w.safetensors",
            {k.replace("W_", "w_"): v for k, v in W.items()},
            "nearest to Gemma Scope 2 .*lacks threshold",
        ),
        ("sae.safetensors", {**W, "W_enc": W["W_enc"].T.contiguous()}, "nearest to Qwen Scope and circuit-tracer and"),
        ("sae.pth", {**W, "W_enc": W["W_enc"].T.contiguous()}, "but it has another name, place or shape"),
    ],
)
def test_the_nearest_format_of_a_file(tmp_path, name, tensors, message):
    tensors = {key: value.clone() for key, value in tensors.items() if value is not None}
    (torch.save if name.startswith("sae.pt") else save_file)(tensors, tmp_path / name)
    with pytest.raises(CheckpointError, match=message) as error:
        load(tmp_path / name)
    assert "has no config beside it" not in str(error.value)
    assert str(error.value).endswith("`saeexport formats` lists what can be loaded.")


def test_a_file_without_a_near_format(tmp_path):
    save_file({"model.embed_tokens.weight": W["W_enc"]}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a file ending in '.safetensors'. What can be loaded: an artifact"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["sae.pt", "sae.safetensors", "sae.npz"])
def test_a_file_that_is_damaged_is_said_to_be(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04damaged")
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("sae.safetensors", "sae.safetensors is a file of sparsify, but cfg.json is missing beside it"),
        (
            "sae_weights.safetensors",
            "is a file of SAELens 6 and SAELens before 6 and Llama Scope R1, but cfg.json or config.json is missing",
        ),
        ("ae.pt", "ae.pt is a file of dictionary_learning, but config.json is missing beside it"),
    ],
)
def test_the_nearest_format_of_a_folder(tmp_path, weights, message):
    (torch.save if weights == "ae.pt" else save_file)(W, tmp_path / weights)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("given", ["", "latest_ckpt.safetensors"])
def test_temporal_saes_are_refused_by_name(tmp_path, given):
    (tmp_path / "conf.yaml").write_text("llm: {dimin: 6}")
    save_file({"D": W["W_dec"], "b": W["b_dec"]}, tmp_path / "latest_ckpt.safetensors")
    with pytest.raises(CheckpointError, match="is a temporal SAE .*not supported: its features depend on other tokens"):
        load(tmp_path / given)


@pytest.mark.parametrize("given", ["", "params_layer_0.safetensors", "params_layer_1.safetensors"])
def test_crosscoders_are_refused_by_name(tmp_path, given):
    for layer in range(2):
        save_file(
            {"w_enc": W["W_enc"], "w_dec": torch.ones(D_SAE, 2, D_IN)}, tmp_path / f"params_layer_{layer}.safetensors"
        )
    with pytest.raises(CheckpointError, match="crosscoder or cross-layer .*not supported: its features read or write"):
        load(tmp_path / given)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("matching_pursuit", "one after the other, in a loop"), ("temporal", "depend on other tokens, by attention")],
)
def test_architectures_of_saelens_that_are_refused_by_name(tmp_path, architecture, message):
    config = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "metadata": {}}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file(W, tmp_path / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match=f"architecture is '{architecture}'; it is not supported: .*{message}"):
        load(tmp_path)
