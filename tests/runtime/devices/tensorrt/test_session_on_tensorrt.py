"""Sessions on TensorRT with a simulated GPU: each graph has its own options and engine, and results stay the same."""

import gc

import numpy as np
import pytest

from runtime import Ablate, InputError, ProviderError, SAESession, verify
from runtime.artifact.contracts import FEATURES, PORTABLE
from runtime.devices.tensorrt import backend
from tests.support.samples import TINY, normal
from tests.support.simulated_cuda import DeviceArray, simulate, taken_by


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(backend, "tensorrt_version", lambda: "10.9.0")
    machine = simulate(monkeypatch)
    monkeypatch.setattr(backend, "driver", lambda: machine)
    return machine


@pytest.fixture
def opened(machine, tmp_path):
    def opened(**more):
        return SAESession(TINY, "tensorrt", **{"precision": "tf32", "cache": tmp_path, "block_tokens": 8, **more})

    return opened


def test_each_graph_has_its_engine(opened, machine, tmp_path):
    with SAESession(TINY, "cpu", graphs="portable") as expected, opened() as sae:
        x = normal(11, 6)
        assert np.array_equal(sae(x), expected(x))
        assert np.array_equal(taken_by(machine, sae(DeviceArray(machine, x))), expected(x))
        assert np.array_equal(sae.steer(x, {1: Ablate()})[0], expected.steer(x, {1: Ablate()})[0])
    model, steer = (session.options for session in machine.sessions if isinstance(session.model, str))
    assert (model["trt_profile_min_shapes"], model["trt_profile_max_shapes"]) == ("input:1x6", "input:8x6")
    assert "feature_ids:64" in steer["trt_profile_max_shapes"]
    assert model["trt_engine_cache_path"] != steer["trt_engine_cache_path"]
    assert model["trt_engine_cache_path"].startswith(str(tmp_path))
    assert model["user_compute_stream"] == steer["user_compute_stream"]


def test_a_session_of_onnx_runtime_outlives_what_it_has_queued(opened, machine):
    stream = machine.card(0).stream()
    sae = opened(stream=stream)
    sae(DeviceArray(machine, normal(3, 6), stream))
    machine.sessions.clear()
    assert machine.streams[stream].queue
    del sae
    gc.collect()
    assert machine.died_early == []
    assert not machine.streams[stream].queue


def test_tf32_is_for_float32(machine, half):
    with pytest.raises(
        InputError, match=r'precision="tf32" applies to float32 artifacts; .* is in bfloat16. Leave it out'
    ):
        SAESession(half, "tensorrt", precision="tf32")


def test_empty_interventions_and_batches_stay_within_the_profile(opened, machine):
    with opened() as sae:
        x = normal(3, 6)
        assert np.array_equal(sae.steer(x, {})[0], sae(x))
        assert [
            session.model.endswith("model.onnx") for session in machine.sessions if isinstance(session.model, str)
        ] == [True]
        runs = machine.sessions[-1].runs
        assert sae(normal(0, 6)).shape == (0, 6)
        assert machine.sessions[-1].runs == runs


def test_verify_checks_every_graph_but_features(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = verify(TINY, "tensorrt", "tf32")
    assert report.failures == []
    assert {verdict.graph for verdict in report.verdicts} == set(PORTABLE) - {FEATURES}


def test_what_tensorrt_cannot_do_is_an_error(opened, monkeypatch):
    with opened() as sae, pytest.raises(ProviderError, match="features.onnx takes k"):
        sae.top_features(normal(2, 6), 3)
    with pytest.raises(InputError, match='cuda_graph is for device="cuda"'):
        opened(cuda_graph=[1])
    with opened(precision="float32") as sae, pytest.raises(ProviderError, match="NVIDIA_TF32_OVERRIDE=0"):
        sae(normal(2, 6))
    monkeypatch.setattr(backend, "tensorrt_version", lambda: None)
    monkeypatch.setattr(backend, "missing_tensorrt", lambda: "libnvinfer.so.10: cannot open")
    with opened() as sae, pytest.raises(ProviderError, match="libnvinfer.so.10: cannot open"):
        sae(normal(2, 6))


def test_memory_limit_bounds_the_workspace_of_the_builder(opened, machine):
    with opened(memory_limit=1 << 30) as sae:
        sae(normal(1, 6))
        assert machine.sessions[-1].options["trt_max_workspace_size"] == str(1 << 30)
