"""sentence-transformers' SparseAutoEncoder: the layout that it saves against its equations, and refusals."""

import json

import pytest
import torch
from safetensors.torch import save_file

from saeexport import CheckpointError, export, load
from saeexport.checkpoints.formats import sentence_transformers
from saeexport.checkpoints.registry import recognise
from tests.support.equations import D_IN, D_SAE, K, check, draw, reference

W = {name: torch.from_numpy(tensor) for name, tensor in draw("standard").items()}
TIED = {**W, "W_dec": W["W_enc"].T}
CONFIG = {"input_dim": D_IN, "hidden_dim": D_SAE, "k": K, "k_aux": 512, "normalize": False, "dead_threshold": 30}


def write(path, names=("decoder.linear.weight",), **changes):
    path = path / "2_SparseAutoEncoder"
    path.mkdir()
    tensors = {"pre_bias": W["b_dec"], "latent_bias": W["b_enc"], "stats_last_nonzero": torch.zeros(D_SAE).long()}
    tensors |= {name: W["W_enc"].T.contiguous() for name in names}
    tensors |= {key: value for key, value in changes.items() if isinstance(value, torch.Tensor)}
    save_file(tensors, path / "model.safetensors")
    config = {**CONFIG, **{key: value for key, value in changes.items() if not isinstance(value, torch.Tensor)}}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("names", [["decoder.linear.weight"], ["encoder.weight"], list(sentence_transformers.SHARED)])
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers(tmp_path, names, normalize):
    path = write(tmp_path, names, normalize=normalize)
    assert recognise(path) is sentence_transformers
    sae = load(path)
    assert (sae.architecture, sae.cfg.k, sae.cfg.hook_name) == ("topk", K, "")
    check(sae, reference("topk", TIED, normalization="layer_norm" if normalize else "none"))


def test_a_tied_sae_is_exported(tmp_path):
    artifact = export(load(write(tmp_path)), tmp_path / "artifact")
    assert artifact.manifest.parity is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": []}, r"lacks the tensors \['encoder.weight'\]"),
        ({"encoder.bias": W["b_enc"].clone()}, r"has the unknown tensors \['encoder.bias'\]"),
        (
            {"encoder.weight": W["W_enc"].T.contiguous() * 2},
            "holds a encoder.weight and a decoder.linear.weight that differ",
        ),
        ({"normalise": True}, "unknown options, .*: normalise = True"),
        ({"k": "4"}, "k is '4'; it must be of the type int"),
        ({"input_dim": 7}, r"holds .*W_enc \[6, 16\].* of its config has .*W_enc \[7, 16\]"),
    ],
)
def test_sentence_transformers_refusals(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(write(tmp_path, **changes))
