"""SAEs of SAELens that read one attention head: `hook_head_index` in every place where it may be."""

import numpy as np
import pytest
import torch

from saeexport import CheckpointError, export, load
from saeexport.checkpoints.registry import read
from saeexport.checkpoints.request import Request
from tests.support.equations import D_IN, D_OUT, D_SAE, check, draw, reference, write

HOOK, HEADS, HEAD = "blocks.3.attn.hook_z", 3, 2
Z = np.random.default_rng(3).normal(0.4, 1.3, (40, HEADS, D_IN)).astype(np.float32)
WIDTHS = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32"}
NOW = {**WIDTHS, "architecture": "standard"}
CONFIGS = {
    "SAELens 6": {**NOW, "metadata": {"hook_name": HOOK, "hook_head_index": HEAD}},
    "SAELens 6, flat": {**NOW, "metadata": {}, "hook_name": HOOK, "hook_head_index": HEAD},
    "SAELens before 6": {**WIDTHS, "hook_name": HOOK, "hook_head_index": HEAD},
    "the first SAELens": {**WIDTHS, "hook_point": HOOK, "hook_point_head_index": HEAD},
}


def folder(path, config, architecture="standard"):
    return write(path / "sae", config, draw(architecture), "cfg.json", "sae_weights.safetensors")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_sae_takes_the_activation_of_its_head(tmp_path, config):
    reading = read(folder(tmp_path, config), Request())
    head = np.ascontiguousarray(Z[:, HEAD])
    check(reading.sae, reference("standard", draw("standard"), head), head)
    assert reading.sae.cfg.hook_name == HOOK
    assert reading.notes == (f"It reads head 2 of {HOOK}: pass x[..., 2, :].",)


def test_the_artifact_records_the_head(tmp_path):
    sae = load(folder(tmp_path, CONFIGS["SAELens 6"]))
    artifact = export(sae, tmp_path / "artifact", torch.from_numpy(Z[:, HEAD]))
    assert artifact.manifest.provenance["checkpoint.hook_head_index"] == "2"


def test_no_head_is_not_noted(tmp_path):
    reading = read(folder(tmp_path, {**NOW, "metadata": {"hook_name": HOOK, "hook_head_index": None}}), Request())
    assert (reading.notes, reading.sae.provenance) == ((), {})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"hook_name": "blocks.3.hook_resid_pre", "hook_head_index": 0}, "is not an activation of attention heads"),
        ({"hook_name": HOOK, "hook_head_index": "2"}, "hook_head_index is '2'; it must be of the type int"),
    ],
)
def test_heads_that_are_refused(tmp_path, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path, {**NOW, "metadata": metadata}))


def test_a_transcoder_that_predicts_one_head_is_refused(tmp_path):
    config = {
        **WIDTHS,
        "architecture": "transcoder",
        "d_out": D_OUT,
        "apply_b_dec_to_input": False,
        "metadata": {"hook_name": HOOK, "hook_name_out": HOOK, "hook_head_index_out": 1},
    }
    with pytest.raises(CheckpointError, match="transcoders that predict a single head are not supported"):
        load(folder(tmp_path, config, "transcoder"))
