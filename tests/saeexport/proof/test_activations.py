"""Activations that prove nothing are refused: too few different tokens, or no feature on."""

import numpy as np
import pytest
import torch

from saeexport import ExportError, export, verify
from saeexport.proof.activations import MIN_DISTINCT
from tests.support.samples import TINY, make_sae, normal


@pytest.mark.parametrize(
    ("activations", "found"),
    [
        (torch.zeros(10, 6), "1 different token in 10"),
        (np.concatenate([np.zeros((5, 6)), -np.zeros((5, 6))]).astype(np.float32), "1 different token in 10"),
        (np.full((3, 4, 6), 2.5, np.float32), "1 different token in 12"),
        (np.tile(normal(MIN_DISTINCT - 1, 6), (20, 1)), "3 different tokens in 60"),
        (normal(1, 6), "1 different token in 1"),
    ],
)
def test_too_few_different_tokens(tmp_path, activations, found):
    with pytest.raises(ExportError, match=f"activations has {found}; parity needs at least 4. Pass activations of the"):
        export(make_sae(), tmp_path / "out", activations)
    assert not (tmp_path / "out").exists()


def test_enough_different_tokens(tmp_path):
    export(make_sae(), tmp_path / "out", np.tile(normal(MIN_DISTINCT, 6), (20, 1)))


def test_too_few_tokens_that_do_not_cancel(tmp_path):
    sae, x = make_sae(), normal(MIN_DISTINCT, 6)
    with torch.no_grad():
        sae.b_enc -= sae.preactivations(torch.from_numpy(x))[1]
    with pytest.raises(
        ExportError, match="Of 4 tokens 1 cancel so much that they prove little; parity needs at least 4"
    ):
        export(sae, tmp_path / "out", x)
    assert not (tmp_path / "out").exists()


def test_no_feature_is_on(tmp_path):
    sae = make_sae()
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    with pytest.raises(ExportError, match="No feature is on for any of the 50 given tokens, .* --activations FILE"):
        export(sae, tmp_path / "out", normal(50, 6))
    with pytest.raises(ExportError, match="No feature is on for any of the 1024 random tokens"):
        export(sae, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verify_refuses_them_too():
    with pytest.raises(ExportError, match="1 different token in 8"):
        verify(TINY, activations=np.ones((8, 6), np.float32))
