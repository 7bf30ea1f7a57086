"""Published layouts that no HookedSAE can be are refused by name, with the reason."""

import json

import pytest
import torch
from safetensors.torch import save_file

from saeexport import CheckpointError, load
from tests.support.equations import D_IN, D_SAE, draw

W = {name: torch.from_numpy(tensor) for name, tensor in draw("standard").items()}


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


def test_the_nearest_formats_of_tensors_that_several_have(tmp_path):
    save_file({**W, "W_enc": W["W_enc"].T.contiguous()}, tmp_path / "my.safetensors")
    near = r"nearest format is HookedSAE state dict .* or circuit-tracer .* or Qwen Scope"
    with pytest.raises(CheckpointError, match=near) as error:
        load(tmp_path / "my.safetensors")
    assert "has no config beside it" not in str(error.value)
