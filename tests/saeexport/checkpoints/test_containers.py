"""Shards, state dicts of trainings, folders of huggingface_hub and prefixes of wrappers, for every format."""

import json

import pytest
import torch
from safetensors.torch import save_file

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import goodfire, saelens, saelens_legacy, state_dict
from saeexport.checkpoints.registry import recognise
from tests.support.equations import D_IN, D_SAE, check, draw, is_mapped, linked, reference

W = {name: torch.from_numpy(tensor) for name, tensor in draw("standard").items()}
OWN = {"d_in": D_IN, "d_sae": D_SAE, "hook_name": "blocks.2.hook_mlp_out", "apply_b_dec_to_input": False}
LEGACY = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "hook_point": "blocks.2.hook_mlp_out",
    "apply_b_dec_to_input": False,
    "lr": 1e-3,
}
SAELENS = {
    "architecture": "standard",
    "d_in": D_IN,
    "d_sae": D_SAE,
    "apply_b_dec_to_input": False,
    "metadata": {"hook_name": "blocks.2.hook_mlp_out"},
}
GOODFIRE = {
    "encoder_linear.weight": W["W_enc"].T.contiguous(),
    "encoder_linear.bias": W["b_enc"],
    "decoder_linear.weight": W["W_dec"].T.contiguous(),
    "decoder_linear.bias": W["b_dec"],
}
CONFIGS = [(OWN, state_dict), (LEGACY, saelens_legacy), (SAELENS, saelens)]


def right(path, form, hook_name="blocks.2.hook_mlp_out"):
    assert recognise(path) is form
    sae = load(path)
    assert sae.cfg.hook_name == hook_name
    check(sae, reference("standard", W, subtract=False))


def shard(folder, name, tensors, **changes):
    """Write tensors to two files with an index, as huggingface_hub's `save_torch_state_dict` does."""
    stem = name.removesuffix(".safetensors")
    files = {key: f"{stem}-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(tensors)}
    for file in set(files.values()):
        save_file({key: tensors[key].contiguous() for key in tensors if files[key] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {**files, **changes}}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("given", ["", "cfg.json", "sae_weights.safetensors.index.json"])
def test_shards(tmp_path, given):
    folder = tmp_path / "sae"
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(SAELENS))
    shard(folder, "sae_weights.safetensors", W)
    right(folder / given, saelens)
    right(linked(folder, tmp_path) / given, saelens)


@pytest.mark.parametrize("config", [OWN, SAELENS])
def test_the_file_that_is_named_is_read(tmp_path, config):
    """A file and an index of shards with other weights are beside each other."""
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file({name: tensor * 2 for name, tensor in W.items()}, tmp_path / "sae_weights.safetensors")
    shard(tmp_path, "sae_weights.safetensors", W)
    for name, factor in (("sae_weights.safetensors", 2), ("sae_weights.safetensors.index.json", 1)):
        assert torch.equal(load(tmp_path / name).W_enc.cpu(), W["W_enc"] * factor)


@pytest.mark.parametrize("given", ["my-sae.safetensors", "my-sae.safetensors.index.json"])
def test_shards_of_a_state_dict(tmp_path, given):
    shard(tmp_path, "my-sae.safetensors", W)
    (tmp_path / "my-sae.json").write_text(json.dumps(OWN))
    right(tmp_path / given, state_dict)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_dec": "../sae_weights.safetensors"}, r"names \.\./sae_weights.safetensors; shards must lie in its folder"),
        ({"b_dec": "absent.safetensors"}, "absent.safetensors cannot be read"),
        ({"threshold": "sae_weights-00001-of-00002.safetensors"}, r"lacks the tensors \['threshold'\] and has"),
        ({"W_enc": "sae_weights-00002-of-00002.safetensors"}, "one of the two is of another checkpoint"),
        ({"W_enc": 3}, "3 cannot be read"),
    ],
)
def test_shards_that_do_not_fit(tmp_path, changes, message):
    (tmp_path / "cfg.json").write_text(json.dumps(SAELENS))
    shard(tmp_path, "sae_weights.safetensors", W, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', "{}", '{"weight_map": {"W_enc": "\\u0000"}}'])
def test_an_index_that_is_damaged(tmp_path, index):
    (tmp_path / "cfg.json").write_text(json.dumps(SAELENS))
    (tmp_path / "sae_weights.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(("config", "form"), CONFIGS, ids=["own", "SAELens before 6", "SAELens 6"])
@pytest.mark.parametrize("key", ["cfg", "config"])
def test_a_state_dict_with_its_config_in_one_file(tmp_path, config, form, key):
    training = {"optimizer": {"state": {}}, "epoch": 3, "loss": 0.5}
    torch.save({"state_dict": W, key: config, **training}, tmp_path / "sae.pt")
    right(tmp_path / "sae.pt", form)


def test_a_state_dict_of_a_format_without_a_config(tmp_path):
    torch.save({"model_state_dict": GOODFIRE, "step": 7}, tmp_path / "sae.pt")
    right(tmp_path / "sae.pt", goodfire, "")


def test_a_state_dict_with_its_config_beside_the_file(tmp_path):
    torch.save({"state_dict": W, "epoch": 1}, tmp_path / "sae.pt")
    (tmp_path / "sae.json").write_text(json.dumps(OWN))
    right(tmp_path / "sae.pt", state_dict)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"state_dict": W, "config": OWN, "scale": 2.0}, "holds scale beside its state_dict, which may change"),
        (
            {"state_dict": W, "config": OWN, "cfg": OWN},
            "holds state_dict, cfg, config; it must hold one state dict",
        ),
        (
            {"state_dict": W, "model_state_dict": W},
            "holds state_dict, model_state_dict; it must hold one state dict",
        ),
        ({"state_dict": {**W, "epoch": 2}, "config": OWN}, "holds a dict, not a state dict of named tensors"),
        ({"state_dict": {3: W["W_enc"]}, "config": OWN}, "holds a dict, not a state dict of named tensors"),
        ({"state_dict": W, "config": {**OWN, "lr": 1e-3, "width": 9}}, "unknown options, .*: width = 9"),
    ],
)
def test_training_checkpoints_that_are_refused(tmp_path, values, message):
    torch.save(values, tmp_path / "sae.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "sae.pt")


@pytest.mark.parametrize(("config", "form"), CONFIGS, ids=["own", "SAELens before 6", "SAELens 6"])
@pytest.mark.parametrize("config_name", ["config.json", "cfg.json"])
@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("given", ["", "config", "weights"])
def test_a_folder_of_huggingface_hub(tmp_path, config, form, config_name, sharded, given):
    (tmp_path / config_name).write_text(json.dumps(config))
    weights = "model.safetensors.index.json" if sharded else "model.safetensors"
    shard(tmp_path, "model.safetensors", W) if sharded else save_file(W, tmp_path / weights)
    right(tmp_path / {"config": config_name, "weights": weights}.get(given, ""), form)


def test_a_language_model_is_not_an_sae(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 6}))
    save_file({"model.embed_tokens.weight": torch.zeros(4, 6)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a folder with config.json, model.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module.module."]
)
def test_prefixes(tmp_path, prefix):
    (tmp_path / "cfg.json").write_text(json.dumps(SAELENS))
    save_file({f"{prefix}{name}": tensor for name, tensor in W.items()}, tmp_path / "sae_weights.safetensors")
    right(tmp_path, saelens)
    torch.save({f"{prefix}{name}": tensor for name, tensor in GOODFIRE.items()}, tmp_path / "sae.pt")
    right(tmp_path / "sae.pt", goodfire, "")


def test_a_wrapper_inside_of_a_module(tmp_path):
    names = {name: name.replace("encoder_linear.", "encoder_linear._orig_mod.") for name in GOODFIRE}
    torch.save({names[name]: tensor for name, tensor in GOODFIRE.items()}, tmp_path / "sae.pt")
    right(tmp_path / "sae.pt", goodfire, "")


def test_a_prefix_of_some_parameters_is_a_name(tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps(SAELENS))
    save_file({**W, "module.b_dec": W["b_dec"].clone()}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match=r"module\.b_dec \[6\]"):
        load(tmp_path)


def test_a_parameter_with_and_without_a_prefix(tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps(SAELENS))
    save_file({**W, "_orig_mod.b_dec": W["b_dec"] * 2}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="holds a parameter twice"):
        load(tmp_path)


def test_containers_keep_tensors_as_views_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = {f"module.{name}": tensor for name, tensor in W.items()}
    torch.save({"state_dict": state, "cfg": OWN}, tmp_path / "sae.pt")
    assert is_mapped(load(tmp_path / "sae.pt").W_dec, tmp_path / "sae.pt")
    (tmp_path / "cfg.json").write_text(json.dumps(SAELENS))
    shard(tmp_path, "sae_weights.safetensors", W)
    W_dec = load(tmp_path).W_dec
    assert any(is_mapped(W_dec, file) for file in tmp_path.glob("*-of-*.safetensors"))
