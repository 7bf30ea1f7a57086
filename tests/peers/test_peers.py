"""SAEs that other libraries saved have the same features and reconstructions there and after `load`."""

import json

import pytest
import torch
from safetensors.torch import save_file

from saeexport import HookedSAE, load

D_IN, D_SAE, D_OUT, K = 24, 96, 20, 8
X = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1))


def draw(module, scale=0.3):
    """Give every parameter different values."""
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=draws) * scale
            parameter.copy_(values.abs() if "threshold" in name else values)
    return module


def agree(source, features, reconstruction, architecture, **options):
    """Compare a HookedSAE, or what load() reads from a path, with what the library computed for X; return the SAE."""
    sae = source if isinstance(source, HookedSAE) else load(source, **options)
    assert sae.architecture == architecture
    assert 0 < features.count_nonzero() < features.numel()
    _, cache = sae.run_with_cache(X.to(sae.W_enc.device))
    for hook, expected in (("hook_sae_acts_post", features), ("hook_sae_recons", reconstruction)):
        torch.testing.assert_close(cache[hook].cpu(), expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max())))
    return sae


SAELENS = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("standard", {"normalize_activations": "layer_norm"}),
    ("standard", {"normalize_activations": "constant_norm_rescale"}),
    ("jumprelu", {}),
    ("jumprelu", {"apply_b_dec_to_input": False}),
    ("gated", {}),
    ("topk", {"k": K}),
    ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ("topk", {"k": K, "normalize_activations": "layer_norm"}),
    ("abstopk", {"k": K}),
    ("transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
    ("skip_transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
    ("jumprelu_transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
    ("jumprelu_skip_transcoder", {"d_out": D_OUT, "apply_b_dec_to_input": False}),
]


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize(("architecture", "options"), SAELENS, ids=str)
@torch.no_grad()
def test_saelens(tmp_path, architecture, options):
    from sae_lens.registry import get_sae_class

    kind, config = get_sae_class(architecture)
    peer = draw(kind(config(d_in=D_IN, d_sae=D_SAE, **options)))
    peer.save_model(tmp_path)
    agree(tmp_path, peer.encode(X).to_dense(), peer(X), architecture)


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@torch.no_grad()
def test_saelens_that_was_trained_with_another_architecture(tmp_path, architecture, rescaled):
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    kind, config = get_sae_training_class(architecture)
    options = {"matryoshka_widths": [32, D_SAE]} if architecture.startswith("matryoshka") else {}
    trained = draw(kind(config(d_in=D_IN, d_sae=D_SAE, k=K, rescale_acts_by_decoder_norm=rescaled, **options)))
    trained.topk_threshold.fill_(0.7)
    trained.save_inference_model(tmp_path / "finished")
    peer = SAE.load_from_disk(tmp_path / "finished")
    agree(tmp_path / "finished", peer.encode(X), peer(X), "jumprelu")
    trained.save_model(tmp_path / "in_training")
    agree(tmp_path / "in_training", peer.encode(X), peer(X), "jumprelu")


@pytest.mark.peers("sparsify")
@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("width", [{"num_latents": D_SAE}, {"expansion_factor": 4}], ids=str)
@torch.no_grad()
def test_sparsify(tmp_path, transcode, skip, width):
    from sparsify import SparseCoder, SparseCoderConfig

    peer = draw(SparseCoder(D_IN, SparseCoderConfig(k=K, transcode=transcode, skip_connection=skip, **width)))
    peer.save_to_disk(tmp_path)
    encoded = peer.encode(X)
    features = torch.zeros(len(X), D_SAE).scatter(-1, encoded.top_indices, encoded.top_acts)
    architecture = "topk_skip_transcoder" if skip else "topk_transcoder" if transcode else "topk"
    agree(tmp_path, features, peer(X).sae_out, architecture)


def trainer(name, **options):
    """Return one of dictionary_learning's trainers, as a training run makes it."""
    import dictionary_learning.trainers as trainers
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    others = {kind.__name__: kind for kind in (MatryoshkaBatchTopKTrainer, StandardTrainerAprilUpdate)}
    kind = others.get(name) or getattr(trainers, name)
    return kind(steps=50_000, activation_dim=D_IN, dict_size=D_SAE, layer=3, lm_name="gpt2", device="cpu", **options)


DICTIONARIES = [
    ("StandardTrainer", {"submodule_name": "resid_post_layer_3"}, "standard"),
    ("StandardTrainerAprilUpdate", {}, "standard"),
    ("PAnnealTrainer", {}, "standard"),
    ("GatedSAETrainer", {}, "gated"),
    ("GatedAnnealTrainer", {"resample_steps": 25_000}, "gated"),
    ("JumpReluTrainer", {}, "jumprelu"),
    ("TopKTrainer", {"k": K}, "topk"),
    ("BatchTopKTrainer", {"k": K}, "jumprelu"),
    ("MatryoshkaBatchTopKTrainer", {"k": K, "group_fractions": [0.25, 0.75]}, "jumprelu"),
]


def write_dictionary(path, config, peer):
    """Write what dictionary_learning's `trainSAE` writes."""
    (path / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"io": "out", "d_submodule": D_IN}}))
    torch.save(peer.state_dict(), path / "ae.pt")


@pytest.mark.peers("dictionary_learning")
@pytest.mark.parametrize(("name", "options", "architecture"), DICTIONARIES, ids=str)
@torch.no_grad()
def test_dictionary_learning(tmp_path, name, options, architecture):
    made = trainer(name, **options)
    peer = draw(made.ae)
    if "BatchTopK" in name:
        peer.threshold.fill_(0.7)
    write_dictionary(tmp_path, made.config, peer)
    agree(tmp_path, peer.encode(X), peer(X), architecture)


@pytest.mark.peers("dictionary_learning")
@torch.no_grad()
def test_a_dictionary_without_a_trainer(tmp_path):
    from dictionary_learning.dictionary import AutoEncoderNew

    peer = draw(AutoEncoderNew(D_IN, D_SAE))
    write_dictionary(tmp_path, {**trainer("StandardTrainer").config, "dict_class": "AutoEncoderNew"}, peer)
    agree(tmp_path, peer.encode(X), peer(X), "standard")


# The formats that no library writes any more, but SAELens reads.


def linears(encoder, decoder):
    draws = torch.Generator().manual_seed(2)
    columns = torch.randn(D_IN, D_SAE, generator=draws)
    return {
        f"{encoder}.weight": torch.randn(D_SAE, D_IN, generator=draws) * 0.3,
        f"{encoder}.bias": torch.randn(D_SAE, generator=draws) * 0.3,
        f"{decoder}.weight": columns / columns.norm(dim=0),
        f"{decoder}.bias": torch.randn(D_IN, generator=draws) * 0.3,
    }


def download_from(folder, monkeypatch):
    """Have SAELens find the files of a repository in a folder."""
    from sae_lens.loading import pretrained_sae_loaders

    def find(repo_id, filename, subfolder=".", **_):
        return str(folder / subfolder / filename)

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", find)
    return pretrained_sae_loaders


@pytest.mark.peers("sae_lens")
@torch.no_grad()
def test_llama_scope(tmp_path, monkeypatch):
    from sae_lens.saes import JumpReLUSAE, JumpReLUSAEConfig

    point, norm = "blocks.15.hook_resid_post", 3.25
    config = {
        "hook_point_in": point,
        "hook_point_out": point,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.75,
        "d_model": D_IN,
        "d_sae": D_SAE,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "use_glu_encoder": False,
    }
    folder = tmp_path / "L15R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hyperparams.json").write_text(json.dumps(config))
    save_file(linears("encoder", "decoder"), folder / "checkpoints" / "final.safetensors")
    loaders = download_from(tmp_path, monkeypatch)
    settings, state, _ = loaders.llama_scope_sae_huggingface_loader(
        "fnlp", folder.name, cfg_overrides={"dtype": "float32"}
    )
    peer = JumpReLUSAE(JumpReLUSAEConfig(**{key: settings[key] for key in ("d_in", "d_sae", "apply_b_dec_to_input")}))
    peer.load_state_dict(state)
    peer.fold_activation_norm_scaling_factor(D_IN**0.5 / norm)
    agree(folder, peer.encode(X), peer(X), "jumprelu")


@pytest.mark.peers("sae_lens")
@torch.no_grad()
def test_goodfire(tmp_path, monkeypatch):
    from sae_lens.saes import StandardSAE, StandardSAEConfig

    name = "Llama-3.3-70B-Instruct-SAE-l50"
    torch.save(linears("encoder_linear", "decoder_linear"), tmp_path / f"{name}.pt")
    loaders = download_from(tmp_path, monkeypatch)
    settings, state, _ = loaders.get_goodfire_huggingface_loader(f"Goodfire/{name}", f"{name}.pt")
    peer = StandardSAE(StandardSAEConfig(D_IN, D_SAE, apply_b_dec_to_input=settings["apply_b_dec_to_input"]))
    peer.load_state_dict(state)
    agree(tmp_path / f"{name}.pt", peer.encode(X), peer(X), "standard")
