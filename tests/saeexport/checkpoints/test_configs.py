"""Configs: keys without effect, keys that the caller ignores, and files that are not plain JSON."""

import json

import pytest

from saeexport import CheckpointError, load
from tests.support.equations import D_IN, D_SAE, K, check, draw, reference, write

# The keys of gpt2-small-res-jb, which is older than SAELens 0.1.
RES_JB = {
    "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8,
    "hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "is_dataset_tokenized": False,
    "context_size": 128, "use_cached_activations": False,
    "cached_activations_path": "activations/openwebtext/gpt2-small/blocks.8.hook_resid_pre",
    "d_in": D_IN, "d_sae": D_SAE, "n_batches_in_buffer": 128, "total_training_tokens": 300000000,
    "store_batch_size": 32, "device": "mps", "seed": 42, "dtype": "torch.float32",
    "b_dec_init_method": "geometric_median", "expansion_factor": 32, "from_pretrained_path": None,
    "l1_coefficient": 8e-05, "lr": 0.0004, "lr_scheduler_name": None, "lr_warm_up_steps": 5000,
    "train_batch_size": 4096, "use_ghost_grads": False, "feature_sampling_window": 500,
    "feature_sampling_method": "Anthropic", "resample_batches": 1028, "feature_reinit_scale": 0.2,
    "dead_feature_window": 5000, "dead_feature_estimation_method": "no_fire", "dead_feature_threshold": 1e-06,
    "log_to_wandb": True, "wandb_project": "gpt2", "wandb_entity": None, "wandb_log_frequency": 100,
    "n_checkpoints": 10, "checkpoint_path": "checkpoints/x", "tokens_per_buffer": 67108864, "run_name": "24576-L1",
}  # fmt: skip
PLAIN = {"d_in": D_IN, "d_sae": D_SAE, "hook_name": "blocks.8.hook_resid_pre"}


def folder(path, config, architecture="standard"):
    return write(path / "sae", config, draw(architecture), "cfg.json", "sae_weights.safetensors")


def test_the_config_of_gpt2_small_res_jb(tmp_path):
    sae = load(folder(tmp_path, RES_JB))
    assert sae.cfg.hook_name == "blocks.8.hook_resid_pre"
    check(sae, reference("standard", draw("standard")))


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_an_unknown_option_that_is_off_is_without_effect(tmp_path, value):
    check(load(folder(tmp_path, {**PLAIN, "odd": value})), reference("standard", draw("standard")))


@pytest.mark.parametrize("value", [True, 0, 1, "no", [0], {"a": None}])
def test_an_unknown_option_that_is_on_is_refused_until_the_caller_ignores_it(tmp_path, value):
    path = folder(tmp_path, {**PLAIN, "odd": value, "lr": 1})
    with pytest.raises(CheckpointError, match="odd = .*--ignore-config odd, or in Python ignore_config="):
        load(path)
    check(load(path, ignore_config=["odd", "lr"]), reference("standard", draw("standard")))
    with pytest.raises(CheckpointError, match="pass a list of keys"):
        load(path, ignore_config="odd")


def test_whole_numbers_may_be_written_as_floats(tmp_path):
    config = {**PLAIN, "d_in": float(D_IN), "architecture": "topk", "k": float(K)}
    sae = load(folder(tmp_path, {**config, "activation_fn_str": "topk"}, "topk"))
    assert (sae.cfg.d_in, sae.cfg.k) == (D_IN, K)
    assert isinstance(sae.cfg.d_in, int)
    assert isinstance(sae.cfg.k, int)
    with pytest.raises(CheckpointError, match=r"d_in is 6.5; it must be of the type int"):
        load(folder(tmp_path, {**PLAIN, "d_in": 6.5}))


def test_a_byte_order_mark(tmp_path):
    path = folder(tmp_path, PLAIN)
    (path / "cfg.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(PLAIN).encode())
    check(load(path), reference("standard", draw("standard")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"lr": NaN}', "NaN is not a finite number"),
        ('{"lr": -Infinity}', "-Infinity is not a finite number"),
        ('{"lr": 1e400}', "1e400 is not a finite number"),
        ('{"d_in": ' + "9" * 5000 + "}", "of 5000 characters does not fit 64 bits"),
        ('{"d_in": 9223372036854775808}', "does not fit 64 bits"),
        ('{"d_in": 6, "d_in": 7}', "it has the key 'd_in' twice"),
        ("[" * 100_000, "is not JSON"),
        ('{"a":' * 100_000, "is not JSON"),
        ('{"hook_name": "\\ud800"}', "surrogates not allowed"),
        ("\xff", "is not JSON"),
        (" " * (16 << 20) + "{}", "too many for a config"),
    ],
)
def test_a_config_that_is_not_plain_json(tmp_path, text, message):
    path = folder(tmp_path, PLAIN)
    (path / "cfg.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        load(path)
