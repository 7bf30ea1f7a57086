"""A path that no format recognises is refused with the nearest format and what differs."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saeexport import CheckpointError, load
from saeexport.checkpoints.registry import FORMATS

SPARSIFY = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def save(path, *names):
    tensors = {name: torch.ones(3, 3) for name in names}
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        (["sae_weights.safetensors"], "", r"nearest format is SAELens 6 \(.*\); it lacks cfg.json"),
        (["sae_weights.safetensors"], "sae_weights.safetensors", r"nearest format is SAELens 6 \(.*it lacks cfg.json"),
        (["sae.safetensors"], "", r"nearest format is sparsify \(.*\); it lacks cfg.json"),
        (["hyperparams.json"], "", r"nearest format is Llama Scope \(.*\); it lacks checkpoints/final.safetensors"),
        (["config.json", "model.safetensors"], "", r"nearest format is sparsify \(.*config is missing"),
        (["checkpoints/final.safetensors"], "", r"nearest format is Llama Scope \(.*\); it lacks hyperparams.json"),
        (["model.safetensors"], "", r"model.safetensors holds .*The nearest format is sparsify \(.*config is missing"),
        (
            ["other.pt"],
            "other.pt",
            r"other.pt holds W_dec, b_dec, encoder.bias, encoder.weight. The nearest format is",
        ),
    ],
)
def test_the_nearest_format(tmp_path, files, path, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".json"):
            (tmp_path / name).write_text("{}")
        else:
            save(tmp_path / name, *SPARSIFY)
    with pytest.raises(CheckpointError, match=message) as error:
        load(tmp_path / path)
    assert "no config beside it" not in str(error.value)
    assert str(error.value).endswith("`saeexport formats` lists what can be loaded.")


def test_tensors_that_no_format_has(tmp_path):
    save(tmp_path / "x.safetensors", *(f"layer.{i}" for i in range(9)))
    with pytest.raises(CheckpointError, match=r"holds layer.0, .* and 3 more; no format has tensors of these names"):
        load(tmp_path / "x.safetensors")


def test_one_tensor_too_few_or_too_many(tmp_path):
    save(tmp_path / "few.pt", *SPARSIFY[:3])
    save(tmp_path / "many.pt", *SPARSIFY, "odd")
    with pytest.raises(CheckpointError, match=r"sparsify \(.*\); it lacks b_dec"):
        load(tmp_path / "few.pt")
    with pytest.raises(CheckpointError, match=r"sparsify \(.*\); it also has odd"):
        load(tmp_path / "many.pt")


@pytest.mark.parametrize("content", [b"no zip", {"epoch": 3}, torch.nn.Linear(2, 2)])
def test_a_file_without_tensors(tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "x.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x.pt cannot be read as named tensors: it is damaged, or holds other"):
        load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"sae": {"W_enc": torch.ones(2)}, "step": 3},
            r"other objects: sae \(dict\), step \(int\). Save the state",
        ),
        (torch.nn.Linear(2, 2), r"other objects, such as a whole module. Save the state dict by itself: torch.save"),
    ],
)
def test_a_file_with_other_objects_says_what_to_save(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "x.pt")


@pytest.mark.parametrize("ending", [".bin", ".ckpt", ""])
def test_another_ending_of_a_file_of_torch(tmp_path, ending):
    torch.save({"W_enc": torch.ones(2)}, tmp_path / f"x{ending}")
    with pytest.raises(CheckpointError, match="torch.save wrote it: give it the ending .pt"):
        load(tmp_path / f"x{ending}")
    (tmp_path / f"y{ending}").write_bytes(b"PK\3\4 and nothing of torch")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / f"y{ending}")
    assert "torch.save" not in str(error.value)


def test_what_the_formats_declare():
    """Names that `nearest` and `layouts` use."""
    for form in FORMATS:
        names = [getattr(form, name, "") for name in ("CONFIG", "WEIGHTS")]
        names += [*getattr(form, "TENSORS", ()), *getattr(form, "BESIDE", ())]
        assert all(isinstance(name, str) for name in names)
    assert np.mean([hasattr(form, "WEIGHTS") or hasattr(form, "TENSORS") for form in FORMATS]) > 0.8
