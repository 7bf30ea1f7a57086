"""The memory of a simulated GPU is reused, bounded and freed."""

import gc
import threading

import numpy as np
import onnxruntime as ort
import pytest

from runtime import Ablate, SAEError, SAESession
from runtime.devices.start import Device, start_session
from tests.support.samples import HOOKS, TINY, normal
from tests.support.simulated_cuda import DeviceArray


@pytest.fixture
def sae(machine):
    with SAESession(TINY, "cuda") as opened:
        yield opened


def test_the_arena_grows_as_requested_up_to_the_limit(machine):
    with SAESession(TINY, "cuda", memory_limit=1 << 30) as sae:
        sae(normal(6))
        options = machine.sessions[-1].options
    assert (options["arena_extend_strategy"], options["gpu_mem_limit"]) == ("kSameAsRequested", str(1 << 30))


@pytest.mark.parametrize("on_device", [True, False])
def test_a_batch_is_split_into_blocks_that_fit(machine, expected, on_device):
    weights = expected.artifact.manifest.files["weights.safetensors"].bytes
    x = normal(11, 6)
    with SAESession(TINY, "cuda", memory_limit=weights + 2000) as sae:
        plan = sae.explain(tokens=11)
        assert max(plan.blocks) == 2000 // (4 * (4 * 16 + 8 * 6))
        cache = sae.compute(DeviceArray(machine, x) if on_device else x, HOOKS)
        assert machine.sessions[-1].runs == len(plan.blocks) > 1
        for name, wanted in expected.compute(x, HOOKS).items():
            assert np.array_equal(np.asarray(cache[name]), wanted)


def test_a_limit_too_low_for_one_token_is_refused(machine):
    with pytest.raises(SAEError, match="memory_limit is 100 bytes; the weights of .* alone take"):
        SAESession(TINY, "cuda", memory_limit=100)


def test_the_weights_are_on_the_gpu_once(sae, machine):
    x = normal(2, 6)
    sae(x)
    weights = {value.data_ptr() for value in sae._graphs.backend._weights.values().values()}
    assert weights <= set(machine.device)
    before = machine.allocations
    sae.encode(x)
    sae.encode(x)
    assert machine.allocations - before <= 2  # the input and the result, but no weights
    assert len(sae._graphs.loaded) == 2


def test_a_closed_session_frees_its_memory(machine):
    left = machine.left
    with SAESession(TINY, "cuda", cuda_graph=[2]) as sae:
        x = normal(2, 6)
        array = DeviceArray(machine, x)
        output = sae(array)
        wanted = output.numpy()
        stream = sae._graphs.backend.stream
    machine.sessions.clear()
    gc.collect()
    assert stream not in machine.streams
    assert np.array_equal(output.numpy(), wanted)  # a result outlives its session
    del output
    gc.collect()
    assert left - machine.left == array.keeps.nbytes


def test_running_out_of_memory_is_an_error(machine):
    with SAESession(TINY, "cuda") as sae:
        sae(normal(1, 6))
        machine.left = 0
        with pytest.raises(SAEError, match="out of memory"):
            sae(normal(1000, 6))


def test_calls_from_several_threads(sae, machine, expected):
    inputs = [normal(3, 6, seed=seed) for seed in range(16)]
    results = {}

    def run(i):
        results[i] = sae(inputs[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[i], expected(x)) for i, x in enumerate(inputs))


def test_repeated_calls_allocate_nothing(sae, machine):
    x, array = normal(6, 6), DeviceArray(machine, normal(6, 6))
    for given in (x, array):
        counts = []
        for _ in range(4):
            sae.steer(given, {1: Ablate()}, HOOKS)
            counts.append((machine.allocations, len(machine.pinned), len(machine.device)))
        assert counts[1] == counts[2] == counts[3]


def test_onnxruntime_uses_shared_parameters_by_name_and_ignores_the_rest():
    """Uses the real ONNX Runtime on the CPU. Parameters of another graph are not an error."""
    from safetensors.numpy import load_file

    weights = {**load_file(TINY / "weights.safetensors"), "of_another_graph": normal(3)}
    weights["b_dec"] = weights["b_dec"] + 1
    values = {name: ort.OrtValue.from_dlpack(array) for name, array in weights.items()}
    given = start_session(str(TINY / "decode.onnx"), Device("cpu"), weights=values)
    plain = start_session(str(TINY / "decode.onnx"), Device("cpu"))
    feeds = {"hook_sae_acts_post": np.abs(normal(2, 16))}
    assert np.allclose(given.run(None, feeds)[0], plain.run(None, feeds)[0] + 1, atol=1e-6)
