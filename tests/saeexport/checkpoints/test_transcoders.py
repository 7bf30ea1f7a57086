"""circuit-tracer's transcoders and cross-layer transcoders: their layouts against the equations, and refusals."""

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import circuit_tracer, circuit_tracer_clt
from saeexport.checkpoints.registry import recognise
from tests.support.equations import D_IN, D_OUT, D_SAE, check, draw, linked, reference

ARCHITECTURES = ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
CONFIG = {  # as published
    "model_name": "Qwen/Qwen3-4B",
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "mlp.hook_out",
    "scan": "qwen3-4b-transcoders",
    "transcoders": ["hf://mwhanna/qwen3-4b-transcoders/layer_0.safetensors"],
}
TRAINING = {"d_model": {"value": D_IN}, "d_feature": {"value": D_SAE}, "act_fn": {"value": "relu"}}


def torched(tensors):
    return {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in tensors.items()}


def transcoder(folder, architecture, config=CONFIG, *, old=False, name="layer_12.safetensors", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(architecture)
    stored = {**drawn, "W_enc": drawn["W_enc"].T, "W_dec": drawn["W_dec"].T if old else drawn["W_dec"]}
    if "threshold" in stored:
        stored["activation_function.threshold"] = stored.pop("threshold")
    stored = {key: value for key, value in {**stored, **changes}.items() if value is not None}
    save_file(torched(stored), folder / name)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("old", [True, False])
def test_circuit_tracer(tmp_path, architecture, old):
    path = transcoder(tmp_path / "files", architecture, old=old)
    for place in (path, linked(path.parent, tmp_path) / path.name):
        assert recognise(place) is circuit_tracer
        sae = load(place)
        assert (sae.architecture, sae.cfg.model_name) == (architecture, "Qwen/Qwen3-4B")
        assert (sae.cfg.hook_name, sae.cfg.hook_name_out) == ("blocks.12.mlp.hook_in", "blocks.12.mlp.hook_out")
        check(sae, reference(architecture, draw(architecture), subtract=False))


def test_circuit_tracer_with_one_threshold(tmp_path):
    path = transcoder(tmp_path, "jumprelu_transcoder", **{"activation_function.threshold": np.float32(0.3)})
    tensors = {**draw("jumprelu_transcoder"), "threshold": np.full(D_SAE, 0.3, np.float32)}
    check(load(path), reference("jumprelu_transcoder", tensors, subtract=False))


def test_circuit_tracer_with_the_config_of_the_training_only(tmp_path):
    path = transcoder(tmp_path, "transcoder", None)
    (tmp_path / "wanb-config.yaml").write_text(yaml.safe_dump(TRAINING))
    sae = load(path)
    assert (sae.cfg.hook_name, sae.cfg.hook_name_out) == ("", "")
    check(sae, reference("transcoder", draw("transcoder"), subtract=False))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({**CONFIG, "model_kind": "cross_layer_transcoder"}, {}, "model_kind is 'cross_layer_transcoder'; it must be"),
        ({**CONFIG, "input_scale": 2}, {}, "unknown options, .*: input_scale = 2"),
        (["a"], {}, "config.yaml is not a mapping of names to values"),
        (CONFIG, {"log_thresholds": np.ones(D_SAE)}, r"has the unknown tensors \['log_thresholds'\]"),
        (CONFIG, {"b_enc": np.ones(D_OUT, np.float32)}, r"nearest format is HookedSAE state dict .* or circuit-tracer"),
        (CONFIG, {"W_dec": np.ones((D_SAE, 3), np.float32)}, r"holds .*W_dec \[16, 3\].* has .*W_dec \[16, 5\]"),
        (CONFIG, {"b_dec": np.ones(D_SAE, np.float32)}, "has as many features as outputs, 16, so that the orientation"),
        (CONFIG, {"activation_function.threshold": -np.ones(D_SAE, np.float32)}, "has negative thresholds, with which"),
    ],
)
def test_circuit_tracer_refusals(tmp_path, config, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(transcoder(tmp_path, "transcoder", config, **changes))


def test_circuit_tracer_trained_with_another_activation_function(tmp_path):
    path = transcoder(tmp_path, "transcoder")
    (tmp_path / "wandb-config.yaml").write_text(yaml.safe_dump({**TRAINING, "act_fn": {"value": "topk"}}))
    with pytest.raises(CheckpointError, match="act_fn of .*wandb-config.yaml: value is 'topk'; it must be one of relu"):
        load(path)


def test_a_config_that_is_not_yaml(tmp_path):
    path = transcoder(tmp_path, "transcoder")
    for text in ("a: [", "!!python/object/apply:print ['executed']"):
        path.with_name("config.yaml").write_text(text)
        with pytest.raises(CheckpointError, match="config.yaml is not YAML"):
            load(path)


LAYERS = 3
CLT = {
    "model_name": "google/gemma-2-2b",
    "model_kind": "cross_layer_transcoder",
    "feature_input_hook": "hook_resid_mid",
    "feature_output_hook": "hook_mlp_out",
    "scan": "gemma-2-2b-clt",
}


def clt(folder, architecture="transcoder", layers=range(LAYERS), config=CLT, **changes):
    """Write a cross-layer transcoder whose decoders of a layer add up to the decoder that `draw` gives."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        drawn = draw(architecture, seed=layer)
        targets = LAYERS - layer
        parts = np.random.default_rng(layer).normal(size=(D_SAE, targets, D_OUT)).astype(np.float32)
        parts[:, -1] = drawn["W_dec"] - parts[:, :-1].sum(1)
        encoder = {f"{name}_{layer}": value for name, value in drawn.items() if name != "W_dec"}
        encoder[f"W_enc_{layer}"] = drawn["W_enc"].T
        encoder |= {f"{name}_{layer}": value for name, value in changes.items() if name != "W_dec"}
        save_file(torched(encoder), folder / f"W_enc_{layer}.safetensors")
        decoder = {f"W_dec_{layer}": changes.get("W_dec", parts)}
        save_file(torched(decoder), folder / f"W_dec_{layer}.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize("architecture", ["transcoder", "jumprelu_transcoder"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_cross_layer_transcoder(tmp_path, architecture, layer):
    folder = clt(tmp_path / "files", architecture)
    files = [folder / f"W_{which}_{layer}.safetensors" for which in ("enc", "dec")]
    for path, index in [(folder, layer), (linked(folder, tmp_path), layer), *((file, None) for file in files)]:
        assert recognise(path) is circuit_tracer_clt
        sae = load(path, index=index)
        assert (sae.architecture, sae.cfg.model_name) == (architecture, "google/gemma-2-2b")
        assert sae.cfg.hook_name == f"blocks.{layer}.hook_resid_mid"
        assert sae.cfg.hook_name_out == f"blocks.{layer}.hook_mlp_out"
        check(sae, reference(architecture, draw(architecture, seed=layer), subtract=False))


def test_the_sum_of_the_decoders_is_rounded_once(tmp_path):
    parts = np.random.default_rng(1).normal(size=(D_SAE, LAYERS, D_OUT)).astype(np.float32)
    sae = load(clt(tmp_path, W_dec=parts), index=1, dtype="bfloat16")
    expected = torch.from_numpy(parts.astype(np.float64).sum(1)).bfloat16()
    assert torch.equal(sae.W_dec.detach().cpu(), expected)


@pytest.mark.parametrize(
    ("changes", "index", "message"),
    [
        ({}, None, "No layer is given; .* is a cross-layer transcoder of the layers 0, 1, 2. Say which one: --index N"),
        ({}, 3, "The layer is 3; .* of the layers 0, 1, 2"),
        ({"W_dec": np.ones((D_SAE, D_OUT), np.float32)}, 1, r"holds \[16, 5\]; a cross-layer decoder is \[d_sae, lay"),
        ({"W_dec": np.ones((3, 2, D_OUT), np.float32)}, 1, r"W_dec \[3, 5\].* has .*W_dec \[16, 5\]"),
        ({"threshold": -np.ones(D_SAE, np.float32)}, 1, "has negative thresholds"),
        ({"W_skip": np.ones((D_OUT, D_IN), np.float32)}, 1, r"has the unknown tensors \['W_skip_1'\]"),
        ({"config": {**CLT, "model_kind": "transcoder_set"}}, 1, "it must be one of cross_layer_transcoder"),
    ],
)
def test_cross_layer_transcoder_refusals(tmp_path, changes, index, message):
    with pytest.raises(CheckpointError, match=message):
        load(clt(tmp_path, **changes), index=index)


def test_tensors_of_several_dtypes_take_the_dtype_that_is_asked_for(tmp_path):
    path = transcoder(tmp_path, "transcoder", b_dec=draw("transcoder")["b_dec"].astype(np.float16))
    with pytest.raises(CheckpointError, match="mixes the dtypes float16, float32"):
        load(path)
    sae = load(path, dtype="float32")
    tensors = {**draw("transcoder"), "b_dec": draw("transcoder")["b_dec"].astype(np.float16)}
    check(sae, reference("transcoder", tensors, subtract=False))
