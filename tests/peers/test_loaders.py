"""The layouts that SAELens' loaders and sentence-transformers read are read by `load` with the same numbers.

No published file is at hand here: the files are written with random tensors, in the layout that the loaders expect.
"""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from .test_peers import D_IN, D_SAE, K, X, agree, download_from, draw, linears

DRAWS = torch.Generator().manual_seed(3)


def tensors(d_sae=D_SAE, d_out=D_IN, **more):
    shapes = {"W_enc": (D_IN, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_out), "b_dec": (d_out,), **more}
    drawn = {name: torch.randn(shape, generator=DRAWS) * 0.3 for name, shape in shapes.items()}
    return {name: tensor.abs() if name == "threshold" else tensor for name, tensor in drawn.items()}


def peer_of(kind, state, **options):
    """Return SAELens' SAE of an architecture with the tensors that its loader made."""
    from sae_lens.registry import get_sae_class

    sae_class, config = get_sae_class(kind)
    peer = sae_class(config(d_in=D_IN, d_sae=len(state["b_enc"]), apply_b_dec_to_input=False, **options))
    peer.load_state_dict({name: state[name] for name in peer.state_dict()})
    return peer


def shapes_from(folder, loaders, monkeypatch):
    """Have SAELens read the headers of safetensors files from a folder."""

    def read(repo_id, filename):
        with safe_open(folder / filename, "pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", read)


@pytest.mark.peers("sae_lens")
@torch.no_grad()
def test_qwen_scope(tmp_path, monkeypatch):
    repository = "SAE-Res-Qwen3-1.7B-Base-W1K-L0_50"
    folder = tmp_path / repository
    folder.mkdir()
    stored = tensors(d_sae=1024)
    stored |= {name: stored[name].T.contiguous() for name in ("W_enc", "W_dec")}
    torch.save(stored, folder / "layer7.sae.pt")
    loaders = download_from(folder, monkeypatch)
    config, state, _ = loaders.qwen_scope_sae_huggingface_loader(f"Qwen/{repository}", "layer7.sae.pt")
    assert (config["apply_b_dec_to_input"], config["d_sae"]) == (False, 1024)
    peer = peer_of("topk", state, k=config["activation_fn_kwargs"]["k"])
    agree(folder / "layer7.sae.pt", peer.encode(X).to_dense(), peer(X), "topk")


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize("typo", ["wandb-config.yaml", "wanb-config.yaml"])
@torch.no_grad()
def test_circuit_tracer(tmp_path, monkeypatch, typo):
    from huggingface_hub.utils import EntryNotFoundError

    stored = tensors()
    stored["W_enc"] = stored["W_enc"].T.contiguous()
    save_file(stored, tmp_path / "layer_12.safetensors")
    values = {"d_model": D_IN, "d_feature": D_SAE, "batch_size": 8, "act_fn": "relu"}
    (tmp_path / typo).write_text(yaml.safe_dump({name: {"value": value} for name, value in values.items()}))
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model_name": "Qwen/Qwen3-4B", **hooks}))
    loaders = download_from(tmp_path, monkeypatch)
    found = loaders.hf_hub_download

    def find(repo_id, filename, **options):
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename)
        return found(repo_id, filename, **options)

    monkeypatch.setattr(loaders, "hf_hub_download", find)
    config, state, _ = loaders.mwhanna_transcoder_huggingface_loader("mwhanna/qwen3-4b", "layer_12.safetensors")
    peer = peer_of("transcoder", state, d_out=D_IN)
    sae = agree(tmp_path / "layer_12.safetensors", peer.encode(X), peer(X), "transcoder")
    assert (sae.cfg.hook_name, sae.cfg.hook_name_out) == (config["hook_name"], config["hook_name_out"])


@pytest.mark.peers("sae_lens")
@pytest.mark.filterwarnings("ignore:This loads the CLT layer")
@torch.no_grad()
def test_circuit_tracer_clt(tmp_path, monkeypatch):
    for layer in range(3):
        stored = tensors()
        encoder = {f"{name}_{layer}": stored[name] for name in ("b_enc", "b_dec")}
        save_file(
            {**encoder, f"W_enc_{layer}": stored["W_enc"].T.contiguous()}, tmp_path / f"W_enc_{layer}.safetensors"
        )
        decoders = torch.randn(D_SAE, 3 - layer, D_IN, generator=DRAWS)
        save_file({f"W_dec_{layer}": decoders}, tmp_path / f"W_dec_{layer}.safetensors")
    config = {"model_name": "g", "feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    loaders = download_from(tmp_path, monkeypatch)
    shapes_from(tmp_path, loaders, monkeypatch)
    config, state, _ = loaders.mntss_clt_layer_huggingface_loader("mntss/clt-gemma-2-2b-2.5M", "1")
    peer = peer_of("transcoder", state, d_out=D_IN)
    sae = agree(tmp_path, peer.encode(X), peer(X), "transcoder", index=1)
    assert (sae.cfg.hook_name, sae.cfg.hook_name_out) == (config["hook_name"], config["hook_name_out"])


@pytest.mark.peers("sae_lens")
@torch.no_grad()
def test_llama_scope_r1(tmp_path, monkeypatch):
    hook, norm = "blocks.15.hook_resid_post", 1.7
    folder = tmp_path / "L15R"
    folder.mkdir()
    config = {
        "sae_type": "sae",
        "d_model": D_IN,
        "expansion_factor": D_SAE // D_IN,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "use_decoder_bias": True,
        "use_glu_encoder": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    stored = linears("encoder", "decoder")
    stored["log_jumprelu_threshold"] = torch.randn(D_SAE, generator=DRAWS)
    stored[f"dataset_average_activation_norm.{hook}"] = torch.tensor(norm)
    save_file(stored, folder / "sae_weights.safetensors")
    loaders = download_from(tmp_path, monkeypatch)
    _, state, _ = loaders.llama_scope_r1_distill_sae_huggingface_loader("fnlp/Llama-Scope-R1-Distill", "L15R")
    peer = peer_of("jumprelu", state)
    peer.fold_activation_norm_scaling_factor(D_IN**0.5 / norm)  # the registry has this factor for each SAE
    agree(folder, peer.encode(X), peer(X), "jumprelu")


@pytest.mark.peers("sae_lens")
@torch.no_grad()
def test_deepseek_r1(tmp_path, monkeypatch):
    name = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
    torch.save(linears("encoder", "decoder"), tmp_path / name)
    loaders = download_from(tmp_path, monkeypatch)
    config, state, _ = loaders.deepseek_r1_sae_huggingface_loader("qresearch/sae", name)
    peer = peer_of("standard", state)
    sae = agree(tmp_path / name, peer.encode(X), peer(X), "standard")
    assert sae.cfg.hook_name == config["hook_name"]


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize("lower", [True, False])
@torch.no_grad()
def test_gemma_scope_transcoder(tmp_path, monkeypatch, lower):
    place = "layer_3/width_16k/average_l0_54"
    folder = tmp_path / "models--google--gemma-scope-2b-pt-transcoders" / "snapshots" / "abc" / place
    folder.mkdir(parents=True)
    stored = tensors(threshold=(D_SAE,))
    np.savez(folder / "params.npz", **{name.lower() if lower else name: t.numpy() for name, t in stored.items()})
    loaders = download_from(folder.parents[2], monkeypatch)
    config, state, _ = loaders.gemma_2_transcoder_huggingface_loader("google/gemma-scope-2b-pt-transcoders", place)
    peer = peer_of("jumprelu_transcoder", state, d_out=D_IN)
    sae = agree(folder / "params.npz", peer.encode(X), peer(X), "jumprelu_transcoder")
    assert (sae.cfg.hook_name, sae.cfg.hook_name_out) == (config["hook_name"], config["hook_name_out"])


GEMMA_SCOPE_2 = [
    ("resid_post/layer_9_width_16k_l0_small", "jumprelu"),
    ("transcoder/layer_9_width_16k_l0_small", "jumprelu_transcoder"),
    ("transcoder_all/layer_9_width_16k_l0_small_affine", "jumprelu_skip_transcoder"),
]


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize(("place", "architecture"), GEMMA_SCOPE_2)
@torch.no_grad()
def test_gemma_scope_2_without_a_config(tmp_path, monkeypatch, place, architecture):
    from huggingface_hub.utils import EntryNotFoundError

    skip = {"affine_skip_connection": (D_IN, D_IN)} if "skip" in architecture else {}
    folder = tmp_path / "gemma-scope-2-4b-pt" / place
    folder.mkdir(parents=True)
    stored = tensors(threshold=(D_SAE,), **skip)
    save_file({name.lower(): tensor for name, tensor in stored.items()}, folder / "params.safetensors")
    loaders = download_from(tmp_path / "gemma-scope-2-4b-pt", monkeypatch)
    shapes_from(tmp_path / "gemma-scope-2-4b-pt", loaders, monkeypatch)
    found = loaders.hf_hub_download

    def find(repo_id, filename, *arguments, **options):
        if filename.endswith("config.json"):
            raise EntryNotFoundError(filename)
        return found(repo_id, filename, *arguments, **options)

    monkeypatch.setattr(loaders, "hf_hub_download", find)
    config, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-4b-pt", place)
    assert config["architecture"] == architecture
    peer = peer_of(architecture, state, **({"d_out": D_IN} if "transcoder" in architecture else {}))
    sae = agree(folder, peer.encode(X), peer(X), architecture)
    if architecture == "jumprelu":
        assert sae.cfg.hook_name == config["hook_name"]


@pytest.mark.peers("sentence_transformers")
@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_sentence_transformers(tmp_path, normalize):
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    peer = draw(SparseAutoEncoder(D_IN, D_SAE, k=K, k_aux=K, normalize=normalize))
    peer.save(str(tmp_path))
    features = peer({"sentence_embedding": X})
    agree(tmp_path, features["sentence_embedding"], features["decoded_embedding_k"], "topk")
