"""load(): the formats that it recognises, and its errors for everything else."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from runtime import ArtifactError
from saeexport import CheckpointError, load
from tests.support.samples import TINY, make_sae

CONFIG = {"d_sae": 16, "d_in": 6, "hook_name": "blocks.0.hook_resid_pre", "use_error_term": True, "seed": 0}


def write(folder, name, state, config=CONFIG, config_name="my-sae.json"):
    path = folder / name
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    if config is not None:
        (folder / config_name).write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("name", ["my-sae.pt", "my-sae.safetensors"])
@pytest.mark.parametrize("config_name", ["my-sae.json", "my-sae_cfg.json", "cfg.json"])
def test_a_state_dict_with_its_config(tmp_path, name, config_name):
    sae = make_sae()
    again = load(write(tmp_path, name, sae.state_dict(), config_name=config_name))
    assert again.cfg == sae.cfg
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in sae.state_dict().items())
    assert all(parameter.requires_grad for parameter in again.parameters())
    x = torch.ones(3, 6)
    assert torch.equal(again(x), sae(x))


def test_a_state_dict_keeps_the_names_in_its_config(tmp_path):
    config = {**CONFIG, "model_name": "gpt2-small", "neuronpedia_id": "gpt2-small/0-res-jb"}
    cfg = load(write(tmp_path, "my-sae.pt", make_sae().state_dict(), config)).cfg
    assert (cfg.model_name, cfg.neuronpedia_id) == ("gpt2-small", "gpt2-small/0-res-jb")


@pytest.mark.parametrize("dtype", ["float16", "torch.float16", None])
def test_the_dtype_is_that_of_the_tensors(tmp_path, dtype):
    sae = make_sae(dtype=torch.float16)
    config = {**CONFIG, "dtype": dtype} if dtype else CONFIG
    again = load(write(tmp_path, "my-sae.pt", sae.state_dict(), config))
    assert again.cfg.dtype == again.W_enc.dtype == torch.float16


def test_the_device_it_was_on_is_ignored(tmp_path):
    sae = load(write(tmp_path, "my-sae.pt", make_sae().state_dict(), {**CONFIG, "device": "cuda:7"}))
    assert sae.W_enc.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_artifact():
    sae = load(str(TINY))
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.hook_name, sae.cfg.seed) == (6, 16, "blocks.0.attn.hook_z", 0)


def test_an_artifact_with_other_weights_is_refused(artifact):
    data = bytearray((artifact / "weights.safetensors").read_bytes())
    data[-3] ^= 1
    (artifact / "weights.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="was changed after the export"):
        load(artifact)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda folder: folder / "nothing", "nothing does not exist"),
        (lambda folder: folder, "is a folder with notes.txt"),
        (lambda folder: folder / "notes.txt", "is a file ending in '.txt'"),
    ],
)
def test_any_other_path_is_refused(tmp_path, make, found):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError) as error:
        load(make(tmp_path))
    assert found in str(error.value)
    assert "`saeexport formats` lists what can be loaded." in str(error.value)


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_but_tensors_is_unpickled(tmp_path, capsys):
    path = tmp_path / "my-sae.pt"
    torch.save({"W_enc": Malicious()}, path)
    (tmp_path / "my-sae.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match="my-sae.pt cannot be read"):
        load(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(path)
    assert "executed" not in capsys.readouterr().out


def state(**changes):
    changed = {**make_sae().state_dict(), **changes}
    return {name: tensor for name, tensor in changed.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (
            state(),
            None,
            r"nearest format is HookedSAE state dict .*or cfg.json\) or .*; its config is missing",
        ),
        (state(), {**CONFIG, "d_model": 3}, "may change what the SAE computes: d_model = 3. .* --ignore-config d_m"),
        (state(), {"d_in": 6}, r"misses \['d_sae', 'hook_name'\]"),
        (state(), [1], "is not a JSON object"),
        (state(), {**CONFIG, "dtype": "float16"}, "my-sae.json: dtype is 'float16'; my-sae.pt holds float32. Conv"),
        (state(b_dec=torch.zeros(6).half()), CONFIG, "mixes the dtypes float16, float32"),
        (state(b_dec=None), CONFIG, r"holds W_dec \[16, 6\], .*the standard SAE of its config has .*b_dec \[6\]"),
        (state(threshold=torch.zeros(16)), CONFIG, r"threshold \[16\]; the standard SAE of its config has"),
        (state(W_enc=torch.zeros(16, 6)), CONFIG, r"W_enc \[16, 6\].* of its config has .*W_enc \[6, 16\]"),
        ({}, CONFIG, "holds no tensor"),
        ({"W_enc": torch.zeros(6, 16).int()}, CONFIG, "holds int32; weights must be floating-point"),
        (state(), {**CONFIG, "d_sae": "16"}, "my-sae.json: d_sae is '16'; it must be of the type int"),
        (state(), {**CONFIG, "model_name": 2}, "model_name is 2; it must be of the type str"),
        (state(), {**CONFIG, "d_in": True}, "d_in is True; it must be of the type int"),
        (state(), {**CONFIG, "use_error_term": "false"}, "use_error_term is 'false'; it must be of the type bool"),
        ([torch.zeros(3)], CONFIG, "holds a list, not a state dict"),
        ({"epoch": 3}, CONFIG, "holds a dict, not a state dict"),
    ],
)
def test_unsound_state_dicts(tmp_path, tensors, config, message):
    with pytest.raises(CheckpointError, match=message):
        load(write(tmp_path, "my-sae.pt", tensors, config))


def test_a_key_of_a_state_dicts_config_can_be_ignored(tmp_path):
    path = write(tmp_path, "my-sae.pt", state(), {**CONFIG, "trained_by": "me", "notes": None, "d_in": 6.0})
    sae = load(path, ignore_config=["trained_by"])
    assert sae.provenance == {"checkpoint.ignore_config": "trained_by"}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["sparse", "CSR", "nested", "float8"])
def test_tensors_that_are_no_arrays(tmp_path, kind):
    ones = torch.ones(6, 16)
    tensors, message = {
        "sparse": lambda: (state(W_enc=ones.to_sparse()), "my-sae.pt: W_enc is a sparse or nested tensor. Save it den"),
        "CSR": lambda: (state(W_enc=ones.to_sparse_csr()), "W_enc is a sparse or nested tensor"),
        "nested": lambda: (state(W_enc=torch.nested.nested_tensor([ones])), "W_enc is a sparse or nested tensor"),
        "float8": lambda: (
            {"W_enc": ones.to(torch.float8_e4m3fn)},
            "holds float8_e4m3fn; an SAE may be in float32, .*",
        ),
    }[kind]()
    with pytest.raises(CheckpointError, match=message):
        load(write(tmp_path, "my-sae.pt", tensors))


def test_a_sign_that_is_pending_is_applied(tmp_path):
    """torch.save keeps the negative bit, and numpy refuses it."""
    bias = torch.arange(6.0)
    sae = load(write(tmp_path, "my-sae.pt", state(b_dec=torch._neg_view(bias))))
    assert torch.equal(sae.b_dec.cpu(), -bias)
    assert not sae.b_dec.is_neg()


@pytest.mark.parametrize("name", ["my-sae.pt", "my-sae.safetensors"])
def test_a_file_that_is_truncated(tmp_path, name):
    path = write(tmp_path, name, make_sae().state_dict())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        load(path)


def test_a_config_that_is_not_json(tmp_path):
    path = write(tmp_path, "my-sae.pt", make_sae().state_dict())
    (tmp_path / "my-sae.json").write_text("{")
    with pytest.raises(CheckpointError, match="my-sae.json is not JSON"):
        load(path)
