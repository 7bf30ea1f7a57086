"""Qwen Scope and qresearch's SAEs, whose files hold tensors only: their layouts against the equations, and refusals."""

import pytest
import torch

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import deepseek_r1, qwen_scope
from saeexport.checkpoints.registry import recognise
from tests.support.equations import check, draw, reference

W = {name: torch.from_numpy(tensor) for name, tensor in draw("standard", d_sae=1024).items()}
REPOSITORY = "SAE-Res-Qwen3-1.7B-Base-W1K-L0_50"
CACHE = f"models--Qwen--{REPOSITORY}/snapshots/0123abc"
DEEPSEEK = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"


def qwen(folder, name="layer7.sae.pt", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    stored = {**W, "W_enc": W["W_enc"].T.contiguous(), "W_dec": W["W_dec"].T.contiguous(), **changes}
    torch.save({key: value for key, value in stored.items() if value is not None}, folder / name)
    return folder / name


@pytest.mark.parametrize("folder", [REPOSITORY, CACHE])
def test_qwen_scope(tmp_path, folder):
    path = qwen(tmp_path / folder)
    assert recognise(path) is qwen_scope
    sae = load(path)
    assert (sae.architecture, sae.cfg.k, sae.cfg.hook_name) == ("topk", 50, "blocks.7.hook_resid_post")
    assert (sae.cfg.model_name, sae.cfg.apply_b_dec_to_input) == ("Qwen/Qwen3-1.7B-Base", False)
    check(sae, reference("topk", W, subtract=False, k=50))


def test_qwen_scope_with_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(qwen(tmp_path / REPOSITORY).parent)
    assert load("layer7.sae.pt").cfg.k == 50


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        ("files", {}, "is a layer of Qwen Scope, which does not hold k: its repository's name does"),
        ("SAE-Res-Qwen3-8B-Base-W64K-L0_50", {}, "holds 1024 features, but lies in .*, whose SAEs have 65536"),
        (REPOSITORY, {"threshold": torch.ones(1024)}, r"has the unknown tensors \['threshold'\]"),
        (REPOSITORY, {"b_dec": torch.ones(6).half()}, "mixes the dtypes float16, float32"),
        (REPOSITORY, {"W_dec": W["W_dec"].contiguous()}, r"holds .*W_dec \[6, 1024\].* has .*W_dec \[1024, 6\]"),
    ],
)
def test_qwen_scope_refusals(tmp_path, folder, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(qwen(tmp_path / folder, **changes))


def test_only_files_of_its_name_are_qwen_scope(tmp_path):
    assert not qwen_scope.recognises(qwen(tmp_path / REPOSITORY, "sae.pt"))
    assert not qwen_scope.recognises(qwen(tmp_path / REPOSITORY, b_enc=None))


SMALL = {name: torch.from_numpy(tensor) for name, tensor in draw("standard").items()}


def deepseek(path, **changes):
    stored = {
        "encoder.weight": SMALL["W_enc"].T.contiguous(),
        "encoder.bias": SMALL["b_enc"],
        "decoder.weight": SMALL["W_dec"].T.contiguous(),
        "decoder.bias": SMALL["b_dec"],
        **changes,
    }
    torch.save({key: value for key, value in stored.items() if value is not None}, path)
    return path


def test_deepseek_r1(tmp_path):
    path = deepseek(tmp_path / DEEPSEEK)
    assert recognise(path) is deepseek_r1
    sae = load(path)
    assert (sae.architecture, sae.cfg.hook_name) == ("standard", "blocks.19.hook_resid_post")
    assert (sae.cfg.model_name, sae.cfg.apply_b_dec_to_input) == ("DeepSeek-R1-Distill-Llama-8B", False)
    check(sae, reference("standard", SMALL, subtract=False))


def test_deepseek_r1_refusals(tmp_path):
    assert not deepseek_r1.recognises(deepseek(tmp_path / "sae.pt"))
    with pytest.raises(CheckpointError, match=r"has the unknown tensors \['k'\]"):
        load(deepseek(tmp_path / DEEPSEEK, k=torch.tensor(3)))
