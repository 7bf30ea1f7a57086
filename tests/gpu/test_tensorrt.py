"""Tests that need a GPU and TensorRT. `make gpu-tensorrt` runs them and does not let any be skipped."""

import numpy as np
import pytest
import torch

from runtime import Ablate, ProviderError, SAESession, verify
from runtime.artifact.contracts import FEATURES, PORTABLE
from saeexport import export
from tests.support.samples import MINILM, make_sae, normal

pytestmark = pytest.mark.tensorrt


@pytest.fixture
def opened(tmp_path):
    def opened(path=MINILM, **more):
        return SAESession(path, "tensorrt", **{"precision": "tf32", "cache": tmp_path / "engines", **more})

    return opened


def test_parity_in_tf32(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = verify(MINILM, "tensorrt", "tf32")
    assert report.failures == []
    assert {verdict.graph for verdict in report.verdicts} == set(PORTABLE) - {FEATURES}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parity_in_half_precision(monkeypatch, tmp_path, dtype):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    export(make_sae(d_in=64, d_sae=512), tmp_path / "sae", dtype=dtype)
    assert verify(tmp_path / "sae", "tensorrt").failures == []


def test_an_engine_is_kept(opened, tmp_path):
    x = normal(5, 384)
    with opened() as session:
        first = session(x)
    engines = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")}
    assert engines
    with opened() as session:
        assert np.array_equal(session(x), first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")} == engines


def test_torch_tensors_are_used_in_place(opened):
    x = torch.randn(9, 384, device="cuda")
    with opened() as session:
        y = torch.from_dlpack(session(x))
        assert y.is_cuda
        assert np.allclose(y.cpu().numpy(), session(x.cpu().numpy()))
        assert session.steer(x, {})[0].shape == (9, 384)
        assert session.steer(x, {3: Ablate()})[0].shape == (9, 384)


def test_a_graph_that_tensorrt_cannot_run_is_an_error(opened):
    with opened() as session, pytest.raises(ProviderError, match="takes k"):
        session.top_features(normal(2, 384), 5)
