"""Transcoders, which predict another activation than they read."""

import numpy as np
import pytest
import torch

from runtime import InputError, SAESession
from saeexport import ExportError, export
from tests.support.samples import HOOKS, normal
from tests.support.zoo import D_IN, D_OUT, D_SAE, sae_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS


def test_a_transcoder_without_the_error_term_has_no_error(tmp_path):
    sae = sae_of("transcoder")
    artifact = export(sae, tmp_path / "sae", normal(20, D_IN))
    assert artifact.manifest.sae.hooks == tuple(hook for hook in HOOKS if hook != ERROR)
    assert artifact.manifest.sae.d_out == D_OUT
    with SAESession(artifact, "cpu") as session:
        assert session(normal(3, D_IN)).shape == (3, D_OUT)
        with pytest.raises(InputError, match="hook_sae_error: no such hook. There are hook_sae_input, "):
            session.compute(normal(3, D_IN), [ERROR])
        with pytest.raises(
            InputError, match=r"target is \(3, 7\) float32; this SAE takes none, because it is not a trans"
        ):
            session(normal(3, D_IN), normal(3, D_OUT))


def test_a_transcoder_with_the_error_term_needs_its_target(tmp_path):
    sae = sae_of("skip_transcoder", use_error_term=True)
    with pytest.raises(InputError, match=r"The target is None; this transcoder takes a target of"):
        sae(torch.zeros(3, D_IN))
    with pytest.raises(InputError, match=r"The target is \(3, 8\).*takes a target of shape \(3, 7\)"):
        sae(torch.zeros(3, D_IN), torch.zeros(3, 8))
    with pytest.raises(InputError, match=r"takes no target, because use_error_term is False"):
        sae_of("transcoder")(torch.zeros(3, D_IN), torch.zeros(3, D_OUT))
    path = export(sae, tmp_path / "sae").path
    with SAESession(path, "cpu") as session:
        assert session.encode(normal(3, D_IN)).shape == (3, D_SAE)
        with pytest.raises(InputError, match=r"pass target=, \(\.\.\., d_out\)"):
            session(normal(3, D_IN))
        with pytest.raises(InputError, match=r"target is \(3, 8\) float32; this SAE takes one of shape \(3, 7\)"):
            session(normal(3, D_IN), normal(3, 8))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "none given; this SAE takes one for each"),
        (np.zeros((4, 8)), r"targets is \(4, 8\) float64; this SAE takes one of shape \(4, 7\)"),
    ],
)
def test_targets_must_fit_the_activations(tmp_path, targets, message):
    sae = sae_of("transcoder", use_error_term=True)
    with pytest.raises((ExportError, InputError), match=message):
        export(sae, tmp_path / "sae", normal(4, D_IN), targets=targets)
    with pytest.raises(ExportError, match="some given; this SAE takes none"):
        export(sae_of("standard"), tmp_path / "sae", normal(4, D_IN), targets=normal(4, D_IN))


@pytest.mark.parametrize(
    ("architecture", "more", "message"),
    [
        ("topk", {"k": 0}, r"k is 0; it must be from 1 to d_sae = 48"),
        ("topk", {"k": 49}, "k is 49"),
        ("transcoder", {"d_out": 0}, "d_out is 0"),
        ("transcoder", {"apply_b_dec_to_input": True}, "apply_b_dec_to_input is True"),
        ("skip_transcoder", {"normalize_activations": "layer_norm"}, "'layer_norm'; a transcoder's output is another"),
        (
            "standard",
            {"normalize_activations": "covariance_whitening"},
            "it must be one of none, constant_norm",
        ),
        ("standard", {"k": 3}, r"HookedSAEConfig got unknown keys \['k'\]"),
    ],
)
def test_invalid_options_are_named(architecture, more, message):
    with pytest.raises(ValueError, match=message):
        sae_of(architecture, **more)
