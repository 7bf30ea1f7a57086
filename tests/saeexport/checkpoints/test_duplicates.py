"""`inspect` says when features have the same weights."""

import pytest
import torch
from safetensors.torch import save_file

from saeexport.checkpoints import duplicates
from saeexport.checkpoints.duplicates import count_repeated
from saeexport.cli import main
from tests.support.equations import D_IN, D_SAE, K, draw, write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("elements", [1, 50, 1 << 21])
def test_the_count_does_not_depend_on_blocks(monkeypatch, dtype, elements):
    monkeypatch.setattr(duplicates, "BLOCK_ELEMENTS", elements)
    matrix = torch.arange(40.0).reshape(10, 4).to(dtype)
    assert count_repeated(matrix) == 0
    matrix[9] = matrix[2]
    matrix[[4, 5]] = 0
    matrix[5] = -0.0
    assert count_repeated(matrix) == 2
    assert count_repeated(matrix.T.contiguous().T) == 2


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_inspect_warns_of_duplicates(tmp_path, capsys, architecture):
    tensors = draw(architecture)
    config = {"d_in": D_IN, "d_sae": D_SAE, "hook_name": "", "architecture": architecture, "metadata": {}}
    config |= {"k": K} if architecture == "topk" else {}
    path = write(tmp_path, config, tensors, "cfg.json", "sae_weights.safetensors")
    assert main(["inspect", str(path)]) == 0
    assert "weights of another feature" not in capsys.readouterr().out
    tensors = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    tensors["W_enc"][:, [3, 7]] = tensors["W_enc"][:, [1]]
    tensors["W_dec"][2] = tensors["W_dec"][5]
    save_file(tensors, path / "sae_weights.safetensors")
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Features with the encoder weights of another feature: 2." in out
    assert ("top-k may keep any of them" in out) == (architecture == "topk")
    assert "Features with the decoder weights of another feature: 1." in out
