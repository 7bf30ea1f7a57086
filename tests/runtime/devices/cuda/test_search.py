"""The search for the strongest features of many tokens on a simulated GPU finds what `features` finds."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from runtime import Ablate, InputError, ProviderError, SAEError, SAESession, verify
from runtime.devices.cuda.folding import FEWEST_TOKENS as FOLDED
from runtime.devices.cuda.search import BLOCK, FEATURES_PER_K, FEWEST_TOKENS, read_search_model
from runtime.devices.start import CUDA, ORT_ERRORS
from runtime.devices.tensorrt import backend
from saeexport import export
from saeexport.graphs.passes.tools.building import Nodes
from saeexport.graphs.passes.widen import widen
from saeexport.graphs.search import search_graph
from tests.support.samples import normal
from tests.support.simulated_cuda import DeviceArray, taken_by
from tests.support.zoo import sae_of

MANY, D_SAE = FEWEST_TOKENS[CUDA], 8 * BLOCK
MOST = D_SAE // FEATURES_PER_K
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def wide_sae(tmp_path_factory):
    """Return the artifact of an SAE whose features tie in fours: each of them is there four times, far apart."""
    folder = tmp_path_factory.mktemp("wide")

    def artifact(dtype="float32", architecture="standard", d_sae=D_SAE):
        path = folder / f"{architecture}-{dtype}-{d_sae}"
        if not path.exists():
            sae = sae_of(architecture, d_in=6, d_sae=d_sae)
            with torch.no_grad():
                for parameter in (sae.W_enc.T, sae.b_enc):
                    parameter.copy_(parameter[: len(parameter) // 4].repeat(4, *[1] * (parameter.ndim - 1)))
            export(sae, path, normal(64, 6), dtype=dtype)
        return path

    return artifact


def searches(machine):
    """Return the sessions of the search graph that were started."""
    models = [read_search_model(dtype) for dtype in DTYPES]
    return [session for session in machine.sessions if session.model in models]


def tokens(n, dtype="float32"):
    """Return tokens of which the first has NaN."""
    x = normal(n, 6)
    x[0, 0] = np.nan
    return x.astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_search_graph_is_the_one_that_saeexport_builds(dtype):
    assert ir.to_proto(search_graph(dtype)).SerializeToString() == read_search_model(dtype)
    onnx.checker.check_model(onnx.load_from_string(read_search_model(dtype)), full_check=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", ["members", "groups"])
def test_verify_judges_the_search(machine, wide_sae, monkeypatch, dtype, wrong):
    path = wide_sae(dtype)
    assert verify(path, "cuda").failures == []
    assert searches(machine)
    broken = search_graph(dtype)
    first, last = (node for node in broken.graph if node.op_type == "TopK")
    if wrong == "members":
        last.attributes["largest"] = ir.AttrInt64("largest", 0)
    else:  # search only one group, which is right for k = 1
        first.replace_input_with(1, Nodes(broken.graph).vector([1]))
    model = ir.to_proto(widen(broken) if dtype == "bfloat16" else broken).SerializeToString()
    monkeypatch.setattr("runtime.devices.cuda.backend.read_search_model", lambda dtype: model)
    failures = verify(path, "cuda").failures
    assert failures
    assert all(failure.startswith("features: ") for failure in failures)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, MOST])
@pytest.mark.parametrize("options", [{}, {"block_tokens": 50}, {"cuda_graph": [MANY]}, {"arena": False}], ids=str)
def test_it_finds_what_features_finds(machine, wide_sae, dtype, k, options):
    x = tokens(MANY, dtype)
    with SAESession(wide_sae(dtype), "cpu", graphs="portable" if dtype == "float32" else "auto") as cpu:
        wanted, acts = cpu.top_features(x, k), cpu.encode(x)
    with SAESession(wide_sae(dtype), "cuda", **options) as sae:
        on_host = sae.top_features(x, k)
        on_device = sae.top_features(DeviceArray(machine, x), k)
        again = sae.top_features(DeviceArray(machine, x[::-1].copy()), k)
        found = [tuple(taken_by(machine, tensor) for tensor in result) for result in (on_device, again)]
    assert len(searches(machine)) == 1
    for indices, values, l0 in (on_host, found[0], [array[::-1] for array in found[1]]):
        assert (indices.dtype, values.dtype, l0.dtype) == (np.int64, DTYPES[dtype], np.int64)
        assert np.array_equal(values.astype(np.float32), wanted.values.astype(np.float32), equal_nan=True)
        assert np.array_equal(l0, wanted.l0)
        assert np.array_equal(indices == -1, wanted.indices == -1)
        for token in range(1, MANY):  # features that tie may come in another order
            at, on = indices[token], indices[token] >= 0
            assert np.array_equal(acts[token][at[on]], values[token][on])
            assert len(set(at[on])) == on.sum()


def test_few_tokens_and_what_the_graph_cannot_find_are_left_to_features(machine, wide_sae):
    with SAESession(wide_sae(), "cuda") as sae:
        sae.top_features(normal(MANY - 1, 6), 2)
        sae.top_features(normal(MANY, 6), MOST + 1)
        assert not searches(machine)
        sae.top_features(normal(MANY, 6), MOST)
        assert searches(machine)
    machine.sessions.clear()
    for other in ({"d_sae": D_SAE + BLOCK // 2}, {"architecture": "abstopk"}):  # its activations may be negative
        with SAESession(wide_sae(**other), "cuda") as sae, SAESession(wide_sae(**other), "cpu") as cpu:
            x = normal(MANY, 6)
            assert np.array_equal(sae.top_features(x, 2).values, cpu.top_features(x, 2).values)
    assert not searches(machine)


def test_the_search_has_the_options_of_the_session_and_no_threads_of_its_own(machine, wide_sae):
    with SAESession(wide_sae(), "cuda", arena=False) as sae:
        sae.top_features(normal(MANY, 6), 2)
    (search,) = searches(machine)
    assert search.session_options.intra_op_num_threads == 1
    assert not search.session_options.enable_cpu_mem_arena


def test_edited_activations_are_searched_too(machine, wide_sae):
    x = normal(MANY, 6)
    with SAESession(wide_sae(), "cuda") as sae, SAESession(wide_sae(), "cpu") as cpu:
        strongest = int(cpu.top_features(x, 1).indices[0, 0])
        for session in (sae, cpu):
            with session.steering({strongest: Ablate()}):
                assert strongest not in session.top_features(x, MOST).indices


def test_the_inputs_are_checked_as_for_features(machine, wide_sae):
    with SAESession(wide_sae(), "cuda") as sae:
        for k in (0, D_SAE + 1):
            with pytest.raises(InputError, match="k is"):
                sae.top_features(normal(MANY, 6), k)
        assert sae.top_features(normal(0, 6), 3).indices.shape == (0, 3)


def test_tensorrt_encodes_and_cuda_searches(machine, wide_sae, monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "tensorrt_version", lambda: "10.9.0")
    monkeypatch.setattr(backend, "driver", lambda: machine)
    x = normal(5, 6)
    with SAESession(wide_sae(), "cpu") as cpu:
        wanted = cpu.top_features(x, MOST)
    with SAESession(wide_sae(), "tensorrt", precision="tf32", cache=tmp_path) as sae:
        found = sae.top_features(x, MOST)
        assert np.array_equal(found.values, wanted.values)
        assert np.array_equal(found.l0, wanted.l0)
        assert sae.top_features(x[:0], MOST).indices.shape == (0, MOST)
        (search,), (encoder,) = searches(machine), [s for s in machine.sessions if isinstance(s.model, str)]
        assert encoder.model.endswith("encode.onnx")
        assert search.provider == "CUDAExecutionProvider"
        assert encoder.options["user_compute_stream"] == search.options["user_compute_stream"]
        with pytest.raises(ProviderError, match=r"features.onnx takes k, .* k at most d_sae / 64"):
            sae.top_features(x, MOST + 1)


def test_a_search_that_does_not_start_is_an_error_of_this_package(machine, wide_sae, monkeypatch):
    def start(model, *more, real=ort.InferenceSession, **options):
        if model == read_search_model("float32"):
            raise ORT_ERRORS[0]("no memory is left on the device")
        return real(model, *more, **options)

    monkeypatch.setattr(ort, "InferenceSession", start)
    with SAESession(wide_sae(), "cuda") as sae, pytest.raises(SAEError, match="cannot run 'features' on cuda:0"):
        sae.top_features(normal(MANY, 6), 2)


@pytest.mark.parametrize("arena", [True, False])
def test_on_a_callers_stream_nothing_is_waited_for(machine, wide_sae, arena):
    x = normal(2 * FOLDED, 6).astype(np.float16)
    with SAESession(wide_sae("float16"), "cpu") as cpu:
        wanted = cpu.top_features(x, MOST)
    mine, theirs = machine.card(0).stream(), machine.card(0).stream()
    with SAESession(wide_sae("float16"), "cuda", stream=mine, arena=arena) as sae:
        sae.top_features(DeviceArray(machine, x, theirs), MOST)  # makes the sessions and the matrix
        waits = machine.waits
        results = [sae.top_features(DeviceArray(machine, given, theirs), MOST) for given in (x, x[::-1], x[:FOLDED])]
        assert machine.waits == waits
        for found, of in zip(results, (slice(None), slice(None, None, -1), slice(FOLDED)), strict=True):
            assert np.array_equal(taken_by(machine, found.values, theirs), wanted.values[of])
            assert np.array_equal(taken_by(machine, found.l0), wanted.l0[of])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sums_that_overflow_are_no_nan(machine, wide_sae, dtype):
    """The sum of the activations shows NaN, and is infinite for activations that are large."""
    largest = np.finfo(DTYPES[dtype]).max
    x = normal(MANY, 6).astype(DTYPES[dtype])
    x[:4] = [[np.inf] * 6, [0] * 6, [largest] * 6, [largest / 64] * 6]
    with SAESession(wide_sae(dtype), "cpu", graphs="portable" if dtype == "float32" else "auto") as cpu:
        wanted = cpu.top_features(x, MOST)
    with SAESession(wide_sae(dtype), "cuda") as sae:
        found = sae.top_features(x, MOST)
    assert searches(machine)
    assert np.array_equal(found.values, wanted.values, equal_nan=True)
    assert np.array_equal(found.l0, wanted.l0)
    assert np.array_equal(found.indices == -1, wanted.indices == -1)
