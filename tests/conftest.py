import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from runtime import SAESession
from saeexport import HookedSAE, export

ROOT = Path(__file__).parent.parent
TINY = ROOT / "models" / "tiny"
MINILM = ROOT / "models" / "minilm-layer3"
HOOKS = [f"hook_sae_{name}" for name in ("input", "acts_pre", "acts_post", "recons", "error", "output")]


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="a test that needs a GPU fails without one")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU; skipped without one, unless --require-gpu")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        if item.config.getoption("--require-gpu"):
            pytest.fail("--require-gpu: this onnxruntime is built without CUDA")
        pytest.skip("needs onnxruntime-gpu and a GPU")


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
def session():
    with SAESession(TINY, "cpu") as opened:
        yield opened
