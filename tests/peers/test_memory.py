"""SAEs that other libraries hold in memory have the same features and reconstructions there and after `convert`."""

import pytest
import torch

from saeexport import CheckpointError, convert

from .test_peers import D_IN, D_SAE, DICTIONARIES, SAELENS, K, X, agree, draw, trainer


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize(("architecture", "options"), SAELENS, ids=str)
@torch.no_grad()
def test_saelens(architecture, options):
    from sae_lens.registry import get_sae_class

    kind, config = get_sae_class(architecture)
    peer = draw(kind(config(d_in=D_IN, d_sae=D_SAE, **options)))
    agree(convert(peer), peer.encode(X).to_dense(), peer(X), architecture)


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
@torch.no_grad()
def test_saelens_in_training(architecture):
    from sae_lens.registry import get_sae_training_class

    kind, config = get_sae_training_class(architecture)
    peer = draw(kind(config(d_in=D_IN, d_sae=D_SAE, **({"k": K} if architecture == "topk" else {}))))
    agree(convert(peer), peer.encode(X).to_dense(), peer(X), architecture)


@pytest.mark.peers("sae_lens")
def test_saelens_keeps_thresholds_in_training_in_float32():
    from sae_lens.registry import get_sae_training_class

    kind, config = get_sae_training_class("jumprelu")
    peer = draw(kind(config(d_in=D_IN, d_sae=D_SAE, dtype="bfloat16")))
    assert {tensor.dtype for tensor in peer.state_dict().values()} == {torch.bfloat16, torch.float32}
    assert {tensor.dtype for tensor in convert(peer).parameters()} == {torch.bfloat16}
    assert torch.equal(convert(peer, dtype="float32").threshold.cpu(), peer.threshold)


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize("architecture", ["matching_pursuit", "temporal"])
def test_architectures_of_saelens_without_an_equivalent_are_refused(architecture):
    from sae_lens.registry import get_sae_class

    kind, config = get_sae_class(architecture)
    options = {"matching_pursuit": {"max_iterations": 3}, "temporal": {"n_heads": 4, "bottleneck_factor": 2}}[
        architecture
    ]
    with pytest.raises(CheckpointError, match=architecture):
        convert(kind(config(d_in=D_IN, d_sae=D_SAE, **options)))


@pytest.mark.peers("sparsify")
@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("skip", [True, False])
@torch.no_grad()
def test_sparsify(transcode, skip):
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(k=K, num_latents=D_SAE, transcode=transcode, skip_connection=skip)
    peer = draw(SparseCoder(D_IN, config))
    encoded = peer.encode(X)
    features = torch.zeros(len(X), D_SAE).scatter(-1, encoded.top_indices, encoded.top_acts)
    architecture = "topk_skip_transcoder" if skip else "topk_transcoder" if transcode else "topk"
    agree(convert(peer), features, peer(X).sae_out, architecture)


@pytest.mark.peers("dictionary_learning")
@pytest.mark.parametrize(("name", "options", "architecture"), DICTIONARIES, ids=str)
@torch.no_grad()
def test_dictionary_learning(name, options, architecture):
    peer = draw(trainer(name, **options).ae)
    if "BatchTopK" in name:
        peer.threshold.fill_(0.7)
    agree(convert(peer), peer.encode(X), peer(X), architecture)


@pytest.mark.peers("dictionary_learning")
def test_matryoshka_groups_that_are_off_are_refused():
    peer = trainer("MatryoshkaBatchTopKTrainer", k=K, group_fractions=[0.25, 0.75]).ae
    peer.active_groups = 1
    with pytest.raises(CheckpointError, match="1 of the 2 groups"):
        convert(peer)


@pytest.mark.peers("dictionary_learning")
@torch.no_grad()
def test_a_jumprelu_dictionary_may_subtract_the_bias():
    from dictionary_learning.dictionary import JumpReluAutoEncoder

    peer = draw(JumpReluAutoEncoder(D_IN, D_SAE))
    peer.apply_b_dec_to_input = True
    agree(convert(peer), peer.encode(X), peer(X), "jumprelu")


@pytest.mark.peers("sentence_transformers")
@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_sentence_transformers(normalize):
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    peer = draw(SparseAutoEncoder(D_IN, D_SAE, k=K, k_aux=8, normalize=normalize)).eval()
    features = peer({"sentence_embedding": X})
    agree(convert(peer), features["sentence_embedding"], features["decoded_embedding_k"], "topk")
