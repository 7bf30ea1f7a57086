"""CUDA graphs on a simulated GPU: captured once per shape, and correct for every input."""

import numpy as np
import pytest

from runtime import Ablate, InputError, SAEError, SAESession
from runtime.devices.cuda.replay import RUNS_BEFORE
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
        assert machine.launches == [1, 2, 1, 2]
        assert machine.sessions[-1].runs == 2 * (RUNS_BEFORE + 1) + 2
        for y, wanted in kept:  # a later replay does not change earlier results
            assert np.array_equal(np.asarray(y), wanted)


def test_interventions_and_features_are_captured_by_their_shapes(machine, expected):
    with SAESession(TINY, "cuda", cuda_graph=[2]) as sae:
        x = normal(2, 6)
        for edits in ({1: Ablate()}, {2: Ablate()}, {1: Ablate(), 2: Ablate()}):
            assert np.array_equal(sae.steer(x, edits)[0], expected.steer(x, edits)[0])
        assert machine.launches == [1, 1, 2]
        for k in (3, 3, 4):
            assert np.array_equal(sae.top_features(x, k).indices, expected.top_features(x, k).indices)
        assert machine.launches == [1, 1, 2, 3, 3, 4]


def test_captures_are_bounded(machine, expected, monkeypatch):
    monkeypatch.setattr("runtime.devices.cuda.replay.MAX_CAPTURES", 2)
    with SAESession(TINY, "cuda", cuda_graph=[1, 2, 3]) as sae:
        for tokens in (1, 2, 3, 3, 1):
            x = normal(tokens, 6, seed=tokens)
            assert np.array_equal(sae(x), expected(x))
        assert machine.launches == [1, 2, 1]


def test_a_released_graph_is_captured_again(machine, expected):
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        x = normal(1, 6)
        sae.compute(x, ["hook_sae_output"])
        first = machine.sessions[-1]
        sae.release("model")
        assert np.array_equal(sae(x), expected(x))
        assert machine.sessions[-1] is not first
        assert machine.launches == [1, 2]
        assert machine.graphs[0] is None  # it was destroyed


def test_graphs_are_destroyed_with_their_session(machine):
    with SAESession(TINY, "cuda", cuda_graph=[1, 2]) as sae:
        sae(normal(1, 6))
        sae(normal(2, 6))
        assert None not in machine.graphs
    assert machine.graphs == [None, None]


def test_a_capture_that_fails_is_an_error_and_made_again(machine, expected, monkeypatch):
    real = machine.card(0).capture

    def fail(stream, queue):
        raise SAEError("cuStreamEndCapture of the NVIDIA driver: error 901, the capture was invalidated.")

    x = normal(1, 6)
    with SAESession(TINY, "cuda", cuda_graph=[1]) as sae:
        monkeypatch.setattr(machine.card(0), "capture", fail)
        with pytest.raises(SAEError, match="error 901"):
            sae(x)
        monkeypatch.setattr(machine.card(0), "capture", real)
        assert np.array_equal(sae(x), expected(x))
        assert machine.launches == [1]


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
