"""Sessions on a simulated GPU: the same results on the device of the input, precisions, and refused requests."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime import Ablate, InputError, ProviderError, SAESession, Tensor, verify
from runtime.artifact.contracts import PORTABLE
from runtime.devices.cuda.adding import read_adding_model
from tests.support.samples import HOOKS, TINY, normal
from tests.support.simulated_cuda import DeviceArray, simulate, taken_by


@pytest.fixture
def sae(machine):
    with SAESession(TINY, "cuda") as opened:
        yield opened


def test_numpy_in_numpy_out(sae, expected):
    x = normal(5, 6)
    output, cache = sae.run_with_cache(x)
    wanted, wanted_cache = expected.run_with_cache(x)
    assert np.array_equal(output, wanted)
    assert list(cache) == HOOKS
    assert all(isinstance(y, np.ndarray) and np.array_equal(y, wanted_cache[name]) for name, y in cache.items())


def test_results_of_device_arrays_stay_on_the_device(sae, machine, expected):
    x = normal(2, 3, 6)
    array = DeviceArray(machine, x)
    cache = sae.compute(array, HOOKS)
    assert cache["hook_sae_input"].pointer == array.pointer
    for name, y in cache.items():
        assert (type(y), y.device, y.dtype) == (Tensor, "cuda:0", "float32")
        assert np.array_equal(taken_by(machine, y), expected.compute(x, [name])[name])
    assert not machine.pinned


def test_encode_decode_steer_and_top_features_on_the_device(sae, machine, expected):
    x = normal(4, 6)
    array = DeviceArray(machine, x)
    acts, edits = expected.encode(x), {1: Ablate(), 3: Ablate()}
    assert np.array_equal(taken_by(machine, sae.encode(array)), acts)
    assert np.array_equal(taken_by(machine, sae.decode(DeviceArray(machine, acts))), expected.decode(acts))
    output, cache = sae.steer(array, edits, ["hook_sae_acts_post"])
    wanted, wanted_cache = expected.steer(x, edits)
    assert np.array_equal(taken_by(machine, output), wanted)
    assert np.array_equal(cache["hook_sae_acts_post"].numpy(), wanted_cache["hook_sae_acts_post"])
    found, wanted = sae.top_features(array, 5), expected.top_features(x, 5)
    assert np.array_equal(found.dense(16), wanted.dense(16))
    assert np.array_equal(found.lossless, wanted.lossless)
    assert (found.indices.shape, found.indices.dtype, found.values.device) == ((4, 5), "int64", "cuda:0")


def test_features_on_the_device_are_edited_in_the_graph(sae, machine, expected):
    x = normal(4, 6)
    edits = {2: Ablate()}
    _, cache = sae.steer(DeviceArray(machine, x), edits, "hook_sae_acts_post", return_output=False)
    _, wanted = expected.steer(x, edits, "hook_sae_acts_post", return_output=False)
    assert np.array_equal(np.asarray(cache["hook_sae_acts_post"]), wanted["hook_sae_acts_post"])


def test_hook_functions_get_tensors_on_the_device(sae, machine, expected):
    x = normal(4, 6)

    def double(tensor, hook):
        assert isinstance(tensor, Tensor)
        return DeviceArray(machine, 2 * tensor.numpy())

    for where in HOOKS[1:]:
        output = sae.run_with_hooks(DeviceArray(machine, x), [(where, double)])
        wanted = expected.run_with_hooks(x, [(where, lambda tensor, hook: 2 * tensor)])
        assert np.array_equal(taken_by(machine, output), wanted), where


def test_the_addition_has_the_options_of_the_session_and_no_threads_of_its_own(machine):
    with SAESession(TINY, "cuda", arena=False) as sae:
        sae.run_with_hooks(DeviceArray(machine, normal(4, 6)), [("hook_sae_recons", lambda tensor, hook: None)])
    (adder,) = [session for session in machine.sessions if session.model == read_adding_model("float32")]
    assert adder.session_options.intra_op_num_threads == 1
    assert not adder.session_options.enable_cpu_mem_arena


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_adding_model_is_the_one_that_onnx_builds(dtype):
    kind = getattr(TensorProto, {"float32": "FLOAT"}.get(dtype, dtype.upper()))
    x, y, z = (helper.make_tensor_value_info(name, kind, ["n"]) for name in "xyz")
    graph = helper.make_graph([helper.make_node("Add", ["x", "y"], ["z"])], "add", [x, y], [z])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model.SerializeToString() == read_adding_model(dtype)
    onnx.checker.check_model(onnx.load_from_string(read_adding_model(dtype)), full_check=True)


@pytest.mark.parametrize("cuda_graph", [(), (4,)])
def test_bfloat16_on_the_device_and_on_the_host(machine, half, cuda_graph):
    x = normal(4, 6).astype(ml_dtypes.bfloat16)
    with SAESession(half, "cpu") as session:
        wanted = session.compute(x, HOOKS)
        doubled = session.run_with_hooks(x, [("hook_sae_acts_post", lambda y, hook: y + y)])
        steered, _ = session.steer(x, {1: Ablate()})
    with SAESession(half, "cuda", cuda_graph=cuda_graph) as sae:
        for given in (x, DeviceArray(machine, x)):
            for name, y in sae.compute(given, HOOKS).items():
                assert np.array_equal(np.asarray(y), wanted[name]), name
                kind = np.ndarray if given is x else Tensor
                assert (type(y), str(y.dtype), np.asarray(y).dtype) == (kind, "bfloat16", ml_dtypes.bfloat16)
            assert np.array_equal(np.asarray(sae.steer(given, {1: Ablate()})[0]), steered)
        output = sae.run_with_hooks(
            DeviceArray(machine, x), [("hook_sae_acts_post", lambda y, hook: y.numpy() + y.numpy())]
        )
        assert np.array_equal(output.numpy(), doubled)
        with pytest.raises(InputError, match=r"x is \(4, 6\) float32; this SAE is bfloat16"):
            sae(normal(4, 6))


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_verify_passes_in_both_precisions(machine, precision):
    report = verify(TINY, "cuda", precision)
    assert report.failures == []
    assert {verdict.graph for verdict in report.verdicts} == set(PORTABLE)


def test_verify_of_half_precision_covers_the_portable_graphs(machine, half):
    report = verify(half, "cuda")
    assert report.failures == []
    assert {verdict.graph for verdict in report.verdicts} == set(PORTABLE)


@pytest.mark.parametrize(("precision", "flag"), [("float32", "0"), ("tf32", "1")])
def test_precision_sets_use_tf32(machine, precision, flag):
    with SAESession(TINY, "cuda", precision=precision) as sae:
        sae(normal(6))
        assert machine.sessions[-1].options["use_tf32"] == flag


def test_an_unknown_precision_is_refused(machine):
    with pytest.raises(InputError, match="precision is 'fp8'; it must be one of 'float32', 'tf32'"):
        SAESession(TINY, "cuda", precision="fp8")


def test_a_gpu_with_a_low_compute_capability_is_refused_before_anything_is_loaded(monkeypatch):
    machine = simulate(monkeypatch, capability=(7, 5))
    with pytest.raises(ProviderError, match=r"cuda:0 \(Simulated GPU\): tf32 needs compute capability 8.0"):
        SAESession(TINY, "cuda", precision="tf32")
    assert [session.model for session in machine.sessions if isinstance(session.model, str)] == []


def test_auto_is_the_cpu_if_the_gpu_does_not_support_the_dtype(monkeypatch, half):
    simulate(monkeypatch, capability=(7, 5))
    with pytest.raises(ProviderError, match="bfloat16 needs compute capability 8.0 or later, this GPU has 7.5"):
        SAESession(half, "cuda")
    with SAESession(half, "auto") as sae, SAESession(TINY, "auto") as other:
        assert (sae.device, other.device) == ("cpu", "cuda:0")


@pytest.mark.parametrize("more", [{"precision": "tf32"}, {"stream": 5}, {"cuda_graph": [1]}])
def test_options_of_gpus_are_refused_on_a_cpu(more):
    with pytest.raises(ProviderError, match=f"{next(iter(more))} can be set on a GPU only"):
        SAESession(TINY, "cpu", **more)


def test_a_device_array_needs_a_session_on_its_device(machine, monkeypatch):
    x = normal(2, 6)
    with SAESession(TINY, "cpu") as session, pytest.raises(InputError, match="is on cuda:0, this session on the CPU"):
        session(DeviceArray(machine, x))
    simulate(monkeypatch, gpus=2)
    with SAESession(TINY, "cuda:1") as session, pytest.raises(InputError, match="is on cuda:0, this session on cuda:1"):
        session(DeviceArray(machine, x))


def test_arrays_of_the_device_are_not_converted(sae, machine):
    with pytest.raises(InputError, match=r"x is \(2, 6\) float16; this SAE is float32"):
        sae(DeviceArray(machine, normal(2, 6).astype(np.float16)))
    with pytest.raises(InputError, match=r"shape \(2, 5\)"):
        sae(DeviceArray(machine, normal(2, 5)))
