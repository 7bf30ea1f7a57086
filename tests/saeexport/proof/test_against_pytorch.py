"""An artifact against a PyTorch original: same weights, same config, same values."""

import numpy as np
import pytest
import torch

import saeexport
from runtime import ParityError
from saeexport import export
from tests.support.breaking import edit_graph, rewrite
from tests.support.samples import make_sae, normal
from tests.support.zoo import sae_of


def test_verify_against_the_original(exported):
    sae, path = exported
    assert saeexport.verify(path, device="cpu").failures == []
    assert saeexport.verify(path, sae, normal(2, 9, 6), device="cpu").failures == []
    saeexport.assert_parity(path, sae, torch.from_numpy(normal(9, 6)), device="cpu")


@pytest.mark.parametrize("factor", [1.5, 1.000001], ids=["visibly", "barely"])
def test_against_an_original_with_another_weight(exported, factor):
    sae, path = exported
    other = make_sae(use_error_term=sae.cfg.use_error_term)
    with torch.no_grad():
        other.W_dec[3, 1] *= factor
    with pytest.raises(ParityError, match=r"W_dec differs in 1 of 96 elements, first at \[3, 1\]"):
        saeexport.assert_parity(path, other, device="cpu")


def test_against_an_original_with_another_config(exported):
    sae, path = exported
    other = make_sae(use_error_term=not sae.cfg.use_error_term, hook_name="elsewhere")
    message = "\n".join(saeexport.verify(path, other, device="cpu").failures)
    assert "hook_name is 'blocks.0.hook_resid_pre' in the artifact and 'elsewhere' in the original" in message
    assert "use_error_term is" in message


def test_against_an_original_with_another_size(exported):
    _, path = exported
    with pytest.raises(ParityError, match=r"W_enc is \[6, 16\] torch.float32 in the artifact and \[6, 17\]"):
        saeexport.assert_parity(path, make_sae(d_sae=17), device="cpu")


@pytest.mark.parametrize(
    ("architecture", "option"),
    [
        ("topk", {"k": 10}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("standard", {"apply_b_dec_to_input": False}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_against_an_original_with_another_option(tmp_path, architecture, option, dtype):
    """A difference in weights is found even if no activation reveals it."""
    path = export(sae_of(architecture), tmp_path / "sae", dtype=dtype).path
    ((name, value),) = option.items()
    message = "\n".join(saeexport.verify(path, sae_of(architecture, **option), device="cpu").failures)
    assert f"{name} is {getattr(sae_of(architecture).cfg, name)!r} in the artifact and {value!r} in the or" in message


def test_against_an_original_of_another_architecture(tmp_path):
    path = export(sae_of("topk"), tmp_path / "sae").path
    (failure,) = saeexport.verify(path, sae_of("abstopk"), device="cpu").failures
    assert failure == "architecture is 'topk' in the artifact and 'abstopk' in the original."


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_original_of_an_artifact_in_half_precision_is_the_one_it_was_exported_from(tmp_path, dtype):
    sae = make_sae()
    path = export(sae, tmp_path / "sae", normal(40, 6), dtype=dtype).path
    saeexport.assert_parity(path, sae, normal(40, 6, seed=2).astype(np.float64), device="cpu")
    with torch.no_grad():
        sae.W_dec[3, 1] *= 2
    assert "W_dec differs in 1 of 96" in saeexport.verify(path, sae, device="cpu").failures[0]


def test_assert_parity_sees_a_wrong_graph(artifact):
    rewrite(artifact, "decode.onnx", edit_graph(lambda model: setattr(model.graph.node[-1], "op_type", "Sub")))
    with pytest.raises(ParityError, match="decode: hook_sae_recons: the token error"):
        saeexport.assert_parity(artifact, device="cpu")
