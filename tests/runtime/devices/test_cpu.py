"""The CPU backend uses the mapped weights in place, whatever happens at the path of the artifact."""

import shutil

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state

from runtime import SAESession
from runtime.devices import cpu
from tests.support.samples import TINY, normal

X = normal(3, 6)


def delete(artifact):
    shutil.rmtree(artifact)


def replace_weights(artifact):
    zeros = artifact / "zeros"
    zeros.write_bytes(bytes((artifact / "weights.safetensors").stat().st_size))
    zeros.rename(artifact / "weights.safetensors")


@pytest.fixture
def artifact(tmp_path):
    return shutil.copytree(TINY, tmp_path / "tiny")


@pytest.fixture
def started(monkeypatch):
    """Record for each start of ONNX Runtime whether it copies the weights; `started.before` is called before each."""

    class Started(list):
        def before(self):
            pass

    starts, start = Started(), cpu.start_session

    def start_and_record(*args, parameters=None, **options):
        starts.append("copied" if parameters else "in place")
        starts.before()
        return start(*args, parameters=parameters, **options)

    monkeypatch.setattr(cpu, "start_session", start_and_record)
    return starts


def test_the_weights_are_used_in_place(artifact, started):
    with SAESession(artifact, "cpu") as session:
        session(X)
    assert started == ["in place"]


@pytest.mark.parametrize("change", [delete, replace_weights])
def test_they_are_copied_where_the_artifact_is_no_longer(artifact, started, change):
    with SAESession(TINY, "cpu") as session:
        expected = session(X)
    started.clear()
    with SAESession(artifact, "cpu") as session:
        change(artifact)
        np.testing.assert_array_equal(session(X), expected)
    assert started == ["copied"]


@pytest.mark.parametrize("change", [delete, replace_weights])
def test_they_are_copied_if_the_artifact_goes_while_onnx_runtime_starts(artifact, started, change):
    with SAESession(TINY, "cpu") as session:
        expected = session(X)
    started.clear()
    with SAESession(artifact, "cpu") as session:
        started.before = lambda: change(artifact) if artifact.exists() and len(started) == 1 else None
        np.testing.assert_array_equal(session(X), expected)
    assert started == ["in place", "copied"]


def test_they_are_copied_if_onnx_runtime_refuses_to_use_them_in_place(artifact, started):
    def refuse():
        raise onnxruntime_pybind11_state.InvalidGraph("it is not a regular file")

    with SAESession(TINY, "cpu") as session:
        expected = session(X)
    started.clear()
    with SAESession(artifact, "cpu") as session:
        started.before = lambda: {1: refuse}.get(len(started), int)()
        np.testing.assert_array_equal(session(X), expected)
    assert started == ["in place", "copied"]
