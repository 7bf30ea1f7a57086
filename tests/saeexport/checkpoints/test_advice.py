"""A config and tensors that do not make an SAE together are refused with what to do about it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from saeexport import CheckpointError, load
from tests.support.samples import make_sae

CONFIG = {"d_in": 6, "d_sae": 16, "hook_name": "blocks.0.hook_resid_pre"}
W = {name: tensor.clone() for name, tensor in make_sae().state_dict().items()}
THRESHOLD = torch.full((16,), 0.1)


def said(tmp_path, config, **changes):
    """Return the message with which a state dict is refused."""
    tensors = {name: tensor.contiguous() for name, tensor in {**W, **changes}.items() if tensor is not None}
    save_file(tensors, tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text(json.dumps({**CONFIG, **config}))
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "mine.safetensors")
    return str(error.value)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({}, {"threshold": THRESHOLD}, "These are the tensors of jumprelu: correct the architecture of the config."),
        ({"architecture": "jumprelu"}, {}, "These are the tensors of standard, topk or abstopk: correct the"),
        ({}, {"W_enc": W["W_enc"].T}, "Transpose W_enc."),
        ({}, {"W_enc": W["W_enc"].T, "W_dec": W["W_dec"].T}, "Transpose W_dec, W_enc."),
        ({"architecture": "jumprelu"}, {"threshold": THRESHOLD[:1]}, "If the value of threshold is that of all feat"),
        ({"d_sae": 20}, {}, "If the tensors are right, correct the sizes in the config."),
        ({}, {"b_dec": None}, "b_dec is missing. If the SAE has no b_dec, add zeros."),
        ({}, {"b_dec": None, "b_enc": None}, "b_dec, b_enc are missing. If the SAE has no b_dec and no b_enc, add ze"),
        ({}, {"W_enc": None}, "W_enc is missing."),
        ({}, {"steps": THRESHOLD}, "Remove steps, if the SAE does not compute with it. If the SAE computes with other"),
        ({}, {"W_enc": None, "enc": W["W_enc"]}, "Rename the tensors, if they are those that are missing: W_enc."),
        (
            {"architecture": "jumprelu"},
            {"log_threshold": THRESHOLD},
            "that are missing: threshold. If log_threshold holds logarithms, store torch.exp of it.",
        ),
        ({"k": 4}, {}, "topk or abstopk would have k: give the architecture, the key 'architecture', in the config."),
        ({"k": 4}, {}, "HookedSAEConfig got unknown keys ['k']; its keys are"),
        ({"k": 4, "d_out": 6}, {}, "topk_transcoder or topk_skip_transcoder would have d_out, k: give the arch"),
        ({"architecture": "batchtopk"}, {}, "store it as the tensor 'threshold', with a value for each feature"),
        ({"architecture": "Matryoshka"}, {}, "and give the architecture 'jumprelu'."),
        ({"activation": "topk"}, {}, "Its keys are d_sae, d_in, hook_name, "),
    ],
)
def test_what_to_do(tmp_path, config, changes, message):
    assert message in said(tmp_path, config, **changes)


def test_an_architecture_of_another_kind_gets_no_advice(tmp_path):
    message = said(tmp_path, {"architecture": "cubic"})
    assert message.endswith("topk_skip_transcoder.")


def test_transcoders_are_named_where_only_they_have_such_shapes(tmp_path):
    message = said(tmp_path, {}, W_dec=torch.ones(16, 9), b_dec=torch.ones(9))
    assert "These are the tensors of transcoder or topk_transcoder: correct" in message


@pytest.mark.parametrize("value", [-0.5, 0.5])
def test_negative_thresholds_may_be_logarithms(tmp_path, capsys, value):
    from saeexport.cli import main

    save_file({**W, "threshold": torch.full((16,), value)}, tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text(json.dumps({**CONFIG, "architecture": "jumprelu"}))
    for command in (["inspect"], ["export"]):
        where = [str(tmp_path / "out")] if command == ["export"] else []
        assert main([*command, str(tmp_path / "mine.safetensors"), *where]) == 0
        assert ("16 of 16 thresholds are negative" in capsys.readouterr().out) == (value < 0)
