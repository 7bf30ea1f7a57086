"""The order of streams. The simulated GPU runs queued work only when something waits for it."""

import gc

import numpy as np
import pytest

from runtime import InputError, SAESession
from tests.support.samples import TINY, normal
from tests.support.simulated_cuda import DeviceArray, seen, taken_by


@pytest.fixture
def sae(machine):
    with SAESession(TINY, "cuda") as opened:
        yield opened


def test_on_a_callers_stream_a_call_returns_at_once(machine, expected):
    stream = machine.card(0).stream()
    with SAESession(TINY, "cuda", stream=stream) as sae:
        x = normal(3, 6)
        array = DeviceArray(machine, np.zeros_like(x), stream)
        array.write(x)  # queued, like the last layer of a model
        output = sae(array)
        assert machine.streams[stream].queue
        assert machine.sessions[-1].options["user_compute_stream"] == str(stream)
        assert np.array_equal(taken_by(machine, output, stream), expected(x))
    assert stream in machine.streams  # it belongs to the caller


def test_work_queued_on_another_stream_is_waited_for(machine, expected):
    mine, theirs = machine.card(0).stream(), machine.card(0).stream()
    with SAESession(TINY, "cuda", stream=mine) as sae:
        sae(DeviceArray(machine, normal(3, 6), mine))  # loading waits
        x = normal(3, 6, seed=2)
        output = sae(DeviceArray(machine, x, theirs))
        assert machine.streams[theirs].queue
        machine.streams[mine].run()
        assert np.array_equal(output.numpy(), expected(x))


def test_a_reader_on_another_stream_sees_the_result(machine, expected):
    mine, theirs = machine.card(0).stream(), machine.card(0).stream()
    with SAESession(TINY, "cuda", stream=mine) as sae:
        x = normal(3, 6)
        output = sae(DeviceArray(machine, x, mine))
        assert np.array_equal(taken_by(machine, output, theirs), expected(x))


def test_memory_is_not_reused_before_its_readers_are_done(machine, expected):
    mine, theirs = machine.card(0).stream(), machine.card(0).stream()
    with SAESession(TINY, "cuda", stream=mine) as sae:
        first, second = normal(3, 6), normal(3, 6, seed=2)
        output = sae(DeviceArray(machine, first, mine))
        output.__dlpack__(stream=theirs)
        pointer, read = output.pointer, []
        machine.streams[theirs].queue.append(lambda: read.append(np.copy(seen(np.dtype(np.float32), (3, 6), pointer))))
        del output
        gc.collect()
        again = sae(DeviceArray(machine, second, mine))
        assert again.pointer == pointer  # the same memory, and the reader has not read yet
        assert not read
        assert np.array_equal(again.numpy(), expected(second))
        assert np.array_equal(read[0], expected(first))


def test_work_of_the_caller_on_its_stream_is_waited_for_after_a_call_that_waits(machine):
    mine, theirs = machine.card(0).stream(), machine.card(0).stream()
    with SAESession(TINY, "cuda", stream=mine) as sae:
        x = DeviceArray(machine, normal(3, 6), mine)
        passed_on = sae.compute(x, ["hook_sae_input"])["hook_sae_input"]
        sae(normal(3, 6))
        x.write(normal(3, 6, seed=2))
        assert np.array_equal(taken_by(machine, passed_on, theirs), normal(3, 6, seed=2))


def test_host_results_are_complete_on_a_callers_stream_too(machine, expected):
    with SAESession(TINY, "cuda", stream=machine.card(0).stream()) as sae:
        x = normal(3, 6)
        assert np.array_equal(sae(x), expected(x))


def test_host_transfers_are_pinned_and_their_memory_is_reused(sae, machine, expected):
    counts = []
    for seed in range(4):
        x = normal(50, 6, seed=seed)
        assert np.array_equal(sae(x), expected(x))
        counts.append((len(machine.pinned), machine.allocations))
    assert counts[1] == counts[3]
    assert any(start <= sae(x).ctypes.data < end for start, end in machine.pinned)


@pytest.mark.parametrize("stream", ["0x7f", True, 1.5, object()])
def test_an_object_that_is_not_a_stream_is_refused(machine, stream):
    with pytest.raises(InputError, match="it must be a CUDA stream of PyTorch or CuPy, or its address"):
        SAESession(TINY, "cuda", stream=stream)


def test_the_default_stream_of_torch_is_the_legacy_one(machine, expected):
    with SAESession(TINY, "cuda", stream=type("Torch", (), {"cuda_stream": 0})()) as sae:
        x = normal(6)
        assert np.array_equal(sae(x), expected(x))
        assert machine.sessions[-1].options["user_compute_stream"] == "1"


def test_a_stream_that_the_default_stream_waits_for_cannot_capture(machine):
    blocking = machine.card(0).stream()
    machine.streams[blocking].blocking = True  # as CuPy makes them
    for stream in (0, blocking):
        SAESession(TINY, "cuda", stream=stream).close()
        with pytest.raises(InputError, match="or waits for it, and cannot capture CUDA graphs"):
            SAESession(TINY, "cuda", stream=stream, cuda_graph=[1])


def test_streams_of_other_libraries(machine, expected):
    address = machine.card(0).stream()
    kinds = [
        type("Torch", (), {"cuda_stream": address})(),
        type("CuPy", (), {"ptr": address})(),
        type("Core", (), {"__cuda_stream__": lambda self: (0, address)})(),
    ]
    for stream in kinds:
        with SAESession(TINY, "cuda", stream=stream) as sae:
            sae(normal(6))
            assert machine.sessions[-1].options["user_compute_stream"] == str(address)
