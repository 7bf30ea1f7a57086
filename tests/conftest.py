import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated_cuda import simulate

from runtime import SAESession
from runtime.providers import Device, why_not
from saeexport import HookedSAE, export

ROOT = Path(__file__).parent.parent
TINY = ROOT / "models" / "tiny"
MINILM = ROOT / "models" / "minilm-layer3"
HOOKS = [f"hook_sae_{name}" for name in ("input", "acts_pre", "acts_post", "recons", "error", "output")]


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="a test that needs a GPU fails without one")


def pytest_configure(config):
    for kind, what in (("gpu", "an NVIDIA GPU"), ("tensorrt", "an NVIDIA GPU and TensorRT")):
        config.addinivalue_line("markers", f"{kind}: needs {what}; skipped without, unless --require-gpu")


@functools.cache
def why_not_on(kind):
    """Return why the tests of a device cannot run here; nothing if they can."""
    if reason := why_not(Device(kind)):
        return reason
    return "" if torch.cuda.is_available() else "this PyTorch is built without CUDA"


def pytest_runtest_setup(item):
    for marker, kind in (("gpu", "cuda"), ("tensorrt", "tensorrt")):
        if item.get_closest_marker(marker) and (reason := why_not_on(kind)):
            if item.config.getoption("--require-gpu"):
                pytest.fail(f"--require-gpu: {reason}")
            pytest.skip(reason)


def make_sae(d_in=6, d_sae=16, hook_name="blocks.0.hook_resid_pre", use_error_term=True, seed=0, **more):
    """Return an SAE with biases, about a third of its features on for standard normal inputs."""
    cfg = dict(d_in=d_in, d_sae=d_sae, hook_name=hook_name, use_error_term=use_error_term, seed=seed, device="cpu")
    sae = HookedSAE({**cfg, **more})
    draws = np.random.default_rng(seed)
    with torch.no_grad():
        for bias, center in ((sae.b_enc, -0.3), (sae.b_dec, 0.0)):
            bias.copy_(torch.from_numpy(draws.normal(center, 0.5, bias.shape)))
    return sae


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def contents(folder):
    """Return the bytes of every file of a folder."""
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


@pytest.fixture(scope="session", params=[True, False], ids=["error_term", "no_error_term"])
def exported(request, tmp_path_factory):
    """An SAE and its artifact; not to be changed."""
    sae = make_sae(use_error_term=request.param)
    return sae, export(sae, tmp_path_factory.mktemp("exported") / "sae", normal(40, 6)).path


@pytest.fixture(scope="session", params=[None, (3, 4)], ids=["flat", "split"])
def exported_z(request, tmp_path_factory):
    """A `hook_z` SAE and its artifact, exported flat and with its head shape; not to be changed."""
    sae = make_sae(d_in=12, hook_name="blocks.0.attn.hook_z")
    return sae, export(sae, tmp_path_factory.mktemp("exported_z") / "sae", head_shape=request.param).path


@pytest.fixture
def artifact(tmp_path):
    """A copy of the tiny artifact, to be broken."""
    return shutil.copytree(TINY, tmp_path / "tiny")


@pytest.fixture
def machine(monkeypatch):
    """A simulated GPU."""
    return simulate(monkeypatch)


@pytest.fixture(scope="session")
def expected():
    """What the CPU computes with the graphs that a GPU runs."""
    with SAESession(TINY, "cpu", graphs="portable") as session:
        yield session


@pytest.fixture(scope="session")
def half(tmp_path_factory):
    """An artifact in bfloat16; not to be changed."""
    return export(make_sae(), tmp_path_factory.mktemp("half") / "sae", normal(40, 6), dtype="bfloat16").path


@pytest.fixture
def session():
    with SAESession(TINY, "cpu") as opened:
        yield opened
