"""Factors are folded after the weights are widened: float32 from bfloat16 files is as exact as float32 can be."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saeexport import load
from saeexport.checkpoints import folding
from saeexport.checkpoints.folding import fold, product, row_norms, scaled
from tests.saeexport.checkpoints.test_others import SCOPE

D_IN, D_SAE, K, TOKENS = 64, 1024, 32, 256
DRAWS = np.random.default_rng(3)
X = DRAWS.normal(0, 1, (TOKENS, D_IN))


def draw(*shape, scale=0.2):
    """Return bfloat16 values."""
    return torch.from_numpy(DRAWS.normal(0, scale, shape)).bfloat16()


W = {"W_enc": draw(D_IN, D_SAE), "b_enc": draw(D_SAE), "W_dec": draw(D_SAE, D_IN), "b_dec": draw(D_IN)}
T = {name: tensor.double().numpy() for name, tensor in W.items()}


def llama_scope(folder):
    """Write a Llama Scope checkpoint; return the equations of its authors, in float64."""
    norm, threshold = 3.7, 0.9
    (folder / "checkpoints").mkdir()
    config = SCOPE | {"d_model": D_IN, "d_sae": D_SAE, "jump_relu_threshold": threshold, "dtype": "torch.bfloat16"}
    config["dataset_average_activation_norm"] = {"in": norm, "out": norm}
    (folder / "hyperparams.json").write_text(json.dumps(config))
    stored = {"encoder.weight": W["W_enc"].T, "encoder.bias": W["b_enc"], "decoder.weight": W["W_dec"].T}
    stored = {name: tensor.contiguous() for name, tensor in (stored | {"decoder.bias": W["b_dec"]}).items()}
    save_file(stored, folder / "checkpoints" / "final.safetensors")
    s = D_IN**0.5 / norm
    pre = X * s @ T["W_enc"] + T["b_enc"]
    # The threshold is that of the features times the decoder's norms; SAELens takes it times the scale as well.
    post = pre * (pre > threshold * s / np.linalg.norm(T["W_dec"], axis=1)) * (pre > 0)
    return pre, post, (post @ T["W_dec"] + T["b_dec"]) / s


def saelens(folder):
    """Write a top-k SAE that rescales by the norms of its decoder; return SAELens' equations in float64."""
    config = {"d_in": D_IN, "d_sae": D_SAE, "architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
    (folder / "cfg.json").write_text(json.dumps({**config, "dtype": "bfloat16", "metadata": {}}))
    save_file(W, folder / "sae_weights.safetensors")
    norms = np.linalg.norm(T["W_dec"], axis=1)
    pre = ((X - T["b_dec"]) @ T["W_enc"] + T["b_enc"]) * norms
    post = largest(pre)
    return pre, post, post / norms @ T["W_dec"] + T["b_dec"]


def sparsify(folder):
    """Write a skip transcoder that subtracts b_dec from its input; return sparsify's equations in float64."""
    skip = draw(D_IN, D_IN)
    config = {"d_in": D_IN, "num_latents": D_SAE, "k": K, "skip_connection": True, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    stored = {"encoder.weight": W["W_enc"].T.contiguous(), "encoder.bias": W["b_enc"], "W_skip": skip}
    save_file(stored | {name: W[name] for name in ("W_dec", "b_dec")}, folder / "sae.safetensors")
    pre = (X - T["b_dec"]) @ T["W_enc"] + T["b_enc"]
    post = largest(pre)
    return pre, post, post @ T["W_dec"] + T["b_dec"] + X @ skip.double().numpy().T


def largest(pre):
    kept = np.argsort(-pre, axis=1)[:, :K]
    post = np.zeros_like(pre)
    np.put_along_axis(post, kept, np.maximum(np.take_along_axis(pre, kept, 1), 0), 1)
    return post


@pytest.mark.parametrize("write", [llama_scope, saelens, sparsify])
def test_float32_from_bfloat16_is_exact_to_its_rounding(tmp_path, write):
    expected = write(tmp_path)
    for dtype in ("float32", "float64"):
        sae = load(tmp_path, dtype=dtype)
        _, cache = sae.run_with_cache(torch.from_numpy(X).to(sae.W_enc.device, sae.W_enc.dtype))
        hooks = [cache[f"hook_sae_{name}"].cpu().double().numpy() for name in ("acts_pre", "acts_post", "recons")]
        assert np.array_equal(hooks[1] != 0, expected[1] != 0), "no feature is flipped"
        assert 0 < np.count_nonzero(expected[1]) < expected[1].size
        for got, right in zip(hooks, expected, strict=True):
            error = np.linalg.norm(got - right, axis=1) / np.linalg.norm(right, axis=1)
            assert error.max() < (5e-7 if dtype == "float32" else 1e-14)


def test_without_a_dtype_the_result_is_rounded_once(tmp_path):
    llama_scope(tmp_path)
    exact = load(tmp_path, dtype="float64").state_dict()
    for name, tensor in load(tmp_path).state_dict().items():
        assert torch.equal(tensor, exact[name].bfloat16())


@pytest.mark.parametrize("transposed", [True, False])
def test_blocks_of_rows_give_what_the_whole_matrix_gives(monkeypatch, transposed):
    monkeypatch.setattr(folding, "BLOCK_ELEMENTS", 100)
    matrix = torch.from_numpy(DRAWS.normal(0, 1, (37, 23) if transposed else (23, 37))).float()
    matrix = matrix.T if transposed else matrix
    rows, columns = (torch.from_numpy(DRAWS.uniform(0.5, 2, size)) for size in (23, 37))
    wide = matrix.double()
    for dtype, rounding in ((torch.float32, 6e-8), (torch.float64, 3e-16)):
        result = scaled(matrix, dtype, rows=rows, columns=columns)
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), wide * rows[:, None] * columns, rtol=rounding, atol=0)
        assert result.T.is_contiguous() == transposed
    torch.testing.assert_close(row_norms(matrix), wide.norm(dim=1), rtol=1e-14, atol=0)
    torch.testing.assert_close(product(rows, matrix), rows @ wide, rtol=1e-13, atol=1e-15)


def test_what_is_not_scaled_is_not_copied():
    tensors = {name: tensor.float() for name, tensor in W.items()}
    for name, tensor in fold(tensors, torch.float32).items():
        assert tensor.data_ptr() == tensors[name].data_ptr()
