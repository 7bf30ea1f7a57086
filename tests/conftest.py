"""Fixtures of the whole suite, and the markers of tests that need a GPU."""

import shutil

import pytest

from runtime import SAESession
from saeexport import export
from tests.support.devices import why_not_on
from tests.support.samples import TINY, make_sae, normal
from tests.support.simulated_cuda import simulate


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="a test that needs a GPU fails without one")


def pytest_configure(config):
    for kind, what in (("gpu", "an NVIDIA GPU"), ("tensorrt", "an NVIDIA GPU and TensorRT")):
        config.addinivalue_line("markers", f"{kind}: needs {what}; skipped without, unless --require-gpu")


def pytest_runtest_setup(item):
    for marker, kind in (("gpu", "cuda"), ("tensorrt", "tensorrt")):
        if item.get_closest_marker(marker) and (reason := why_not_on(kind)):
            if item.config.getoption("--require-gpu"):
                pytest.fail(f"--require-gpu: {reason}")
            pytest.skip(reason)


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
