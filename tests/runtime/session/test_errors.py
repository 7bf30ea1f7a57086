"""Errors of ONNX Runtime during a run or a load become an SAEError, and all other errors keep their type."""

import signal

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, NoSuchFile, RuntimeException

from runtime import ArtifactError, IntegrityError, ProviderError, SAEError, SAESession
from runtime.devices.start import ORT_ERRORS
from runtime.errors import InputError, UnknownHookError
from tests.support.samples import TINY, normal


class SignalError(Exception):
    """Stands for the exception of a service's signal handler."""


def raising(error):
    def call(*args, **kwargs):
        raise error

    return call


OURS = [InputError("ours"), UnknownHookError("ours"), ProviderError("ours"), IntegrityError("ours"), SAEError("ours")]
FOREIGN = [MemoryError("theirs"), KeyboardInterrupt("theirs"), TypeError("theirs"), SignalError("theirs"),
           ValueError("theirs"), RuntimeError("theirs"), SystemExit("theirs"), OSError("theirs")]  # fmt: skip


@pytest.mark.parametrize("error", OURS + FOREIGN, ids=lambda error: type(error).__name__)
def test_in_a_run_and_a_load_they_keep_their_type(session, monkeypatch, error):
    session(normal(6))
    backend = session._graphs.backend
    for method, call in (("run", lambda: session(normal(6))), ("load_graph", lambda: session.encode(normal(6)))):
        with monkeypatch.context() as patch:
            patch.setattr(backend, method, raising(error))
            with pytest.raises(type(error)) as caught:
                call()
            assert caught.value is error
    assert session(normal(6)).shape == (6,)


@pytest.mark.parametrize("kind", [Fail, InvalidArgument, RuntimeException])
def test_those_of_onnx_runtime_say_what_could_not_be_done(session, monkeypatch, kind):
    session(normal(6))
    backend = session._graphs.backend
    monkeypatch.setattr(backend, "run", raising(kind("its words")))
    with pytest.raises(SAEError, match=r"ONNX Runtime cannot run 'model.sparse' on cpu with .*: its words") as caught:
        session(normal(6))
    assert type(caught.value.__cause__) is kind
    monkeypatch.setattr(backend, "load_graph", raising(kind("its words")))
    with pytest.raises(ArtifactError, match=r"cannot load .*acts.onnx on cpu: its words") as caught:
        session.encode(normal(6))
    assert type(caught.value.__cause__) is kind


def test_the_exceptions_of_onnx_runtime_are_known():
    assert {Fail, InvalidArgument, NoSuchFile, RuntimeException} <= set(ORT_ERRORS)
    assert not any(issubclass(error, ORT_ERRORS) for error in (SAEError, ValueError, RuntimeError, MemoryError))


@pytest.mark.parametrize(
    ("kind", "fail"),
    [
        (ValueError, lambda loaded: loaded.run(None, {})),
        (RuntimeError, lambda loaded: ort.OrtValue.ortvalue_from_numpy(normal(3), "dml")),
        (Exception, lambda loaded: ort.OrtValue.ortvalue_from_numpy(normal(3), "no device")),
    ],
)
def test_a_plain_error_from_inside_onnx_runtime_is_its_own(session, monkeypatch, kind, fail):
    """Its Python code raises such errors, and so does its C++ code without a status."""
    session(normal(6))
    (loaded,) = session._graphs.loaded.values()
    monkeypatch.setattr(session._graphs.backend, "run", lambda *args: fail(loaded))
    with pytest.raises(SAEError, match="ONNX Runtime cannot run") as caught:
        session(normal(6))
    assert type(caught.value.__cause__) is kind


@pytest.mark.parametrize("block_tokens", [None, 2])
def test_an_output_that_a_graph_does_not_compute_is_named(block_tokens):
    message = "'decode' does not compute hook_sae_error; it computes \\['hook_sae_recons'\\]"
    with SAESession(TINY, "cpu", block_tokens=block_tokens) as session, pytest.raises(InputError, match=message):
        session.run_graph("decode", {"hook_sae_acts_post": np.zeros((5, 16), np.float32)}, ["hook_sae_error"])


@pytest.mark.parametrize("k", [np.int64(3), np.array([-3]), np.array([3, 3]), np.array([3.0])])
def test_an_invalid_k_is_an_error_in_blocks_too(k):
    with SAESession(TINY, "cpu", block_tokens=2) as session, pytest.raises(InputError, match="one whole number"):
        session.run_graph("features", {"input": np.zeros((5, 6), np.float32), "k": k})


def test_a_signal_handler_may_raise_during_a_run():
    x = np.zeros((200_000, 6), np.float32)
    before = signal.signal(signal.SIGALRM, lambda *_: raising(SignalError("now"))())
    try:
        with SAESession(TINY, "cpu") as session:
            session.encode(x)
            signal.setitimer(signal.ITIMER_REAL, 1e-3)
            with pytest.raises(SignalError):
                for _ in range(1000):
                    session.encode(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_version_is_named_in_a_load_error(artifact):
    (artifact / "acts.onnx").write_bytes(b"\x00" * (artifact / "acts.onnx").stat().st_size)
    message = f"ONNX Runtime {ort.__version__} cannot load .*acts.onnx on cpu"
    with SAESession(artifact, "cpu", check_integrity=False) as session, pytest.raises(ArtifactError, match=message):
        session.encode(normal(6))
