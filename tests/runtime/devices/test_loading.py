"""The parameters that ONNX Runtime uses in place, also where their file is reached through a symbolic link."""

import os
import shutil
import signal

import numpy as np
import pytest

from runtime import SAESession
from runtime.artifact.onnxfile import external_tensors, with_locations
from runtime.devices import cpu, start
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


def test_a_link_to_a_name_that_is_not_text(copy):
    target = os.fsdecode(os.fsencode(copy.parent) + b"/\xff")
    try:
        (copy / "weights.safetensors").rename(target)
    except OSError:
        pytest.skip("this file system refuses such names")
    (copy / "weights.safetensors").symlink_to(target)
    with SAESession(copy, "cpu") as session, SAESession(TINY, "cpu") as other:
        np.testing.assert_array_equal(session(X), other(X))


def test_links_that_lead_in_a_circle_after_the_artifact_was_opened(copy):
    weights = copy / "weights.safetensors"
    with SAESession(copy, "cpu") as session, SAESession(TINY, "cpu") as other:
        weights.unlink()
        weights.symlink_to(weights.name)
        np.testing.assert_array_equal(session(X), other(X))


def test_the_exception_of_a_signal_handler_ends_the_load(monkeypatch):
    """It is raised when a call into ONNX Runtime returns."""

    def alarm(signum, frame):
        raise TimeoutError("the time is over")

    def interrupted(*arguments, **options):
        session = started(*arguments, **options)
        signal.raise_signal(signal.SIGUSR1)
        return session

    started, before = cpu.start_session, signal.signal(signal.SIGUSR1, alarm)
    try:
        with SAESession(TINY, "cpu") as session, SAESession(TINY, "cpu") as other:
            with monkeypatch.context() as patch:
                patch.setattr(cpu, "start_session", interrupted)
                with pytest.raises(TimeoutError, match="the time is over"):
                    session(X)
            np.testing.assert_array_equal(session(X), other(X))
    finally:
        signal.signal(signal.SIGUSR1, before)


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
