"""On a simulated GPU, large batches run with the bias in the product of the encoder, and give the same results."""

import gc
import shutil

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest

from runtime import Ablate, SAESession
from runtime.artifact.folding import BIAS_ROWS, MATRIX
from runtime.devices.cuda.folding import FEWEST_TOKENS, bias_rows
from runtime.devices.start import ORT_ERRORS
from runtime.errors import SAEError
from saeexport import export
from tests.support.samples import HOOKS, normal
from tests.support.simulated_cuda import Card, DeviceArray, taken_by
from tests.support.zoo import sae_of

KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TF32 = {"float32": "tf32", "float16": "float32", "bfloat16": "float32"}


def folded(machine):
    return [s for s in machine.sessions if isinstance(s.model, bytes) and MATRIX.encode() in s.model]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"block_tokens": 2 * FEWEST_TOKENS - 1}, {"cuda_graph": [3]}, {"arena": False}], ids=str
)
def test_large_batches_give_what_the_graphs_give(machine, artifact_of, dtype, options):
    path = artifact_of("standard", dtype).path
    x = normal(2 * FEWEST_TOKENS, 10).astype(KINDS[dtype])
    x[1, 2] = np.nan
    with SAESession(path, "cpu") as cpu:
        wanted, steered = cpu.compute(x, HOOKS), cpu.steer(x, {3: Ablate()})[0]
    with SAESession(path, "cuda", precision=TF32[dtype], **options) as sae:
        few = sae.compute(x[:3], HOOKS)
        assert not folded(machine)
        on_host, on_device = sae.compute(x, HOOKS), sae.compute(DeviceArray(machine, x), HOOKS)
        again = sae.compute(x[::-1].copy(), HOOKS)
        edited = sae.steer(x, {3: Ablate()})[0]
        on_device = {name: taken_by(machine, tensor) for name, tensor in on_device.items()}
    assert len(folded(machine)) == 2  # of `model` and `steer`
    for name in HOOKS:
        for found in (on_host[name], on_device[name], again[name][::-1]):
            assert_near(found, wanted[name], dtype)
        assert_near(few[name], wanted[name][:3], dtype)
    assert_near(edited, steered, dtype)


def assert_near(found, wanted, dtype):
    found, wanted = (array.astype(np.float32) for array in (found, wanted))
    # Results that are rounded once and twice differ by two roundings, and so do the values that they are sums of.
    rounding, size = float(ml_dtypes.finfo(KINDS[dtype]).eps), np.nanmax(np.abs(wanted))
    assert np.allclose(found, wanted, rtol=2 * rounding, atol=4 * rounding * size, equal_nan=True)


def test_the_encoder_of_the_search_is_folded_too(machine, tmp_path):
    export(sae_of("standard", d_in=6, d_sae=1024), tmp_path / "sae", normal(64, 6), dtype="float16")
    x = normal(FEWEST_TOKENS, 6).astype(np.float16)
    with SAESession(tmp_path / "sae", "cpu") as cpu, SAESession(tmp_path / "sae", "cuda") as sae:
        found, wanted = sae.top_features(x, 4), cpu.top_features(x, 4)
        assert_near(found.values, wanted.values, "float16")
        assert len(folded(machine)) == 1


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("standard", {}), ("standard", {"precision": "tf32", "memory_limit": 1 << 30}), ("gated", {"precision": "tf32"})],
)  # the bias of a gated SAE is added to the product twice, once for each path
def test_what_is_not_folded(machine, artifact_of, architecture, options):
    with SAESession(artifact_of(architecture).path, "cuda", **options) as sae:
        sae(normal(FEWEST_TOKENS, 10))
    assert not folded(machine)


def test_a_decoder_that_is_wide_is_not_folded(machine, tmp_path):
    export(sae_of("standard", d_in=16, d_sae=8), tmp_path / "narrow", normal(64, 16))
    export(sae_of("transcoder", d_in=8, d_sae=16, d_out=32), tmp_path / "transcoder", normal(64, 8))
    with SAESession(tmp_path / "narrow", "cuda", precision="tf32") as sae:
        sae(normal(FEWEST_TOKENS, 16))
    with SAESession(tmp_path / "transcoder", "cuda", precision="tf32") as sae:
        sae.decode(normal(FEWEST_TOKENS, 16))
        assert not folded(machine)
        sae(normal(FEWEST_TOKENS, 8))
    assert len(folded(machine)) == 1


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_few_tokens_are_not_folded(machine, artifact_of, architecture):
    with SAESession(artifact_of(architecture).path, "cuda", precision="tf32") as sae:
        sae(normal(FEWEST_TOKENS - 1, 10))
        assert not folded(machine)
        sae(normal(FEWEST_TOKENS, 10))
        assert folded(machine)


def test_a_bias_is_exactly_the_sum_of_values_of_tf32():
    bias = np.concatenate([normal(1000), [0, -0.0, 1e-30, 3e38, np.inf, -np.inf, np.nan]]).astype(np.float32)
    rows = bias_rows(bias, 3)
    assert rows.shape == (BIAS_ROWS, len(bias))
    assert not (rows.view(np.uint32) & 0x1FFF)[:, np.isfinite(bias)].any()
    assert np.array_equal(rows.sum(axis=0, dtype=np.float64), bias.astype(np.float64), equal_nan=True)
    assert not rows[3:].any()


def test_memory_is_freed(machine, artifact_of):
    before = machine.left
    with SAESession(artifact_of("standard", "float16").path, "cuda") as sae:
        sae(normal(FEWEST_TOKENS, 10).astype(np.float16))
        assert machine.left < before
    machine.sessions.clear()
    gc.collect()
    assert machine.left == before


@pytest.mark.parametrize("tokens", [1, FEWEST_TOKENS])
def test_a_dropped_session_frees_its_memory_without_the_garbage_collector(machine, artifact_of, tokens):
    """A GPU that runs out of memory does not start Python's collector."""
    before = machine.left
    gc.collect()
    gc.disable()
    try:
        sae = SAESession(artifact_of("standard", "float16").path, "cuda")
        sae(normal(tokens, 10).astype(np.float16))
        machine.sessions.clear()
        del sae
        assert machine.left == before
    finally:
        gc.enable()


MATRIX_BYTES, ONES_BYTES = (10 + BIAS_ROWS) * 48 * 2, FEWEST_TOKENS * BIAS_ROWS * 2


@pytest.mark.parametrize("nbytes", [MATRIX_BYTES, ONES_BYTES])
def test_without_memory_for_the_matrix_the_graph_itself_runs(machine, artifact_of, monkeypatch, nbytes):
    def allocate(card, wanted, real=Card.allocate):
        if wanted == nbytes:
            raise SAEError("cuMemAlloc_v2 of the NVIDIA driver: error 2, out of memory.")
        return real(card, wanted)

    monkeypatch.setattr(Card, "allocate", allocate)
    assert_runs_without_folding(machine, artifact_of("standard", "float16").path)


def test_where_onnx_runtime_refuses_the_folded_graph_the_graph_itself_runs(machine, artifact_of, monkeypatch):
    def start(model, *more, real=ort.InferenceSession, **options):
        if isinstance(model, bytes) and MATRIX.encode() in model:
            raise ORT_ERRORS[0]("no memory is left on the device")
        return real(model, *more, **options)

    monkeypatch.setattr(ort, "InferenceSession", start)
    assert_runs_without_folding(machine, artifact_of("standard", "float16").path)


def assert_runs_without_folding(machine, path):
    x = normal(FEWEST_TOKENS, 10).astype(np.float16)
    with SAESession(path, "cuda") as sae, SAESession(path, "cpu") as cpu:
        for _ in range(2):
            assert np.array_equal(sae.encode(x), cpu.encode(x))
        machine.sessions[:] = [session for session in machine.sessions if session not in folded(machine)]
        sae.encode(x)
        assert not folded(machine)  # it is not tried again


def test_a_file_that_changes_after_its_graph_was_loaded_changes_nothing(machine, artifact_of, tmp_path):
    path = shutil.copytree(artifact_of("standard", "float16").path, tmp_path / "sae")
    x = normal(FEWEST_TOKENS, 10).astype(np.float16)
    with SAESession(path, "cpu") as cpu:
        wanted = cpu.encode(x)
    with SAESession(path, "cuda") as sae:
        sae.encode(x[:3])
        with (path / sae.artifact.manifest.weights).open("r+b") as file:
            content = file.read()
            start = 8 + int.from_bytes(content[:8], "little")
            file.seek(start)
            file.write(bytes(len(content) - start))
        assert np.array_equal(sae.encode(x), wanted)
