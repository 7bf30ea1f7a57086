"""bfloat16 on the host: numpy arrays of ml_dtypes in and out, and the tensors of PyTorch in."""

import ml_dtypes
import numpy as np
import pytest
import torch

from runtime import Ablate, InputError, Intervention, SAESession
from tests.support.samples import HOOKS, normal

POST, OUTPUT = "hook_sae_acts_post", "hook_sae_output"


@pytest.fixture(scope="module")
def sae(half):
    with SAESession(half, "cpu") as session:
        yield session


@pytest.fixture
def x():
    return normal(5, 6).astype(ml_dtypes.bfloat16)


def is_bfloat16(*arrays):
    return all(type(array) is np.ndarray and array.dtype == ml_dtypes.bfloat16 for array in arrays)


def test_every_result_is_a_numpy_array(sae, x):
    cache = sae.compute(x, HOOKS)
    assert is_bfloat16(*cache.values(), sae(x), sae.encode(x), sae.decode(sae.encode(x)), sae.top_features(x, 3).values)
    assert np.array_equal(sae(x), cache[OUTPUT])
    assert np.array_equal(sae.top_features(x, 16).dense(16), cache[POST])
    assert is_bfloat16(sae(x[:0]))


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.T.copy().T, lambda x: x[::-1]])
def test_arrays_of_any_layout(sae, x, view):
    given = view(x)
    assert np.array_equal(sae(given), sae(np.ascontiguousarray(given)))


def test_tensors_of_pytorch_on_the_cpu_are_read_in_place(sae, x):
    tensor = torch.from_numpy(x.astype(np.float32)).bfloat16()
    output, cache = sae.run_with_cache(tensor)
    assert is_bfloat16(output)
    assert cache["hook_sae_input"].ctypes.data == tensor.data_ptr()
    assert np.array_equal(output, sae(x))


def test_blocks_are_computed_as_one_batch(half, x):
    many = np.tile(x, (20, 1))
    with SAESession(half, "cpu", block_tokens=7) as blocks, SAESession(half, "cpu") as whole:
        assert np.allclose(*(session(many).astype(np.float32) for session in (blocks, whole)), rtol=2**-7, atol=1e-6)


def test_hook_functions_compute_in_bfloat16(sae, x):
    assert is_bfloat16(sae.run_with_hooks(x, [(POST, lambda acts, hook: acts * 2)]))
    with pytest.raises(InputError, match=r"returned \(5, 16\) float32; it must return \(5, 16\) bfloat16"):
        sae.run_with_hooks(x, [(POST, lambda acts, hook: acts.astype(np.float32))])


def test_an_intervention_is_the_same_in_the_graph_and_as_a_function(sae, x):
    edit = Intervention.of({1: Ablate()})
    steered, cache = sae.steer(x, edit)
    assert is_bfloat16(steered, cache[POST])
    assert np.array_equal(cache[POST], edit(sae.encode(x)))
    hooked = sae.run_with_hooks(x, [(POST, edit)])
    assert np.allclose(hooked.astype(np.float32), steered.astype(np.float32), atol=0.05)


def test_other_dtypes_are_refused_with_the_conversion(sae):
    with pytest.raises(InputError, match=r"x is \(4, 6\) float32; this SAE is bfloat16. Pass x.astype\(ml_dtypes.bf"):
        sae(normal(4, 6))
