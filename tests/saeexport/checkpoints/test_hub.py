"""hf:// addresses: what is downloaded for each format, where the SAE says that it is from, and every error."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime import HubError, read_artifact
from saeexport import CheckpointError, export, load
from saeexport.checkpoints.hub import hub_address
from saeexport.cli import main
from tests.saeexport.checkpoints.test_transcoders import transcoder
from tests.support.equations import write
from tests.support.hub_server import HubServer
from tests.support.samples import TINY, make_sae, normal

SAELENS = {"architecture": "standard", "d_in": 6, "d_sae": 16, "dtype": "float32", "metadata": {"hook_name": "h"}}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with `ada/saes`: three SAELens folders, and what no checkpoint needs."""
    release = tmp_path / "release"
    for layer in range(3):
        state = {name: tensor.numpy() for name, tensor in make_sae(seed=layer).state_dict().items()}
        write(release / f"layer_{layer}", SAELENS, state, "cfg.json", "sae_weights.safetensors")
        (release / f"layer_{layer}" / "sparsity.safetensors").write_bytes(b"0" * 5000)
    (release / "README.md").write_text("# saes\n")
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "cache")
        server.saes = server.add_folder("ada/saes", release)
        server.release = release
        yield server


@pytest.mark.parametrize("address", ["hf://ada/saes/layer_1", "hf://ada/saes@main/layer_1", "hf://ada/saes/layer_1/",
                                     "hf://ada/saes/layer_1/cfg.json", Path("hf://ada/saes/layer_1")])  # fmt: skip
def test_one_of_several(hub, address):
    sae, expected = load(address), make_sae(seed=1)
    assert sorted(hub.downloaded) == ["layer_1/cfg.json", "layer_1/sae_weights.safetensors"]
    assert all(torch.equal(tensor, sae.state_dict()[name]) for name, tensor in expected.state_dict().items())
    assert sae.provenance["source"] == f"hf://ada/saes@{hub.saes}/layer_1"


def test_a_pinned_commit(hub):
    hub.repos["ada/saes"].commit({"README.md": b""})
    assert load(f"hf://ada/saes@{hub.saes}/layer_2").cfg.d_sae == 16
    with pytest.raises(HubError, match=r"/layer_2 does not exist"):
        load("hf://ada/saes/layer_2")


def test_the_manifest_has_the_source(hub, tmp_path, capsys):
    assert main(["export", "hf://ada/saes/layer_0", str(tmp_path / "out")]) == 0
    assert read_artifact(tmp_path / "out").manifest.provenance["source"] == f"hf://ada/saes@{hub.saes}/layer_0"
    assert load(tmp_path / "out").provenance == {}  # an artifact on this disk has no source of its own


def test_without_an_address_there_is_no_source(hub, tmp_path):
    sae = load(hub.release / "layer_0")
    assert "source" not in export(sae, tmp_path / "out", normal(40, 6)).manifest.provenance


def test_inspect(hub, capsys):
    assert main(["inspect", "hf://ada/saes/layer_0"]) == 0
    assert "SAELens 6" in capsys.readouterr().out


def test_several_are_listed(hub, capsys):
    assert main(["inspect", "hf://ada/saes"]) == 2
    error = capsys.readouterr().err
    assert f"hf://ada/saes@{hub.saes} holds 3 checkpoints: layer_0, layer_1, layer_2. Add the path of one" in error
    assert not hub.downloaded


def test_none(hub):
    hub.add("ada/none", {"README.md": b"", "x/model.onnx": b""})
    with pytest.raises(CheckpointError, match="holds no checkpoint; its files are README.md, x/model.onnx"):
        load("hf://ada/none")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://ada/other/layer_0", "hf://ada/other was not found on the Hub, or it is private"),
        ("hf://ada/saes@v7/layer_0", "hf://ada/saes@v7 does not exist: the repository has no such branch"),
        ("hf://ada/saes/layer_9", "/layer_9 does not exist: the repository has no such file or folder"),
        ("hf://ada", "hf://ada is not an address on the Hub"),
        ("hf://datasets/ada/saes", "is a dataset; only model repositories can be read"),
    ],
)
def test_errors(hub, address, message, capsys):
    assert main(["export", address, "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_file_with_its_config_and_an_artifact(hub, tmp_path):
    folder = tmp_path / "pt"
    folder.mkdir()
    for name in ("a", "b"):
        torch.save(make_sae().state_dict(), folder / f"{name}.pt")
        config = {"d_sae": 16, "d_in": 6, "hook_name": "blocks.0.hook_resid_pre"}
        (folder / f"{name}.json").write_text(json.dumps(config))
    hub.add_folder("ada/pt", folder)
    assert load("hf://ada/pt/a.pt").cfg.d_in == 6
    assert sorted(hub.downloaded) == ["a.json", "a.pt"]
    hub.add_folder("ada/artifact", TINY)
    np.testing.assert_array_equal(load("hf://ada/artifact").W_enc.detach(), load(TINY).W_enc.detach())
    assert sorted(hub.downloaded) == ["a.json", "a.pt", "sae.json", "weights.safetensors"]


def test_what_the_config_of_the_training_says_is_read(hub, tmp_path):
    """Without it, a transcoder with another activation function would be read as one with ReLU."""
    transcoder(tmp_path / "gelu", "transcoder", name="layer_1.safetensors")
    (tmp_path / "gelu" / "wandb-config.yaml").write_text("act_fn: {value: gelu}")
    hub.add_folder("ada/gelu", tmp_path / "gelu")
    for place in (tmp_path / "gelu" / "layer_1.safetensors", "hf://ada/gelu/layer_1.safetensors"):
        with pytest.raises(CheckpointError, match="value is 'gelu'; it must be one of relu"):
            load(place)


def test_offline(hub, monkeypatch):
    from huggingface_hub import constants

    load("hf://ada/saes/layer_1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("hf://ada/saes/layer_1").provenance["source"].endswith("/layer_1")
    assert load("hf://ada/saes").provenance["source"].endswith("/layer_1")  # the only one in the cache
    with pytest.raises(HubError, match=r"/layer_2 is not in the cache, or|/layer_2.*cannot be reached"):
        load("hf://ada/saes/layer_2")


def test_a_gated_repository(hub, capsys):
    hub.repos["ada/saes"].gated = True
    assert main(["inspect", "hf://ada/saes/layer_0"]) == 2
    assert "is gated. Ask for access on its page on the Hub" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "address"),
    [("hf://a/b", "hf://a/b"), (Path("hf://a/b/c"), "hf://a/b/c"), ("hf:/a/b", "hf://a/b"), ("hf", None),
     ("a/hf:", None), ("hf:x", None), (Path("models"), None), ("c:/models", None)],
)  # fmt: skip
def test_what_is_an_address(path, address):
    assert hub_address(path) == address
