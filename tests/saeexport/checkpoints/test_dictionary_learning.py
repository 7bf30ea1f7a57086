"""dictionary_learning checkpoints: every class against the equations, and refusals."""

import json

import numpy as np
import pytest
import torch

from saeexport import CheckpointError, load
from saeexport.checkpoints.formats import dictionary_learning
from saeexport.checkpoints.registry import recognise
from saeexport.checkpoints.request import Request
from tests.support.equations import D_IN, D_SAE, PARAMETERS, K, X, check, draw, is_mapped, linked, reference

THRESHOLD = 0.4
LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
GATED = {"decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
# Our names by the library's, for each class.
NAMES = {
    "AutoEncoder": ("standard", {**LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": ("standard", {**LINEAR, "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": ("gated", {"encoder.weight": "W_enc", "decoder.weight": "W_dec", **GATED}),
    "AutoEncoderTopK": ("topk", {**LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": ("jumprelu", {**LINEAR, "b_dec": "b_dec"}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}),
    "JumpReluAutoEncoder": ("jumprelu", {name: name for name in PARAMETERS["jumprelu"].split()}),
}
HAVE_K = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
SUBTRACT = set(NAMES) - {"AutoEncoderNew", "JumpReluAutoEncoder"}


def trainer(dict_class, /, **changes):
    values = {
        "dict_class": dict_class,
        "trainer_class": "Trainer",
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "lr": 1e-3,
        "steps": 10,
        "warmup_steps": 1,
        "decay_start": None,
        "seed": 0,
        "device": "cuda:0",
        "layer": 8,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "wandb_name": "Trainer",
        "submodule_name": "resid_post_layer_8",
        **({"k": K, "auxk_alpha": 0.03125, "threshold_beta": 0.999} if dict_class in HAVE_K else {}),
        **changes,
    }
    return {key: value for key, value in values.items() if value != "absent"}


def stored(dict_class, **changes):
    architecture, names = NAMES[dict_class]
    w = draw(architecture)
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(w[ours].T if name.endswith(".weight") else w[ours]))
        for name, ours in names.items()
    }
    if dict_class in HAVE_K:
        tensors |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(THRESHOLD)}
    if dict_class.startswith("Matryoshka"):
        tensors["group_sizes"] = torch.tensor([5, D_SAE - 5])
    tensors |= changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def folder(path, dict_class, /, tensors=None, config=None, **changes):
    path = path / "trainer_0"
    path.mkdir()
    torch.save(stored(dict_class) if tensors is None else tensors, path / "ae.pt")
    whole = {"trainer": trainer(dict_class, **changes), "buffer": {"d_submodule": D_IN, "io": "out", "ctx_len": 128}}
    (path / "config.json").write_text(json.dumps(whole if config is None else config))
    return path


def expected(dict_class, threshold=THRESHOLD):
    architecture, _ = NAMES[dict_class]
    w = draw(architecture)
    if dict_class in HAVE_K and architecture == "jumprelu":
        w["threshold"] = np.full(D_SAE, threshold, np.float32)
    return reference(architecture, w, subtract=dict_class in SUBTRACT)


@pytest.mark.parametrize("dict_class", NAMES)
def test_every_class(tmp_path, dict_class):
    path = folder(tmp_path, dict_class)
    assert recognise(path) is dictionary_learning
    sae = load(path)
    assert (sae.architecture, sae.cfg.hook_name) == (NAMES[dict_class][0], "blocks.8.hook_resid_post")
    assert sae.cfg.model_name == "EleutherAI/pythia-70m-deduped"
    assert sae.architecture in dictionary_learning.ARCHITECTURES
    assert sae.cfg.apply_b_dec_to_input == (dict_class in SUBTRACT)
    check(sae, expected(dict_class))


def test_a_threshold_that_was_never_set_lets_everything_through(tmp_path):
    sae = load(folder(tmp_path, "BatchTopKSAE", stored("BatchTopKSAE", threshold=torch.tensor(-1.0))))
    check(sae, expected("BatchTopKSAE", threshold=-1.0))


def test_the_threshold_takes_the_dtype_of_the_weights(tmp_path):
    tensors = stored("BatchTopKSAE")
    half = {name: t.bfloat16() if t.ndim else t for name, t in tensors.items()}
    sae = load(folder(tmp_path, "BatchTopKSAE", half))
    assert sae.cfg.dtype == sae.threshold.dtype == torch.bfloat16
    assert torch.equal(sae.threshold.cpu(), tensors["threshold"].bfloat16().expand(D_SAE))
    assert sae(torch.from_numpy(X).bfloat16().to(sae.W_enc.device)).shape == X.shape


@pytest.mark.parametrize("changes", [{"k": None}, {"k": None, "threshold": None}])
def test_older_checkpoints_without_scalars(tmp_path, changes):
    check(load(folder(tmp_path, "AutoEncoderTopK", stored("AutoEncoderTopK", **changes))), expected("AutoEncoderTopK"))


def test_k_of_the_tensors_alone(tmp_path):
    assert load(folder(tmp_path, "AutoEncoderTopK", k="absent")).cfg.k == K


def test_the_sizes_of_the_tensors_alone(tmp_path):
    sae = load(folder(tmp_path, "AutoEncoder", activation_dim="absent", dict_size="absent"))
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (D_IN, D_SAE)


@pytest.mark.parametrize(
    ("changes", "io"),
    [
        ({"submodule_name": None}, "out"),
        ({"submodule_name": "absent"}, "out"),
        ({"submodule_name": "mlp_out_layer_8"}, "out"),
        ({"layer": 7}, "out"),
        ({}, "in"),
    ],
)
def test_the_hook_name_is_empty_where_it_is_not_certain(tmp_path, changes, io):
    config = {"trainer": trainer("AutoEncoder", **changes), "buffer": {"io": io}}
    assert load(folder(tmp_path, "AutoEncoder", config=config)).cfg.hook_name == ""


def test_a_file_of_the_folder_and_links(tmp_path):
    path = folder(tmp_path, "AutoEncoder")
    for place in (path / "ae.pt", path / "config.json", linked(path, tmp_path)):
        check(load(place), expected("AutoEncoder"))


def test_nothing_is_copied(tmp_path):
    path = folder(tmp_path, "BatchTopKSAE")
    sae = dictionary_learning.read(path, Request())
    if sae.W_enc.device.type == "cpu":
        assert is_mapped(sae.W_enc, path / "ae.pt")
        assert is_mapped(sae.W_dec, path / "ae.pt")


KNOWN = ", ".join(NAMES)


@pytest.mark.parametrize(
    ("dict_class", "changes", "message"),
    [
        ("AutoEncoder", {"dict_class": "Lista"}, f"dict_class is 'Lista'; it must be one of {KNOWN}"),
        ("AutoEncoder", {"dict_class": "CrossCoder"}, "dict_class is 'CrossCoder'; it is not supported: it reads several layers at once"),
        ("AutoEncoder", {"dict_class": "IdentityDict"}, "dict_class is 'IdentityDict'; it is not supported: it has no parameters"),
        ("AutoEncoder", {"dict_class": "absent"}, "The trainer of .*config.json has no 'dict_class'"),
        ("AutoEncoder", {"norm_factor": 2.5}, "unknown options, .*: norm_factor = 2.5"),
        ("AutoEncoder", {"dict_size": 15}, r"W_enc \[6, 16\].* of its config has .*W_enc \[6, 15\]"),
        ("AutoEncoderTopK", {"k": 3}, "k is 3; the k in ae.pt is 4; one of the two belongs to another dictionary"),
    ],
)
def test_configs_that_are_refused(tmp_path, dict_class, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path, dict_class, **changes))


def test_a_config_with_more_than_trainer_and_buffer_is_refused(tmp_path):
    config = {"trainer": trainer("AutoEncoder"), "input_scale": 2}
    with pytest.raises(CheckpointError, match="unknown options, .*: input_scale = 2"):
        load(folder(tmp_path, "AutoEncoder", config=config))


@pytest.mark.parametrize(
    ("dict_class", "changes", "message"),
    [
        ("AutoEncoder", {"bias": None}, r"lacks the tensors \['bias'\] and has the unknown tensors \[\]"),
        ("AutoEncoder", {"scale": torch.ones(1)}, r"lacks the tensors \[\] and has the unknown tensors \['scale'\]"),
        ("AutoEncoderTopK", {"k": torch.ones(2)}, r"the tensor 'k' is of shape \[2\]; it must have one element"),
        ("BatchTopKSAE", {"threshold": None}, "the tensor 'threshold' is missing; it must have one element"),
        ("BatchTopKSAE", {"threshold": torch.ones(D_SAE)}, r"the tensor 'threshold' is of shape \[16\]"),
        ("JumpReluAutoEncoder", {"threshold": torch.tensor(0.1)}, r"threshold \[\].* has .*threshold \[16\]"),
    ],
)
def test_tensors_that_are_refused(tmp_path, dict_class, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder(tmp_path, dict_class, stored(dict_class, **changes)))


def test_k_must_be_in_the_config_or_the_tensors(tmp_path):
    with pytest.raises(CheckpointError, match="the tensor 'k' is missing"):
        load(folder(tmp_path, "AutoEncoderTopK", stored("AutoEncoderTopK", k=None), k="absent"))
