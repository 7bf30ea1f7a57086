"""A factor of the input is folded as SAELens folds it, from files and from an object in memory."""

import json

import pytest
import torch

from saeexport import load
from saeexport.checkpoints.formats import saelens
from saeexport.checkpoints.normalization import AVERAGE
from saeexport.checkpoints.request import Request, Source
from tests.peers.test_peers import D_IN, D_OUT, D_SAE, K, X, draw

FACTOR = 0.21381938399317255
KINDS = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("jumprelu", {}),
    ("gated", {}),
    ("topk", {"k": K}),
    ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ("transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
]


def agree(sae, peer):
    _, cache = sae.run_with_cache(X.to(sae.W_enc.device))
    for hook, expected in (("hook_sae_acts_post", peer.encode(X).to_dense()), ("hook_sae_recons", peer(X))):
        scale = max(1, float(expected.abs().max()))
        torch.testing.assert_close(cache[hook].cpu(), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize(("architecture", "options"), KINDS, ids=str)
@torch.no_grad()
def test_the_factor_is_folded_as_saelens_folds_it(tmp_path, architecture, options):
    from sae_lens.registry import get_sae_class

    kind, config = get_sae_class(architecture)
    peer = draw(kind(config(d_in=D_IN, d_sae=D_SAE, normalize_activations=AVERAGE, **options)))
    peer.save_model(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["normalize_activations"] == AVERAGE
    contents = {**peer.cfg.to_dict(), "architecture": architecture}
    tensors = {name: tensor.clone() for name, tensor in peer.state_dict().items()}
    peer.fold_activation_norm_scaling_factor(FACTOR)
    agree(load(tmp_path, norm_scaling_factor=FACTOR), peer)
    source = Source("The config of this SAE", "This SAE")
    agree(saelens.from_parts(contents, tensors, source, Request(norm_scaling_factor=FACTOR)), peer)


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize("rescaled", [True, False])
@torch.no_grad()
def test_the_factor_of_a_checkpoint_in_training(tmp_path, rescaled):
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    kind, config = get_sae_training_class("batchtopk")
    options = {"normalize_activations": AVERAGE, "rescale_acts_by_decoder_norm": rescaled}
    trained = draw(kind(config(d_in=D_IN, d_sae=D_SAE, k=K, **options)))
    trained.topk_threshold.fill_(0.3)
    trained.save_model(tmp_path / "in_training")
    trained.fold_activation_norm_scaling_factor(FACTOR)
    trained.save_inference_model(tmp_path / "finished")
    peer = SAE.load_from_disk(tmp_path / "finished")
    agree(load(tmp_path / "in_training", norm_scaling_factor=FACTOR), peer)
