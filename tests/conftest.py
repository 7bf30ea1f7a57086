"""Fixtures of the whole suite, and the markers of tests that need a GPU."""

import gc
import os
import shutil

# ONNX Runtime's wheels from 1.29 on send telemetry by default, and the thread that uploads it can hang the processes
# that a test forks. It is read when onnxruntime is imported, so it is set before that.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import pytest
import torch

from runtime import SAESession, read_artifact
from saeexport import ExportError, export
from saeexport.graphs import write
from tests.support.devices import why_not_on
from tests.support.samples import TINY, make_sae, normal
from tests.support.simulated_cuda import simulate
from tests.support.tracing import TRACE, CachedTrace, remember_operators
from tests.support.zoo import D_IN, sae_of, target_of

MOST_PROCESSES = 8  # each takes a gigabyte


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="a test that needs a GPU fails without one")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Return the number of processes of `make test`: one if there is a GPU, because they would share it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES) if why_not_on("cuda") else 1


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # there is a worker for each core
    for kind, what in (("gpu", "an NVIDIA GPU"), ("tensorrt", "an NVIDIA GPU and TensorRT")):
        config.addinivalue_line(
            "markers", f"{kind}: needs {what}; without, it is skipped, or runs on the CPU if rehearsed=True"
        )


def pytest_collection_modifyitems(items):
    """Start the tests that take seconds each, so that no process is left with one while the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish(session):
    """Leave what the imports made out of all further collections, each of which would take 0.4 s."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    for name, kind in (("gpu", "cuda"), ("tensorrt", "tensorrt")):
        if (marker := item.get_closest_marker(name)) and (reason := why_not_on(kind)):
            if item.config.getoption("--require-gpu"):
                pytest.fail(f"--require-gpu: {reason}")
            if not marker.kwargs.get("rehearsed"):
                pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def cached_trace():
    """Trace an SAE once, and not again for each test that exports it; see `tests/support/tracing.py`."""
    cached = CachedTrace()
    with pytest.MonkeyPatch.context() as patch:
        remember_operators(patch)
        patch.setattr(write, "trace", cached)
        yield cached


@pytest.fixture
def fresh_trace(monkeypatch):
    """Trace every SAE of the test by PyTorch, for the tests of tracing itself."""
    monkeypatch.setattr(write, "trace", TRACE)


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


@pytest.fixture(scope="session")
def artifact_of(tmp_path_factory):
    """Return the artifact of an SAE of the zoo, which is exported once for all tests and not to be changed."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all processes

    def artifact(architecture, dtype="float32", **more):
        path = folder / "zoo" / "-".join([architecture, dtype, *(f"{name}={value}" for name, value in more.items())])
        if not path.exists():
            sae = sae_of(architecture, **more)
            try:
                export(sae, path, normal(64, D_IN), targets=target_of(sae, 64), dtype=dtype)
            except ExportError:
                if not path.exists():  # another process has not been faster
                    raise
        return read_artifact(path)

    return artifact


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
    """Results of the CPU for the graphs that a GPU runs."""
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
