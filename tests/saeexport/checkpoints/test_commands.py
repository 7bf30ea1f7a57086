"""The commands `formats`, `inspect` and `export` of `saeexport`."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime import read_artifact
from saeexport.checkpoints.registry import FORMATS, load
from saeexport.cli import main
from saeexport.original.architectures import ARCHITECTURES
from tests.support.samples import TINY, make_sae

NAMES = {"model_name": "gpt2-small", "neuronpedia_id": "gpt2-small/4-att-kk"}


@pytest.fixture
def half(tmp_path):
    """A SAELens checkpoint in float16 that does not name its hook."""
    folder = tmp_path / "half"
    folder.mkdir()
    config = {"architecture": "standard", "d_in": 12, "d_sae": 16, "dtype": "float16", "metadata": NAMES}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(make_sae(d_in=12, dtype=torch.float16).state_dict(), folder / "sae_weights.safetensors")
    return folder


def test_formats_lists_every_format_with_its_architectures(capsys):
    assert main(["formats"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["format", "files", "architectures"]
    for form, row in zip(FORMATS, rows, strict=True):
        title, files, architectures = re.split(r"\s{2,}", row)
        assert (title, files) == (form.TITLE, form.NAME)
        listed = set(ARCHITECTURES) if architectures == "all" else set(architectures.split(", "))
        assert listed == set(form.ARCHITECTURES)
        assert listed <= set(ARCHITECTURES)
    assert len({form.TITLE for form in FORMATS}) == len(FORMATS)


def test_inspect_a_checkpoint(half, capsys):
    assert main(["inspect", str(half)]) == 0
    lines = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert ["format", "SAELens 6: SAELens 6 and later, a folder with cfg.json (with metadata) and "
            "sae_weights.safetensors"] in lines  # fmt: skip
    for line in (["architecture", "standard"], ["d_in", "12"], ["dtype", "float16"], ["hook_name", "(not given)"],
                 ["model_name", "gpt2-small"], ["neuronpedia_id", "gpt2-small/4-att-kk"], ["seed", "(not given)"],
                 ["W_enc", "[12, 16]", "float16", "384 bytes"], ["b_dec", "[12]", "float16", "24 bytes"]):  # fmt: skip
        assert line in lines


def test_inspect_an_artifact(capsys):
    assert main(["inspect", str(TINY)]) == 0
    out = capsys.readouterr().out
    assert "artifact: an artifact, a folder with sae.json" in out
    assert "blocks.0.attn.hook_z" in out


def test_inspect_what_cannot_be_read(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {tmp_path} is a folder with nothing in it. `saeexport formats` lists what")
    assert captured.err.count("\n") == 1


def test_export_takes_a_hook_name_and_a_dtype(half, tmp_path, capsys):
    arguments = ["--hook-name", "blocks.4.attn.hook_z", "--heads", "3", "--dtype", "float32"]
    assert main(["export", str(half), str(tmp_path / "out"), *arguments]) == 0
    artifact = read_artifact(tmp_path / "out")
    sae = artifact.manifest.sae
    assert (sae.hook_name, sae.dtype) == ("blocks.4.attn.hook_z", "float32")
    again = load(tmp_path / "out").cfg
    for names in (sae, again):
        assert {key: getattr(names, key) for key in NAMES} == NAMES
    stored = load_file(half / "sae_weights.safetensors")
    for name, tensor in load_file(artifact.file(artifact.manifest.weights)).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())


def test_another_dtype_is_not_offered(half, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(half), str(tmp_path / "out"), "--dtype", "float64"])
    assert "invalid choice: 'float64'" in capsys.readouterr().err
