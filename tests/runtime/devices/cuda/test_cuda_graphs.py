"""CUDA graphs on a simulated GPU: captured once per shape, and correct for every input."""

import gc
import re
import warnings
import weakref

import numpy as np
import pytest

from runtime import Ablate, InputError, SAEError, SAESession
from runtime.devices.cuda.replay import ATTEMPTS, RUNS_BEFORE
from runtime.devices.start import ORT_ERRORS
from tests.support.samples import TINY, normal
from tests.support.simulated_cuda import DeviceArray


@pytest.mark.parametrize("on_device", [True, False])
def test_a_graph_is_captured_once_per_shape_and_follows_its_inputs(machine, expected, on_device):
    with SAESession(TINY, "cuda", cuda_graph=[1, 4]) as sae:
        kept = []
        for tokens in (1, 4, 2, 1, 4, 2):
            x = normal(tokens, 6, seed=len(kept))
            y = sae(DeviceArray(machine, x) if on_device else x)
            kept.append((y, expected(x)))
        assert machine.launches == [1, 2]  # a call that captures runs the graph itself
        assert "enable_cuda_graph" not in machine.sessions[-1].options
        assert machine.sessions[-1].runs == 2 * (RUNS_BEFORE + 1) + 2
        for y, wanted in kept:  # a later replay does not change earlier results
            assert np.array_equal(np.asarray(y), wanted)


def test_interventions_and_features_are_captured_by_their_shapes(machine, expected):
    with SAESession(TINY, "cuda", cuda_graph=[2]) as sae:
        x = normal(2, 6)
        for edits in ({1: Ablate()}, {2: Ablate()}, {1: Ablate(), 2: Ablate()}):
            assert np.array_equal(sae.steer(x, edits)[0], expected.steer(x, edits)[0])
        assert machine.launches == [1]
        for k in (3, 3, 4):
            assert np.array_equal(sae.top_features(x, k).indices, expected.top_features(x, k).indices)
        assert machine.launches == [1, 3]


def test_captures_are_bounded(machine, expected, monkeypatch):
    monkeypatch.setattr("runtime.devices.cuda.replay.MAX_CAPTURES", 2)
    with SAESession(TINY, "cuda", cuda_graph=[1, 2, 3]) as sae:
        for tokens in (1, 2, 3, 3, 1):
            x = normal(tokens, 6, seed=tokens)
            assert np.array_equal(sae(x), expected(x))
        assert machine.launches == [1]


def test_a_released_graph_is_captured_again(machine, expected):
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        x = normal(1, 6)
        sae.compute(x, ["hook_sae_output"])
        first = machine.sessions[-1]
        sae.release("model")
        for _ in range(2):
            assert np.array_equal(sae(x), expected(x))
        assert machine.sessions[-1] is not first
        assert machine.launches == [2]
        assert machine.graphs[0] is None  # it was destroyed


def test_a_call_that_still_uses_a_released_graph_captures_nothing(machine, expected, monkeypatch):
    """A capture would keep the session of the graph, which nothing would release a second time."""
    x = normal(1, 6)
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        backend = sae._graphs.backend
        run = backend.run

        def release_and_run(session, *arguments):
            sae.release("model")
            return run(session, *arguments)

        monkeypatch.setattr(backend, "run", release_and_run)
        for _ in range(2):
            assert np.array_equal(sae(x), expected(x))
        assert machine.graphs == []
        released = [weakref.ref(session) for session in machine.sessions]
        machine.sessions.clear()
        gc.collect()
        assert {session() for session in released} == {None}


def test_two_graphs_with_the_same_inputs_are_captured_each(machine, expected):
    x = normal(1, 6)
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        for _ in range(2):
            assert np.array_equal(sae(x), expected(x))
            assert np.array_equal(sae.encode(x), expected.encode(x))
    assert machine.launches == [1, 2]


@pytest.mark.parametrize("closes", [True, False])
def test_graphs_are_destroyed_with_their_session(machine, monkeypatch, closes):
    unraisable = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    sae = SAESession(TINY, "cuda", cuda_graph=[1, 2])
    sae(normal(1, 6))
    sae(normal(2, 6))
    assert None not in machine.graphs
    if closes:
        sae.close()
    del sae
    gc.collect()
    assert machine.graphs == [None, None]
    assert unraisable == []


def failing(monkeypatch, card, error):
    """Make captures of a card fail after they were queued; the first result undoes it, the second is their number."""
    real, tried = card.capture, []

    def capture(stream, queue):
        tried.append(real(stream, queue))
        raise error

    monkeypatch.setattr(card, "capture", capture)
    return lambda: monkeypatch.setattr(card, "capture", real), tried


INVALID = SAEError("cuStreamEndCapture of the NVIDIA driver: error 901, the capture was invalidated.")
OF_ONNX_RUNTIME = ORT_ERRORS[0]("CUDA failure 900: operation not permitted when stream is capturing")


@pytest.mark.parametrize("error", [INVALID, OF_ONNX_RUNTIME], ids=["driver", "ONNX Runtime"])
def test_a_capture_that_fails_is_made_again(machine, expected, monkeypatch, error):
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        undo, tried = failing(monkeypatch, machine.card(0), error)
        for seed in range(ATTEMPTS - 1):
            x = normal(1, 6, seed=seed)
            assert np.array_equal(sae(x), expected(x))
        undo()
        for seed in range(3):
            x = normal(1, 6, seed=seed)
            assert np.array_equal(sae(x), expected(x))
    assert len(tried) == ATTEMPTS - 1
    assert machine.launches == [ATTEMPTS, ATTEMPTS]


def test_captures_that_always_fail_are_given_up_with_a_warning(machine, expected, monkeypatch):
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        _, tried = failing(monkeypatch, machine.card(0), INVALID)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for seed in range(5):
                x = normal(1, 6, seed=seed)
                assert np.array_equal(sae(x), expected(x))
        (message,) = (str(warning.message) for warning in warned)
        assert re.fullmatch(r"model.onnx is run without a CUDA graph: cuStreamEnd.* error 901, .*", message)
        assert machine.sessions[-1].runs == ATTEMPTS * (RUNS_BEFORE + 1) + 2
    assert len(tried) == ATTEMPTS
    assert machine.launches == []


def test_other_errors_of_a_capture_are_raised(machine, monkeypatch):
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        failing(monkeypatch, machine.card(0), KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            sae(normal(1, 6))


def test_a_capture_without_memory_is_an_error_and_leaves_nothing_behind(machine, expected, monkeypatch):
    unraisable = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        sae(normal(2, 6))
        left, machine.left = machine.left, 10
        with pytest.raises(SAEError, match="out of memory"):
            sae(normal(1, 6))
        machine.left = left
        gc.collect()
        assert np.array_equal(sae(normal(1, 6)), expected(normal(1, 6)))
    assert unraisable == []


@pytest.mark.parametrize("sizes", [[0], [-1], [1.5], ["8"], [True]])
def test_invalid_sizes_are_refused(machine, sizes):
    with pytest.raises(InputError, match="cuda_graph is .*; it must be a list of batch sizes"):
        SAESession(TINY, "cuda", cuda_graph=sizes)


@pytest.mark.parametrize("k", [np.array(2), np.array([2.7]), np.array([2, 3]), np.array([], np.int64)])
def test_a_k_that_is_not_one_whole_number_is_refused_after_a_capture(machine, k):
    with SAESession(TINY, "cuda", cuda_graph=[4]) as sae:
        array = DeviceArray(machine, normal(4, 6))
        sae.run_graph("features", {"input": array, "k": np.array([2])})
        with pytest.raises(InputError, match="it must be an array with one whole number"):
            sae.run_graph("features", {"input": array, "k": k})
