"""What is in a golden batch is what was written, tensor by tensor."""

import dataclasses
import functools

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runtime import IntegrityError, read_artifact
from runtime.parity.golden import load_golden, save_golden
from tests.support.breaking import rewrite
from tests.support.references import ERROR, INPUT, OUTPUT, POST, PRE, RECONS, make_reference, make_steered

FIXTURES = ["standard", "gated", "gated-float16", "jumprelu-bfloat16", "standard-int8", "transcoder", "topk_transcoder",
            "standard-heads"]  # fmt: skip


def replace(path, tensors):
    kept = {name: tensor for name, tensor in {**load_file(path), **tensors}.items() if tensor is not None}
    save_file({name: np.asarray(tensor, order="C") for name, tensor in kept.items()}, path)


def spoil(folder, **tensors):
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    rewrite(folder, "golden.safetensors", functools.partial(replace, tensors=named))
    return folder


@pytest.mark.parametrize("name", FIXTURES)
def test_a_golden_batch_that_is_written_again_is_the_same(unpacked, tmp_path, name):
    artifact = read_artifact(unpacked(name))
    stored = load_file(artifact.path / "golden.safetensors")
    steered = load_golden(artifact)
    in_tf32 = load_golden(artifact, "tf32").clean if "uncertain.tf32" in stored else None
    save_golden(steered, steered.tokens, str(tmp_path / "again"), in_tf32)
    again = load_file(tmp_path / "again")
    assert again.keys() == stored.keys()
    for tensor, expected in stored.items():
        found = again[tensor]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), tensor
        if tensor.startswith("scale."):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=tensor)


def gated():
    """Return a reference on five tokens, with gates and an edit of two features."""
    pre = np.arange(15.0).reshape(5, 3) - 6
    uncertain = np.zeros((5, 3), bool)
    uncertain[[0, 2, 3], [1, 0, 2]] = True
    clean = make_reference(pre, uncertain=uncertain, flips=np.array([1, 2, 3, 4, 5], np.int32))
    clean = dataclasses.replace(clean, truth={hook: y + 1e-9 for hook, y in clean.truth.items()})
    return clean, make_steered(clean, [2, 0], [[i, 1] for i in range(5)], [[0, i] for i in range(5)])


def test_evenly_spaced_tokens_are_written(tmp_path):
    clean, steered = gated()
    in_tf32 = dataclasses.replace(clean, uncertain=~clean.uncertain, flips=None)
    for tokens, sample in ((1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])):
        save_golden(steered, tokens, str(tmp_path / "golden"), in_tf32)
        found = load_file(tmp_path / "golden")
        for hook in (INPUT, PRE, POST, RECONS, ERROR, OUTPUT):
            assert (found[hook] == clean.original[hook][sample]).all()
        for hook in (PRE, POST, RECONS, ERROR, OUTPUT):
            assert found[f"residual.{hook}"] == pytest.approx((clean.truth[hook] - clean.original[hook])[sample])
            assert (found[f"residual.{hook}"] > 0).all()
            assert found[f"residual.{hook}"].dtype == np.float32
            assert (found[f"scale.{hook}"] == clean.token_scale(hook)[sample]).all()
        for hook in (RECONS, OUTPUT):
            assert (found[f"steered.{hook}"] == steered.original[hook][sample]).all()
            assert (found[f"scale.steered.{hook}"] == steered.token_scale(hook)[sample]).all()
        assert (found[f"steered.{POST}"] == steered.original[POST][sample][:, [2, 0]]).all()
        assert found[f"residual.steered.{POST}"].shape == (tokens, 2)
        assert found["feature_ids"].tolist() == [2, 0]
        assert found["feature_scale"].tolist() == [[i, 1] for i in sample]
        assert found["feature_shift"].tolist() == [[0, i] for i in sample]
        places = np.flatnonzero(clean.uncertain[sample])
        assert found["uncertain.float32"].tolist() == places.tolist()
        assert found["uncertain.tf32"].tolist() == np.flatnonzero(~clean.uncertain[sample]).tolist()
        assert found["uncertain.float32.flips"].tolist() == [i + 1 for i in sample]
        assert found["uncertain.float32.flips"].dtype == np.int64
        assert not {"uncertain.tf32.flips", "target"} & found.keys()


def test_without_tf32_and_gates_there_are_no_such_tensors(tmp_path):
    clean = make_reference([[1.0, 2.0]] * 3, target=np.float32([[1, 2], [3, 4], [5, 6]]))
    save_golden(make_steered(clean, [0], [0.0], [1.0]), 2, str(tmp_path / "golden"))
    found = load_file(tmp_path / "golden")
    assert {name for name in found if name.startswith("uncertain")} == {"uncertain.float32"}
    assert found["uncertain.float32"].tolist() == []
    assert found["target"].tolist() == [[1, 2], [5, 6]]


def test_what_is_read_says_which_features_are_uncertain(unpacked):
    folder = unpacked("gated-float16")
    stored = load_file(folder / "golden.safetensors")
    width, tokens = stored["hook_sae_acts_pre"].shape[1], len(stored["hook_sae_acts_pre"])
    last = tokens * width - 1
    spoil(folder, uncertain__float16=np.array([0, width + 3, last]))
    clean = load_golden(read_artifact(folder)).clean
    assert np.argwhere(clean.uncertain).tolist() == [[0, 0], [1, 3], [tokens - 1, width - 1]]
    assert clean.flips.tolist() == stored["uncertain.float16.flips"].tolist()
    assert not clean.rounded
    for place in (-1, last + 1):
        spoil(folder, uncertain__float16=np.array([1, place]))
        with pytest.raises(IntegrityError, match=rf"are not indices into \[{tokens}, {width}\] activations"):
            load_golden(read_artifact(folder))


def test_weights_of_8_bits_may_decide_about_every_feature(unpacked):
    golden = load_golden(read_artifact(unpacked("standard-int8")))
    clean = golden.clean
    assert clean.rounded
    assert golden.rounded
    assert clean.uncertain is None
    assert clean.flips is None


def test_weights_of_8_bits_have_no_flips_even_if_the_file_has(unpacked):
    folder = unpacked("standard-int8")
    tokens = len(load_file(folder / "golden.safetensors")["hook_sae_acts_pre"])
    spoil(folder, uncertain__float32__flips=np.ones(tokens, np.int64))
    assert load_golden(read_artifact(folder)).clean.flips is None


def test_budgets_are_those_of_the_precision(unpacked):
    artifact = read_artifact(unpacked("standard"))
    parity = artifact.manifest.parity
    for precision, hooks, steered in (
        ("float32", parity.hooks, parity.steered),
        ("tf32", parity.tf32, parity.tf32_steered),
    ):
        golden = load_golden(artifact, precision)
        assert golden.clean.recorded == {hook: record.budget for hook, record in hooks.items()}
        assert golden.recorded == {hook: record.budget for hook, record in steered.items()}
    int8 = read_artifact(unpacked("standard-int8"))
    assert load_golden(int8).recorded == {hook: one.budget for hook, one in int8.manifest.record.steered.items()}


def test_a_target_of_an_sae_that_takes_none_is_not_read(unpacked):
    """It would change the size that errors are relative to."""
    folder = spoil(unpacked("topk_transcoder"), target=np.full((8, 2), 1e9, np.float32))
    golden = load_golden(read_artifact(folder))
    assert golden.target is golden.clean.target is None


def test_a_small_scale_is_compared_by_its_own_size(unpacked):
    folder = unpacked("standard")
    names = ("input", "recons", "error", "output")
    golden = load_file(folder / "golden.safetensors")
    small = {name: tensor * tensor.dtype.type(1e-6) for name, tensor in golden.items() if name.endswith(names)}
    rewrite(folder, "golden.safetensors", functools.partial(replace, tensors=small))
    load_golden(read_artifact(folder))
    scale = small["scale.hook_sae_recons"]
    assert scale.max() < 1e-5
    with pytest.raises(IntegrityError, match="scale.hook_sae_recons is not what the other tensors imply"):
        load_golden(read_artifact(spoil(folder, scale__hook_sae_recons=scale * 1.001)))


def test_weights_of_8_bits_have_no_budgets_in_tf32(unpacked):
    folder = spoil(unpacked("standard-int8"), uncertain__tf32=np.zeros(0, np.int64))
    in_float32, in_tf32 = (load_golden(read_artifact(folder), precision) for precision in ("float32", "tf32"))
    assert in_tf32.recorded == in_float32.recorded


def test_a_file_that_was_changed_is_not_read(unpacked):
    folder = unpacked("standard")
    artifact = read_artifact(folder)
    content = bytearray((folder / "golden.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "golden.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match="it was changed after the export"):
        load_golden(artifact)


def test_what_is_read_may_be_written_to(unpacked):
    golden = load_golden(read_artifact(unpacked("standard")))
    assert all(y.flags.writeable and y.flags.aligned for y in golden.clean.original.values())


def test_half_of_a_scale_is_refused(unpacked):
    """A difference below the rounding of the residuals is not."""
    folder = unpacked("standard")
    scale = load_file(folder / "golden.safetensors")["scale.hook_sae_recons"]
    load_golden(read_artifact(spoil(folder, scale__hook_sae_recons=scale * (1 + 5e-7))))
    for factor in (1 + 1.5e-6, 0.5):
        with pytest.raises(IntegrityError, match="scale.hook_sae_recons is not what the other tensors imply"):
            load_golden(read_artifact(spoil(folder, scale__hook_sae_recons=scale * factor)))
    zeros = np.zeros_like(scale)
    with pytest.raises(IntegrityError, match="scale.hook_sae_recons is not what the other tensors imply"):
        load_golden(read_artifact(spoil(folder, scale__hook_sae_recons=zeros)))


@pytest.mark.parametrize(("name", "tensors", "message"), [
    ("gated-float16", {"hook_sae_recons": np.zeros((1, 1), np.float32)}, "recons is float32 .*, expected float16"),
    ("jumprelu-bfloat16", {"hook_sae_recons": np.zeros((1, 1), np.float16)}, "recons is float16 .*, expected float32"),
    ("transcoder", {"target": None}, "has no tensor target"),
    ("transcoder", {"target": np.zeros((2, 2), np.float32)}, r"target is float32 \[2, 2\], expected float32"),
    ("gated", {"uncertain__float32__flips": np.zeros(2, np.int64)}, "uncertain.float32.flips is int64"),
    ("standard", {"feature_ids": np.zeros((), np.int64)}, r"acts_post is float32 .*, expected float32 \[8, 1\]"),
    ("standard", {"feature_ids": None}, "has no tensor feature_ids"),
    ("standard", dict.fromkeys(["uncertain__float32", "hook_sae_recons", "feature_scale", "steered__hook_sae_output"]),
     "has no tensor feature_scale, hook_sae_recons, steered.hook_sae_output, uncertain.float32. Export"),
    ("standard", {"uncertain__float32": np.zeros(0, np.int32)}, r"uncertain.float32 is int32 \[0\], expected int64"),
])  # fmt: skip
def test_a_tensor_that_does_not_fit_the_manifest_is_named(unpacked, name, tensors, message):
    with pytest.raises(IntegrityError, match=message):
        load_golden(read_artifact(spoil(unpacked(name), **tensors)))
