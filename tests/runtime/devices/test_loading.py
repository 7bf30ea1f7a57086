"""The parameters that ONNX Runtime uses in place, also where their file is reached through a symbolic link."""

import shutil

import numpy as np
import pytest

from runtime import SAESession
from runtime.artifact.onnxfile import external_tensors, with_locations
from runtime.devices import start
from tests.support.samples import TINY, normal

X = normal(3, 6)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(TINY, tmp_path / "sae")


@pytest.fixture
def copied(monkeypatch):
    """The names of the parameters that ONNX Runtime has to copy, for each session that is started."""
    names, started = [], start.start_session

    def noting(model, device, *args, parameters=None, **more):
        session = started(model, device, *args, parameters=parameters, **more)
        names.append(sorted(parameters or ()))
        return session

    monkeypatch.setattr("runtime.devices.cpu.start_session", noting)
    return names


def as_it_is(path):
    pass


def behind_a_link(path):
    """The cache of the Hugging Face Hub has links to files that are named by their content."""
    (path.parent / "blobs").mkdir()
    (path / "weights.safetensors").rename(path.parent / "blobs" / "1234")
    (path / "weights.safetensors").symlink_to("../blobs/1234")


def in_a_folder_behind_a_link(path):
    path.rename(path.with_name("other"))
    path.symlink_to("other")


@pytest.mark.parametrize("place", [as_it_is, behind_a_link, in_a_folder_behind_a_link])
def test_no_parameter_is_copied(copy, copied, place):
    place(copy)
    with SAESession(copy, "cpu") as session, SAESession(TINY, "cpu") as other:
        np.testing.assert_array_equal(session(X), other(X))
        np.testing.assert_array_equal(session.run_graph("model", {"input": X})["hook_sae_output"],
                                      other.run_graph("model", {"input": X})["hook_sae_output"])  # fmt: skip
    assert len(copied) == 4
    assert not any(copied)


def test_the_parameters_of_a_file_that_is_gone_are_copied(copy, copied):
    with SAESession(copy, "cpu") as session, SAESession(TINY, "cpu") as other:
        shutil.rmtree(copy)
        np.testing.assert_array_equal(session(X), other(X))
    assert copied[0]
    assert not copied[1]


def test_only_the_names_of_files_change():
    path = TINY / "model.onnx"
    model = path.read_bytes()
    moved = with_locations(model, {"weights.safetensors": "1234", "another": "5678"})
    before, after = external_tensors(model, path), external_tensors(moved, path)
    assert before
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert after[name].location == "1234"
        assert (after[name].offset, after[name].shape) == (tensor.offset, tensor.shape)
    assert with_locations(moved, {"1234": "weights.safetensors"}) == model
    assert with_locations(model, {"weights.safetensors": "weights.safetensors"}) is model
