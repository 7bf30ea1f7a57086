"""Tests that need a GPU. `make gpu` runs them and does not let any be skipped."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

import saeexport
from runtime import Ablate, SAESession, verify
from runtime.arrays import dlpack
from runtime.arrays.dtypes import DTYPES
from runtime.arrays.exchange import ATTRIBUTE, exchange_of
from runtime.artifact.contracts import PORTABLE
from runtime.devices.cuda.folding import FEWEST_TOKENS as FOLDED
from runtime.devices.cuda.search import FEATURES_PER_K
from runtime.devices.cuda.search import FEWEST_TOKENS as SEARCHED
from runtime.devices.start import CUDA
from saeexport import export
from tests.support.samples import HOOKS, MINILM, TINY, make_sae, normal
from tests.support.zoo import CASES, sae_of

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="module")
def sae():
    with SAESession(MINILM, "cuda") as opened:
        yield opened


@pytest.fixture(scope="module")
def golden():
    from runtime import read_artifact
    from runtime.parity.golden import load_golden

    return load_golden(read_artifact(MINILM)).original["hook_sae_input"]


def on_gpu(array):
    return torch.from_numpy(array).cuda()


@pytest.mark.parametrize("path", [TINY, MINILM], ids=["tiny", "minilm"])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_parity_on_cuda(path, precision):
    report = verify(path, "cuda", precision)
    assert "cuda:0" in report.title
    assert report.failures == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity_of_every_architecture_and_dtype(case, dtype, tmp_path):
    architecture, more = case
    export(sae_of(architecture, **more), tmp_path / "sae", dtype=dtype)
    report = verify(tmp_path / "sae", "cuda")
    assert report.failures == []
    assert {verdict.graph for verdict in report.verdicts} == set(PORTABLE)


def test_parity_with_the_original_on_the_gpu(golden):
    saeexport.assert_parity(MINILM, saeexport.load(MINILM).cuda(), golden, "cuda")


def test_every_node_is_on_cuda(tmp_path):
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(TINY / "model.onnx", options, providers=["CUDAExecutionProvider"])
    session.run(None, {"input": normal(3, 6)})
    events = json.loads(Path(session.end_profiling()).read_text())
    providers = {event["args"]["provider"] for event in events if "provider" in event.get("args", {})}
    assert providers == {"CUDAExecutionProvider"}


def test_torch_tensors_are_used_in_place_and_results_stay_on_the_gpu(sae, golden):
    x = on_gpu(golden)
    cache = sae.compute(x, HOOKS)
    expected = sae.compute(golden, HOOKS)
    assert cache["hook_sae_input"].pointer == x.data_ptr()
    for name, y in cache.items():
        tensor = torch.from_dlpack(y)
        assert (tensor.is_cuda, tensor.data_ptr()) == (True, y.pointer)
        assert np.array_equal(tensor.cpu().numpy(), expected[name])


def test_bfloat16_tensors_go_in_and_out(tmp_path):
    original = make_sae(d_in=64, d_sae=256).bfloat16()
    export(original, tmp_path / "sae")
    with SAESession(tmp_path / "sae", "cuda") as session:
        x = torch.randn(7, 64, device="cuda").bfloat16()
        y = torch.from_dlpack(session(x))
        assert y.dtype == torch.bfloat16
        assert torch.allclose(y.float(), original.cuda()(x).float(), atol=0.05, rtol=0.05)


def test_queued_work_is_waited_for(golden):
    stream = torch.cuda.Stream()
    with SAESession(MINILM, "cuda", stream=stream) as session, torch.cuda.stream(stream):
        x = on_gpu(golden)
        expected = session(x).numpy()
        for _ in range(5):
            late = torch.zeros_like(x)
            torch.cuda._sleep(50_000_000)  # about 30 ms
            late.copy_(x)
            output = session(late)
            assert not stream.query()  # the call did not wait
            assert np.array_equal((torch.from_dlpack(output) + 0).cpu().numpy(), expected)


@pytest.fixture(params=[torch.cuda.default_stream, torch.cuda.Stream], ids=["the default stream", "another stream"])
def current(request):
    """The stream on which PyTorch works."""
    with torch.cuda.stream(request.param()):
        yield torch.cuda.current_stream()
    torch.cuda.synchronize()


def test_work_queued_on_pytorchs_stream_is_waited_for(sae, golden, current):
    expected = sae(golden)
    x, late = on_gpu(golden), torch.zeros(golden.shape, device="cuda")
    torch.cuda._sleep(50_000_000)
    late.copy_(x)
    assert np.array_equal(torch.from_dlpack(sae(late)).cpu().numpy(), expected)


@pytest.mark.skipif(ATTRIBUTE not in vars(torch.Tensor), reason="this PyTorch has no such functions")
def test_pytorchs_functions_tell_its_current_stream(current):
    x = torch.arange(24.0, device="cuda").reshape(2, 3, 4)[1:]
    imported, stream = exchange_of(x).import_array(x, 0)
    assert stream == (current.cuda_stream or dlpack.LEGACY_STREAM)
    assert (imported.pointer, imported.shape, imported.dtype) == (x.data_ptr(), (1, 3, 4), "float32")
    assert (imported.device, imported.contiguous) == ((dlpack.CUDA, 0), True)


def test_memory_waits_for_a_reader_on_another_stream(golden):
    mine, theirs = torch.cuda.Stream(), torch.cuda.Stream()
    with SAESession(MINILM, "cuda", stream=mine) as session:
        expected, others = session(golden), golden[::-1].copy()
        with torch.cuda.stream(mine):
            output = session(on_gpu(golden))
        with torch.cuda.stream(theirs):
            tensor = torch.from_dlpack(output)
            torch.cuda._sleep(50_000_000)
            copy = tensor.clone()
        del output, tensor
        with torch.cuda.stream(mine):
            session(on_gpu(others))
        theirs.synchronize()  # the copy is read on another stream
        assert np.array_equal(copy.cpu().numpy(), expected)


def test_cuda_graphs_follow_their_inputs(golden):
    warnings.filterwarnings("error", message=".*without a CUDA graph")
    with SAESession(MINILM, "cuda", cuda_graph=[1, 8]) as session, SAESession(MINILM, "cuda") as plain:
        for tokens in (1, 8, 3, 1, 8, 3):
            for start in (0, 10):
                x = golden[start : start + tokens]
                expected = plain.compute(x, HOOKS)
                for given in (x, on_gpu(x)):
                    for name, y in session.compute(given, HOOKS).items():
                        assert np.array_equal(np.asarray(y), expected[name]), (tokens, name)
            assert np.array_equal(session.steer(x, {3: Ablate()})[0], plain.steer(x, {3: Ablate()})[0])
            assert np.array_equal(session.top_features(x, 5).dense(3072), plain.top_features(x, 5).dense(3072))


DROPPED = """
import sys, threading, time
import torch
from runtime import SAESession
from runtime.devices.cuda.driver import driver

path, way = sys.argv[1:]
taken = threading.Event()


def take():
    with driver().card(0).exclusive():
        taken.set()
        time.sleep(0.01)


stream = torch.cuda.Stream()
with torch.cuda.stream(stream):
    for _ in range(5):
        sae = SAESession(path, "cuda", precision="tf32", stream=stream)
        x = torch.randn(4096, sae.cfg.d_in, device="cuda")
        for call in (sae, sae.encode, lambda x: sae.top_features(x, 4)):
            call(x)
        torch.cuda._sleep(3_000_000_000 if way == "at exit" else 50_000_000)  # about 2 s: Python ends slowly; or 30 ms
        for call in (sae, sae.encode, lambda x: sae.top_features(x, 4)):
            call(x)
        if way == "at exit":
            sys.exit()
        if way == "while another thread has the GPU":
            taken.clear()
            threading.Thread(target=take).start()
            taken.wait()
        del sae, call
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("way", ["in its thread", "while another thread has the GPU", "at exit"])
def test_a_session_may_be_dropped_while_its_work_is_queued(way):
    command = [sys.executable, "-c", DROPPED, str(MINILM), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def memory_of_two_more_graphs(path, d_in):
    """Return the bytes that the graphs `encode` and `steer` take on the GPU after `model` was run."""
    with SAESession(path, "cuda") as session:
        session(normal(1, d_in))
        before, _ = torch.cuda.mem_get_info()
        session.encode(normal(1, d_in))
        session.steer(normal(1, d_in), {0: Ablate()})
        after, _ = torch.cuda.mem_get_info()
    return before - after


def test_the_weights_are_on_the_gpu_once(tmp_path):
    export(make_sae(d_in=1024, d_sae=65536), tmp_path / "large")
    export(make_sae(d_in=1024, d_sae=64), tmp_path / "small")
    weights = 2 * 4 * 1024 * 65536  # 537 MB
    # Whatever its size, a session takes the workspaces of cuBLAS: 64 MiB on a Hopper GPU.
    own = memory_of_two_more_graphs(tmp_path / "large", 1024) - memory_of_two_more_graphs(tmp_path / "small", 1024)
    assert own < weights / 16


def test_a_memory_limit_splits_a_large_batch(golden):
    many = np.tile(golden, (400, 1))
    with SAESession(MINILM, "cuda", memory_limit=64 << 20) as session:
        assert len(session.explain(tokens=len(many)).blocks) > 1
        assert np.allclose(session(many)[: len(golden)], session(golden), atol=1e-5)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return the artifact of an SAE that is wide enough for the search, in a dtype."""

    def artifact(dtype):
        path = tmp_path_factory.getbasetemp() / f"wide-{dtype}"
        if not path.exists():
            export(make_sae(d_in=64, d_sae=8192), path, normal(64, 64), dtype=dtype)
        return path

    return artifact


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [3, SEARCHED[CUDA], 2 * FOLDED])
def test_the_strongest_features_are_those_of_the_encoder(wide, dtype, tokens):
    x = on_gpu(normal(tokens, 64)).to(getattr(torch, dtype))
    x[0, 0] = torch.nan
    with SAESession(wide(dtype), "cuda") as sae:
        acts = torch.from_dlpack(sae.encode(x))[1:]
        for k in (1, 64, 8192 // FEATURES_PER_K):
            indices, values, l0 = (torch.from_dlpack(tensor) for tensor in sae.top_features(x, k))
            assert (indices[0] == -1).all()
            assert values[0].isnan().all()
            assert l0[0] == -1
            indices, values, l0 = indices[1:], values[1:], l0[1:]
            assert torch.equal(values, acts.float().topk(k).values.to(values.dtype))
            assert torch.equal(values, acts.gather(1, indices.clamp(min=0)).where(indices >= 0, 0))
            assert torch.equal(l0, (acts != 0).sum(1))


@pytest.mark.parametrize(("dtype", "precision", "near"), [
    ("float32", "tf32", 2e-3), ("float16", "float32", 2e-3), ("bfloat16", "float32", 2e-2),
])  # fmt: skip
def test_large_batches_give_what_small_ones_give(wide, dtype, precision, near):
    x = on_gpu(normal(FOLDED, 64)).to(getattr(torch, dtype))
    with SAESession(wide(dtype), "cuda", precision=precision) as sae:
        large = {name: torch.from_dlpack(tensor).float() for name, tensor in sae.compute(x, HOOKS).items()}
        folded = [graph.session for graph in sae._graphs.backend._folded._graphs.values()]
        assert all(folded), "where the folded session does not start, the graph itself runs"
        assert bool(folded) == hasattr(ort.OrtValue, "from_dlpack")
        parts = [sae.compute(part, HOOKS) for part in x.split(FOLDED // 4)]
        for name in HOOKS:
            small = torch.cat([torch.from_dlpack(part[name]).float() for part in parts])
            assert (large[name] - small).norm() <= near * small.norm(), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 300])
def test_watched_features_are_those_of_the_encoder(wide, dtype, tokens):
    x, ids = normal(tokens, 64), [8000, 3, 77, 3]
    array = x.astype(DTYPES[dtype].numpy)
    tensor = on_gpu(x).to(getattr(torch, dtype))
    with SAESession(wide(dtype), "cuda") as sae:
        watch, acts = sae.watch(ids), np.asarray(sae.encode(array)).astype(np.float32)
        for found in (watch(array), torch.from_dlpack(watch(tensor)).float().cpu().numpy()):
            assert np.allclose(found.astype(np.float32), acts[:, ids], rtol=0.01, atol=0.02)
