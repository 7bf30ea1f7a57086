"""A factor of the input that no file of the checkpoint holds: refused, folded, or said to be in the weights already."""

import numpy as np
import pytest
import torch

from runtime import InputError, read_artifact
from saeexport import CheckpointError, export, load
from saeexport.checkpoints.normalization import AVERAGE, PUBLISHED
from saeexport.cli import main
from tests.support.equations import D_IN, D_SAE, X, check, draw, reference, write

FACTOR = 0.21381938399317255
FORMATS = ["SAELens 6", "SAELens before 6", "SAELens before 6, a bool"]


def folder(path, kind="SAELens 6", architecture="standard", tensors=None, **changes):
    """Write a checkpoint whose config says that the inputs were scaled."""
    said = True if kind.endswith("bool") else AVERAGE
    config = {"d_in": D_IN, "d_sae": D_SAE, "hook_name": "blocks.0.hook_resid_pre", "normalize_activations": said}
    if kind == "SAELens 6":
        config["metadata"] = {"hook_name": config.pop("hook_name")}
    config |= {"architecture": architecture, "apply_b_dec_to_input": True, **changes}
    tensors = draw(architecture) if tensors is None else tensors
    return write(path / "sae", config, tensors, "cfg.json", "sae_weights.safetensors")


def scaled(architecture="standard", **more):
    """Return the hooks of an SAE whose input is multiplied by the factor and whose output is divided by it."""
    hooks = reference(architecture, draw(architecture), X.astype(np.float64) * FACTOR, **more)
    hooks["hook_sae_recons"] = hooks["hook_sae_recons"] / FACTOR
    return hooks


@pytest.mark.parametrize("kind", FORMATS)
def test_a_factor_that_is_not_in_the_files_is_refused(tmp_path, kind, capsys):
    path = folder(tmp_path, kind)
    message = "a constant that is not in its files.*--norm-scaling-factor F.*--already-folded"
    with pytest.raises(CheckpointError, match=message):
        load(path)
    for command in (["inspect", str(path)], ["export", str(path), str(tmp_path / "out")]):
        assert main(command) == 2
        assert "--already-folded" in capsys.readouterr().err


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_a_factor_that_is_given_is_folded(tmp_path, kind, architecture):
    sae = load(folder(tmp_path, kind, architecture), norm_scaling_factor=FACTOR)
    assert sae.cfg.normalize_activations == "none"
    check(sae, scaled(architecture))


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_that_include_the_factor_are_kept(tmp_path, kind):
    check(load(folder(tmp_path, kind), already_folded=True), reference("standard", draw("standard")))


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm", "none"])
def test_another_normalization_can_be_given(tmp_path, normalization):
    sae = load(folder(tmp_path), normalize_activations=normalization)
    assert sae.cfg.normalize_activations == normalization
    check(sae, reference("standard", draw("standard"), normalization=normalization))


def test_the_factor_with_rescaling_by_the_decoders_norms(tmp_path):
    """SAELens divides the decoder by the factor first, so that the norms it rescales by are divided as well."""
    path = folder(tmp_path, architecture="topk", k=4, rescale_acts_by_decoder_norm=True)
    expected = scaled("topk", rescaled=True)
    expected["hook_sae_acts_pre"] /= FACTOR
    expected["hook_sae_acts_post"] /= FACTOR
    check(load(path, norm_scaling_factor=FACTOR), expected, atol=5e-5)


@pytest.mark.parametrize(
    ("hook_name", "d_sae", "said"),
    [
        ("blocks.12.hook_resid_post", 16384, "SAELens' list has 0.21381938399317255 for .*jbloom/Gemma-2b-Residual"),
        ("blocks.3.hook_mlp_out", 24576, "SAELens' list has 1.8958522157897557 for .*tommmcgrath/gpt2-small-mlp-out"),
        ("blocks.8.hook_resid_pre", 65536, "--normalize-activations constant_norm_rescale"),
        ("blocks.12.hook_resid_post", 32768, "already_folded=True\\).$"),
    ],
)
def test_the_message_names_the_value_of_saelens_list(tmp_path, hook_name, d_sae, said):
    with pytest.raises(CheckpointError, match=said):
        load(folder(tmp_path, "SAELens before 6", hook_name=hook_name, d_sae=d_sae))
    assert sum(published.factor is not None for published in PUBLISHED.values()) == 13


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"norm_scaling_factor": 2.0, "already_folded": True}, "give one of the two"),
        ({"norm_scaling_factor": 0.0}, "it must be a positive, finite number"),
        ({"norm_scaling_factor": float("nan")}, "it must be a positive, finite number"),
        ({"norm_scaling_factor": True}, "it must be a positive, finite number"),
        ({"normalize_activations": "whitening"}, "it must be one of none, constant_norm_rescale, layer_norm"),
        ({"already_folded": True, "transcoder": True}, "transcoder = True was given .*, but .* does not need it"),
        ({"already_folded": True, "index": 0}, "index = 0 was given"),
        ({"already_folded": True, "ignore_config": ["no_such"]}, "ignore_config names 'no_such'"),
        ({"already_folded": True, "ignore_config": ["d_in"]}, "ignore_config names 'd_in'"),
    ],
)
def test_what_was_said_is_checked(tmp_path, said, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path), **said)


@pytest.mark.parametrize("said", [{"norm_scaling_factor": 2.0}, {"already_folded": True}])
def test_what_the_checkpoint_does_not_need_is_refused(tmp_path, said):
    (name,) = said
    with pytest.raises(CheckpointError, match=f"{name} = .* was given .*, but .* does not need it. Leave it out"):
        load(folder(tmp_path, normalize_activations="none"), **said)


def test_the_artifact_tells_how_the_checkpoint_was_read(tmp_path, capsys):
    path = folder(tmp_path, odd_option=3)
    said = ["--norm-scaling-factor", "0.25", "--ignore-config", "odd_option"]
    assert main(["inspect", str(path), *said]) == 0
    assert "The factor of the input, 0.25, is folded into the weights" in capsys.readouterr().out
    assert main(["export", str(path), str(tmp_path / "out"), *said]) == 0
    assert main(["verify", str(tmp_path / "out"), "--against", str(path), *said]) == 0
    for option in (["--already-folded"], ["--no-transcoder"], ["--index", "0"]):
        assert main(["verify", str(tmp_path / "out"), *option]) == 2
        assert "need --against CHECKPOINT" in capsys.readouterr().err
    record = {"checkpoint.norm_scaling_factor": "0.25", "checkpoint.ignore_config": "odd_option"}
    artifacts = [read_artifact(tmp_path / "out"), export(load(tmp_path / "out"), tmp_path / "again")]
    for artifact in artifacts:
        assert record.items() <= artifact.manifest.provenance.items()
    plain = export(load(folder(tmp_path / "plain", normalize_activations="none")), tmp_path / "third")
    assert not any(key.startswith("checkpoint.") for key in plain.manifest.provenance)


def test_float32_weights_are_not_rounded_to_the_dtype_of_the_config(tmp_path):
    path = folder(tmp_path, normalize_activations="none", dtype="bfloat16")
    assert load(path).W_enc.dtype == torch.bfloat16
    check(load(path, dtype="float32"), reference("standard", draw("standard")))


@pytest.mark.parametrize("name", ["already_folded", "transcoder", "index"])
def test_arguments_of_another_type_are_refused(tmp_path, name):
    wrong = [2.5, True, -1, "3"] if name == "index" else [1, 0, "yes", "3"]
    for value in wrong:
        with pytest.raises(InputError, match=f"{name} is {value!r}; it must be"):
            load(tmp_path, **{name: value})


def test_a_factor_may_be_a_number_of_numpy(tmp_path):
    path = folder(tmp_path, "SAELens 6")
    assert torch.equal(load(path, norm_scaling_factor=np.float32(0.5)).W_enc, load(path, norm_scaling_factor=0.5).W_enc)
