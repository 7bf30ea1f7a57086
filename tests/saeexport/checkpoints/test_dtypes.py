"""The dtype of a checkpoint, the one that the caller asks for, and the one of an artifact: a single rounding."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from saeexport import CheckpointError, export_all, load
from saeexport.checkpoints.registry import load_for_export
from saeexport.cli import main
from tests.saeexport.checkpoints.test_folding import llama_scope, saelens, sparsify
from tests.saeexport.checkpoints.test_gemma_scope import npz
from tests.saeexport.checkpoints.test_others import llama
from tests.saeexport.checkpoints.test_saelens import folder
from tests.support.equations import draw

FOLDED = [llama_scope, saelens, sparsify]


@pytest.mark.parametrize("write", FOLDED)
def test_what_an_export_will_convert_is_read_in_float32(tmp_path, write):
    write(tmp_path)
    exact = load(tmp_path, dtype="float64").state_dict()
    for dtype, expected in (("float16", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        sae = load_for_export(tmp_path, dtype)
        assert sae.cfg.dtype == expected
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, exact[name].to(expected))


def test_an_artifact_in_another_half_precision_is_rounded_once(tmp_path, capsys):
    """A bfloat16 checkpoint with a folded factor: through bfloat16, weights would be off by up to 4e-3."""
    path = llama(tmp_path / "saes", torch.bfloat16, dtype="torch.bfloat16")
    expected = load(path, dtype="float32").half().state_dict()
    assert not torch.equal(expected["W_enc"], load(path).half().state_dict()["W_enc"])
    assert main(["export", str(path), str(tmp_path / "sae"), "--dtype", "float16"]) == 0
    (entry,) = export_all(tmp_path / "saes", tmp_path / "tree", dtype="float16")
    assert entry.error is None
    for artifact in (tmp_path / "sae", entry.path):
        stored = load_file(artifact / "weights.safetensors")
        assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    assert entry.artifact.manifest.fidelity is not None, "the loss is measured, too"
    against = ["verify", str(tmp_path / "sae"), "--against", str(path), "--device", "cpu"]
    assert main(against) == 0, capsys.readouterr().err


def test_an_artifact_is_read_for_another_half_precision_in_float32(tmp_path):
    (entry,) = export_all(llama(tmp_path), tmp_path / "tree", dtype="bfloat16")
    assert load_for_export(entry.path, "float16").W_enc.dtype == torch.float32
    assert load_for_export(entry.path, "bfloat16").W_enc.dtype == torch.bfloat16


def test_saelens_converts_several_dtypes_to_that_of_the_config(tmp_path):
    """SAELens keeps the thresholds of a JumpReLU SAE in training in float32, also in bfloat16 checkpoints."""
    weights = draw("jumprelu")
    mixed = {name: torch.from_numpy(value).to(torch.bfloat16) for name, value in weights.items()}
    mixed["threshold"] = torch.from_numpy(weights["threshold"])
    path = folder(tmp_path, "jumprelu", dtype="bfloat16")
    save_file(mixed, path / "sae_weights.safetensors")
    assert {tensor.dtype for tensor in load(path).state_dict().values()} == {torch.bfloat16}
    widened = load(path, dtype="float32").state_dict()
    assert torch.equal(widened["threshold"], mixed["threshold"])
    assert torch.equal(widened["W_enc"], mixed["W_enc"].float())


def test_several_dtypes_are_converted_to_the_one_that_the_caller_says(tmp_path):
    tensors = draw("jumprelu")
    path = npz(tmp_path, **tensors | {"b_dec": tensors["b_dec"].astype("float16")})
    with pytest.raises(CheckpointError, match="mixes the dtypes float16, float32. Export it with --dtype"):
        load(path)
    for sae in (load(path, dtype="float32"), load_for_export(path, "float16")):
        assert {tensor.dtype for tensor in sae.state_dict().values()} == {torch.float32}
