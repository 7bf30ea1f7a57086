"""Which files of a listing are checkpoints, by their names alone."""

import shutil

import pytest

from saeexport import load
from saeexport.checkpoints.layouts import Folder, find_below, find_layouts
from saeexport.checkpoints.registry import FORMATS
from tests.support.checkpoints import WRITERS


def found(*files):
    return [(layout.path, sorted(layout.files), layout.name) for layout in find_layouts(files, FORMATS)]


@pytest.mark.parametrize(
    ("files", "path", "needed", "name"),
    [
        (["a/cfg.json", "a/sae_weights.safetensors", "a/sparsity.safetensors", "a/notes.json", "README.md"],
         "a", ["a/cfg.json", "a/sae_weights.safetensors"], "a"),
        (["cfg.json", "sae_weights.safetensors", "activation_scaler.json"],
         "", ["activation_scaler.json", "cfg.json", "sae_weights.safetensors"], ""),
        (["layer_0/width_16k/average_l0_105/params.npz"], "layer_0/width_16k/average_l0_105",
         ["layer_0/width_16k/average_l0_105/params.npz"], "layer_0/width_16k/average_l0_105"),
        (["x/params.safetensors"], "x/params.safetensors", ["x/params.safetensors"], "x"),
        (["L0R/hyperparams.json", "L0R/lm_config.json", "L0R/checkpoints/final.safetensors"],
         "L0R", ["L0R/checkpoints/final.safetensors", "L0R/hyperparams.json"], "L0R"),
        (["t/ae.pt", "t/config.json", "t/eval_results.json", "t/checkpoints/ae_100.pt"],
         "t", ["t/ae.pt", "t/config.json"], "t"),
        (["a.pt", "a_cfg.json", "b_cfg.json", "README.md"], "a.pt", ["a.pt", "a_cfg.json"], "a"),
        (["deep/a.safetensors", "cfg.json", "other/cfg.json"], "deep/a.safetensors",
         ["cfg.json", "deep/a.safetensors"], "deep/a"),
        (["one.pth"], "one.pth", ["one.pth"], "one"),
        (["s/config.json", "s/model.safetensors.index.json", "s/model-00001-of-00002.safetensors",
          "s/model-00002-of-00002.safetensors"], "s",
         ["s/config.json", "s/model-00001-of-00002.safetensors", "s/model-00002-of-00002.safetensors",
          "s/model.safetensors.index.json"], "s"),
        (["W_enc_3.safetensors", "W_dec_3.safetensors", "config.yaml"], "W_enc_3.safetensors",
         ["W_dec_3.safetensors", "W_enc_3.safetensors", "config.yaml"], "W_enc_3"),
        (["layer_3.safetensors", "config.yaml", "wandb-config.yaml", "notes.yaml"], "layer_3.safetensors",
         ["config.yaml", "layer_3.safetensors", "wandb-config.yaml"], "layer_3"),
        (["sae.json", "weights.safetensors", "golden.safetensors", "model.onnx"], "",
         ["sae.json", "weights.safetensors"], ""),
    ],
)  # fmt: skip
def test_one_checkpoint(files, path, needed, name):
    assert found(*files) == [(path, needed, name)]


def test_all_of_a_release_in_the_order_of_their_numbers():
    files = [f"layer_{i}/{name}" for i in (10, 2, 1) for name in ("cfg.json", "sae.safetensors")]
    assert [path for path, _, _ in found(*files, "config.json")] == ["layer_1", "layer_2", "layer_10"]


def test_two_files_beside_each_other_do_not_share_their_configs():
    files = ("L1.pt", "L1_cfg.json", "L2.pt", "L2_cfg.json")
    assert found(*files) == [("L1.pt", ["L1.pt", "L1_cfg.json"], "L1"), ("L2.pt", ["L2.pt", "L2_cfg.json"], "L2")]


def test_what_holds_no_tensors():
    assert found("README.md", "cfg.json", "a/b.onnx") == []


def test_the_files_of_a_folder(tmp_path):
    for name in ("a/b.pt", ".git/c.pt", "d.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    folder = Folder(tmp_path)
    assert folder.list_files() == ["a/b.pt", "d.pt"]
    assert folder.list_files(recursive=False) == ["d.pt"]
    assert folder.list_files("a", recursive=False) == folder.list_files("a/b.pt") == ["a/b.pt"]


@pytest.mark.parametrize(
    ("inside", "path", "needed"),
    [
        ("t", "t", ["t/ae.pt", "t/config.json"]),
        ("t/ae.pt", "t", ["t/ae.pt", "t/config.json"]),
        ("t/config.json", "t", ["t/ae.pt", "t/config.json"]),
        ("t/checkpoints/ae_5.pt", "t/checkpoints/ae_5.pt", ["t/checkpoints/ae_5.pt", "t/config.json"]),
    ],
)
def test_a_path_in_a_folder(tmp_path, inside, path, needed):
    for name in ("t/ae.pt", "t/config.json", "t/checkpoints/ae_5.pt", "t/checkpoints/ae_6.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (layout,) = find_below(Folder(tmp_path), inside, FORMATS)
    assert (layout.path, sorted(layout.files)) == (path, needed)


@pytest.mark.parametrize("name", WRITERS)
def test_the_files_of_a_layout_suffice_for_every_format(tmp_path, name):
    """Only these are downloaded from the Hub."""
    (whole := tmp_path / "whole" / name).mkdir(parents=True)
    WRITERS[name](whole)
    layout = find_below(Folder(whole), "", FORMATS)[0]
    for file in layout.files:
        (copy := tmp_path / "downloaded" / name / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / file, copy)
    load(tmp_path / "downloaded" / name / layout.path)
