"""Gemma Scope checkpoints against the equations, and refusals."""

import zipfile

import numpy as np
import pytest
import torch

from runtime import read_artifact
from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import gemma_scope
from saeexport.checkpoints.registry import recognise
from saeexport.cli import main
from tests.support.equations import D_OUT, check, draw, is_mapped, linked, reference

LOWER = {"W_enc": "w_enc", "W_dec": "w_dec"}


def npz(folder, save=np.savez, **tensors):
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "params.npz", **{name: tensor for name, tensor in tensors.items() if tensor is not None})
    return folder


def test_gemma_scope_with_a_flipped_bit(tmp_path):
    """Memory-mapped members are not checked by the zip reader, so the loader checks their checksums itself."""
    np.savez(tmp_path / "params.npz", W_enc=np.ones((5, 9), np.float32), threshold=np.ones(9, np.float32))
    data = bytearray((tmp_path / "params.npz").read_bytes())
    data[data.index(np.ones(9, np.float32).tobytes())] ^= 1
    (tmp_path / "params.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"cannot be read: W_enc.npy does not match its checksum"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["", "params.npz"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_gemma_scope(tmp_path, name, save):
    path = npz(tmp_path / "sae", save, **draw("jumprelu")) / name
    assert recognise(path) is gemma_scope
    sae = load(path)
    assert (sae.architecture, sae.cfg.hook_name, sae.cfg.apply_b_dec_to_input) == ("jumprelu", "", False)
    check(sae, reference("jumprelu", draw("jumprelu"), subtract=False))
    assert load(path, hook_name="blocks.2.hook_resid_post").cfg.hook_name == "blocks.2.hook_resid_post"


RELEASES = [
    ("gemma-scope-2b-pt-res/layer_0", False),
    ("gemma-scope-2b-pt-transcoders/layer_0", True),
    ("models--google--gemma-scope-2b-pt-transcoders/snapshots/main/layer_1", True),
    ("transcoders/gemma-scope-9b-pt-mlp/layer_1", False),
    ("my-saes", False),
]


@pytest.mark.parametrize(("place", "transcoder"), RELEASES)
def test_the_path_tells_a_transcoder_from_an_sae(tmp_path, monkeypatch, capsys, place, transcoder):
    monkeypatch.chdir(tmp_path)
    path = npz(tmp_path / place, **draw("jumprelu"))
    for given in (path, place):
        assert load(given).architecture == ("jumprelu_transcoder" if transcoder else "jumprelu")
    assert load(path, transcoder=not transcoder).architecture == ("jumprelu" if transcoder else "jumprelu_transcoder")
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"It is read as {'a transcoder' if transcoder else 'an SAE'}, " in out
    assert f"use {'--no-transcoder' if transcoder else '--transcoder'}." in out
    assert ("nothing in its path says transcoder" in out) == (place == "my-saes")


def test_a_gemma_scope_transcoder(tmp_path, capsys):
    path = npz(tmp_path / "sae", **draw("jumprelu_transcoder"))
    sae = load(path, transcoder=True)
    assert (sae.cfg.d_out, sae.cfg.hook_name) == (D_OUT, "")
    check(sae, reference("jumprelu_transcoder", draw("jumprelu_transcoder"), subtract=False))
    assert main(["export", str(path), str(tmp_path / "out"), "--transcoder"]) == 0
    assert read_artifact(tmp_path / "out").manifest.provenance["checkpoint.transcoder"] == "True"


def test_gemma_scope_in_the_hubs_cache_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = linked(npz(tmp_path / "sae", **draw("jumprelu")), tmp_path)
    sae = load(path)
    check(sae, reference("jumprelu", draw("jumprelu"), subtract=False))
    assert all(is_mapped(parameter, path / "params.npz") for parameter in sae.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": None}, "params.npz has no W_enc; it holds W_dec, b_dec, b_enc, threshold"),
        ({"W_enc": np.ones((2, 3, 4), np.float32)}, r"W_enc of .* has shape \[2, 3, 4\]; it must be a matrix"),
        ({"threshold": None}, r"the jumprelu SAE of its config has .*threshold \[16\]"),
        ({"scaling_factor": np.ones(16, np.float32)}, r"holds .*scaling_factor \[16\].*; the jumprelu SAE"),
        ({"b_dec": np.ones(6)}, "mixes the dtypes float32, float64"),
        ({"b_dec": np.array([{}])}, "cannot be read"),
    ],
)
def test_gemma_scope_refuses(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(npz(tmp_path, **{**draw("jumprelu"), **changes}))


def test_a_parameter_under_two_names_is_refused(tmp_path):
    """Which one is right cannot be known."""
    drawn = draw("jumprelu")
    with pytest.raises(CheckpointError, match="a parameter under two names: W_dec, W_enc, .*, w_enc"):
        load(npz(tmp_path / "both", **drawn, w_enc=drawn["W_enc"] * 2))
    npz(tmp_path / "twice", **drawn)
    with (
        zipfile.ZipFile(tmp_path / "twice" / "params.npz", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("b_dec.npy", archive.read("b_enc.npy"))
    with pytest.raises(CheckpointError, match="it holds b_dec twice"):
        load(tmp_path / "twice")


@pytest.mark.parametrize("lower", [True, False])
def test_gemma_scope_with_names_in_lower_case(tmp_path, lower):
    stored = {LOWER.get(name, name) if lower else name: tensor for name, tensor in draw("jumprelu").items()}
    check(load(npz(tmp_path, **stored)), reference("jumprelu", draw("jumprelu"), subtract=False))


@pytest.mark.parametrize(
    ("folder", "hook_name", "hook_name_out", "model_name"),
    [
        (
            "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82",
            "blocks.12.hook_resid_post",
            "",
            "google/gemma-2-2b",
        ),
        (
            "gemma-scope-9b-it-res/layer_9/width_16k/average_l0_8",
            "blocks.9.hook_resid_post",
            "",
            "google/gemma-2-9b-it",
        ),
        ("gemma-scope-2b-pt-mlp/layer_0/width_16k/average_l0_1", "blocks.0.hook_mlp_out", "", "google/gemma-2-2b"),
        ("gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_1", "blocks.3.attn.hook_z", "", "google/gemma-2-2b"),
        (
            "models--google--gemma-scope-2b-pt-transcoders/snapshots/abc/layer_3/width_16k/average_l0_54",
            "blocks.3.ln2.hook_normalized",
            "blocks.3.hook_mlp_out",
            "google/gemma-2-2b",
        ),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "", "", None),
        ("elsewhere/layer_3", "", "", None),
        ("my-gates/gemma-scope-2b-pt-mlp/layer_0", "blocks.0.hook_mlp_out", "", "google/gemma-2-2b"),
    ],
)
def test_gemma_scope_in_the_folders_of_its_repository(tmp_path, folder, hook_name, hook_name_out, model_name):
    architecture = "jumprelu_transcoder" if "transcoder" in folder else "jumprelu"
    sae = load(npz(tmp_path / folder, **draw(architecture)))
    assert (sae.architecture, sae.cfg.hook_name, sae.cfg.model_name) == (architecture, hook_name, model_name)
    assert getattr(sae.cfg, "hook_name_out", "") == hook_name_out
    check(sae, reference(architecture, draw(architecture), subtract=False))


@pytest.mark.parametrize("folder", ["files", "transcoders"])
def test_the_caller_says_whether_gemma_scope_is_a_transcoder(tmp_path, folder):
    path = npz(tmp_path / folder, **draw("jumprelu"))
    assert load(path, transcoder=True).architecture == "jumprelu_transcoder"
    assert load(path, transcoder=False).architecture == "jumprelu"


def test_the_nearest_folder_says_what_it_is(tmp_path):
    path = npz(tmp_path / "transcoders" / "gemma-scope-2b-pt-res" / "layer_1", **draw("jumprelu"))
    assert load(path).architecture == "jumprelu"
