"""The golden batch is read only if every tensor is what the manifest implies, even where its sha256 is right."""

import functools

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runtime import IntegrityError, read_artifact, verify
from runtime.commands.main import main
from runtime.parity.golden import load_golden
from tests.support.breaking import rewrite
from tests.support.samples import TINY

TENSORS = load_file(TINY / "golden.safetensors")
READ = [name for name in TENSORS if "tf32" not in name]  # the others are read for TF32


def replace(path, **tensors):
    kept = {name: tensor for name, tensor in {**load_file(path), **tensors}.items() if tensor is not None}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in kept.items()}, path)


def spoil(artifact, **tensors):
    rewrite(artifact, "golden.safetensors", functools.partial(replace, **tensors))


CHANGES = {
    "shorter": lambda tensor: tensor[:-1] if len(tensor) else np.zeros(1, tensor.dtype),
    "flat": lambda tensor: tensor.reshape(-1) if tensor.ndim > 1 else tensor[None],
    "a number": lambda tensor: np.zeros((), tensor.dtype),
    "other numbers": lambda tensor: tensor.astype(np.int32),
}


@pytest.mark.parametrize(("name", "change"), [
    (name, change) for name in READ for change in CHANGES
    if name != "uncertain.float32" or change not in ("shorter", "a number")  # there may be any number of them
])  # fmt: skip
def test_a_tensor_of_another_shape_or_dtype_is_refused(artifact, name, change):
    spoil(artifact, **{name: CHANGES[change](TENSORS[name])})
    with pytest.raises(
        IntegrityError, match=r"golden.safetensors: .* is \w+ \[.*\], expected \w+ \[.*\]. Export the SAE"
    ):
        verify(artifact, "cpu")


@pytest.mark.parametrize("name", READ)
def test_a_missing_tensor_is_named(artifact, name):
    spoil(artifact, **{name: None})
    with pytest.raises(IntegrityError, match=f"golden.safetensors has no tensor {name}"):
        load_golden(read_artifact(artifact))


def test_all_that_is_missing_is_named_in_order(artifact):
    missing = sorted(name for name in READ if name.startswith("scale."))
    spoil(artifact, **dict.fromkeys(missing))
    with pytest.raises(IntegrityError, match=f"golden.safetensors has no tensor {', '.join(missing)}. Export"):
        load_golden(read_artifact(artifact))


@pytest.mark.parametrize("places", [[-1], [256], [3, 256], [3, -1]])
def test_an_uncertain_feature_must_be_one_of_those_of_the_batch(artifact, places):
    spoil(artifact, **{"uncertain.float32": np.array(places)})
    with pytest.raises(IntegrityError, match=r"uncertain.float32 are not indices into \[16, 16\] activations"):
        load_golden(read_artifact(artifact))


def test_the_uncertain_features_are_those_that_are_stored(artifact):
    assert not load_golden(read_artifact(artifact)).clean.is_uncertain.any()
    spoil(artifact, **{"uncertain.float32": np.array([0, 17, 255])})
    uncertain = load_golden(read_artifact(artifact)).clean.uncertain
    assert np.argwhere(uncertain).tolist() == [[0, 0], [1, 1], [15, 15]]


def test_the_uncertain_features_of_tf32_are_checked_where_they_are_read(artifact):
    spoil(artifact, **{"uncertain.tf32": None})
    load_golden(read_artifact(artifact))
    with pytest.raises(IntegrityError, match="has no tensor uncertain.tf32"):
        load_golden(read_artifact(artifact), "tf32")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"feature_ids": np.arange(8) + 9}, "There is no feature 16; this SAE has 16"),
        ({"feature_ids": np.zeros(8, np.int64)}, "Feature 0 is there 8 times"),
        ({"feature_scale": np.full((1, 8), np.nan, np.float32)}, "The scale of feature .* is nan"),
    ],
)
def test_an_intervention_that_cannot_be_made_is_refused(artifact, tensors, message, capsys):
    spoil(artifact, **tensors)
    with pytest.raises(IntegrityError, match=f"has an intervention that cannot be made: {message}"):
        load_golden(read_artifact(artifact))
    assert main(["verify", str(artifact), "--device", "cpu"]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_one_row_of_the_intervention_stands_for_all_tokens(artifact):
    spoil(artifact, **{name: TENSORS[name][:1] for name in ("feature_scale", "feature_shift")})
    assert load_golden(read_artifact(artifact)).intervention.scale.shape == (1, 8)
