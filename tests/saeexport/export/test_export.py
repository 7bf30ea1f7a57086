"""The files that the exporter writes."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import runtime
from runtime.artifact.budgets import MIN_COLUMN_TOKENS
from runtime.artifact.contracts import CONTRACTS
from runtime.artifact.tensorfile import read_header
from saeexport import HookedSAE, export, load
from saeexport.graphs import write as graphs
from tests.support.samples import HOOKS, TINY, contents, make_sae, normal

exporting = importlib.import_module("saeexport._export")
GRAPHS = tuple(CONTRACTS)
PRODUCT = ["MatMul", "Add"]


def graph_of(folder, name):
    return onnx.load_model(folder / f"{name}.onnx", load_external_data=False)


# What is written


def test_the_smallest_graph_that_computes_the_hooks_is_chosen(exported):
    sae, path = exported
    ops = {name: [node.op_type for node in graph_of(path, name).graph.node] for name in GRAPHS}
    output = "Add" if sae.cfg.use_error_term else "Identity"
    assert sorted(ops["model"]) == sorted(["Identity", "Sub", *PRODUCT, "Relu", *PRODUCT, "Sub", output])
    assert ops["encode"] == ["Sub", *PRODUCT, "Relu"]
    assert ops["activate"] == ["Relu"]
    assert ops["decode"] == PRODUCT
    update = ["Gather", "Mul", "Add", "Sub", "Gather", "Gemm", "Shape", "Expand", "ScatterElements"]
    assert sorted(ops["steer"]) == sorted([*ops["model"], *update])


def test_graphs_keep_the_contract(exported_z):
    _, path = exported_z
    for name, spec in runtime.read_artifact(path).manifest.graphs.items():
        model = graph_of(path, name)
        assert [value.name for value in model.graph.input] == [tensor.name for tensor in spec.inputs]
        assert [value.name for value in model.graph.output] == [tensor.name for tensor in spec.outputs]
        assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (10, [("", 20)])
    assert [tensor.name for tensor in runtime.read_artifact(path).manifest.graphs["model"].outputs] == HOOKS


def test_a_graph_without_its_folder_describes_itself(exported_z):
    sae, path = exported_z
    artifact = runtime.read_artifact(path)
    heads = artifact.manifest.sae.head_shape
    fields = {entry.key: entry.value for entry in graph_of(path, "encode").metadata_props}
    assert fields == {
        "saeexport.architecture": "standard",
        "saeexport.d_in": "12",
        "saeexport.d_sae": "16",
        "saeexport.description": "The encoder alone.",
        "saeexport.dtype": "float32",
        "saeexport.fired_hooks": ",".join(HOOKS),
        "saeexport.format_version": "1",
        "saeexport.graph": "encode",
        "saeexport.head_shape": "3x4" if heads else "",
        "saeexport.hook_name": sae.cfg.hook_name,
        "saeexport.use_error_term": "true",
        "saeexport.weights_sha256": artifact.manifest.files["weights.safetensors"].sha256,
    }


def test_the_weights_file_is_the_state_dict(exported):
    sae, path = exported
    stored = load_file(path / "weights.safetensors")
    assert set(stored) == set(sae.state_dict())
    assert all(torch.equal(tensor, stored[name]) for name, tensor in sae.state_dict().items())


def test_parameters_are_shared_and_only_referred_to(exported):
    _, path = exported
    header = read_header(path / "weights.safetensors")
    places = {name: (t.offset, t.nbytes) for name, t in header.items()}
    # A bias lies behind its matrix, and the two are read as one.
    places["W_enc_and_b_enc"] = (header["W_enc"].offset, header["W_enc"].nbytes + header["b_enc"].nbytes)
    assert header["b_enc"].offset == header["W_enc"].offset + header["W_enc"].nbytes
    seen = set()
    for name in GRAPHS:
        for tensor in graph_of(path, name).graph.initializer:
            if tensor.name.startswith("constant."):
                assert len(tensor.raw_data) <= 32
                continue
            assert tensor.data_location == onnx.TensorProto.EXTERNAL
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry["location"] == "weights.safetensors"
            assert (int(entry["offset"]), int(entry["length"])) == places[tensor.name]
            seen.add(tensor.name)
    assert seen == set(places)


def test_graphs_do_not_grow_with_the_weights(tmp_path):
    """Protocol buffers are limited to 2 GB, so the graphs must not contain weights."""
    sizes = []
    for d_sae in (512, 4096):
        path = export(make_sae(d_sae=d_sae), tmp_path / str(d_sae)).path
        sizes.append(sum((path / f"{name}.onnx").stat().st_size for name in GRAPHS))
    assert sizes[1] < sizes[0] + 200


@pytest.mark.slow
def test_weights_beyond_2_gb_are_found(tmp_path, artifact):
    """The tiny weights lie behind a gap of 3 GB in a sparse file."""
    gap = 3 << 30
    weights, header = artifact / "weights.safetensors", read_header(artifact / "weights.safetensors")
    old = weights.read_bytes()
    start = min(t.offset for t in header.values())
    entries = {"gap": {"dtype": "U8", "shape": [gap], "data_offsets": [0, gap]}}
    for name, t in header.items():
        begin = gap + t.offset - start
        entries[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [begin, begin + t.nbytes]}
    text = json.dumps(entries).encode()
    with weights.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(gap, os.SEEK_CUR)
        file.write(old[start:])
    config = runtime.read_artifact(TINY).manifest.sae
    graphs.write_graphs(graphs.trace_model(load(TINY), config), config, weights)
    x = normal(5, 6)
    _, expected = runtime.SAESession(TINY, "cpu").run_with_cache(x)
    for name in ("model", "model.sparse"):
        outputs = onnxruntime.InferenceSession(artifact / f"{name}.onnx").run(None, {"input": x})
        for output, hook in zip(outputs, HOOKS, strict=True):
            np.testing.assert_allclose(output, expected[hook], atol=1e-6)


def test_nothing_of_this_machine_is_in_an_artifact(exported):
    _, path = exported
    for name, data in contents(path).items():
        for secret in (os.getcwd(), os.path.expanduser("~"), sys.prefix, str(path.parent), os.uname().nodename):
            assert secret.encode() not in data, (name, secret)
        assert b"stack_trace" not in data, name
        assert b"pkg.torch" not in data, name


@pytest.mark.usefixtures("fresh_trace")
def test_the_same_sae_gives_the_same_bytes(tmp_path):
    x = normal(40, 6)
    one, two = (export(make_sae(), tmp_path / name, x).path for name in ("one", "two"))
    assert contents(one) == contents(two)


@pytest.mark.usefixtures("fresh_trace")
@pytest.mark.slow
def test_another_process_gives_the_same_bytes(tmp_path):
    here = export(load(TINY), tmp_path / "here").path
    there = tmp_path / "there"
    subprocess.run([sys.executable, "-m", "saeexport", "export", TINY, there], check=True, capture_output=True)
    assert contents(here) == contents(there)


def test_an_artifact_is_its_own_checkpoint(exported, tmp_path):
    sae, path = exported
    again = load(path)
    assert again.cfg == sae.cfg
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), sae.parameters(), strict=True))
    assert contents(export(again, tmp_path / "again", normal(40, 6)).path) == contents(path)


@pytest.mark.usefixtures("fresh_trace")
def test_export_leaves_the_sae_as_it_was(tmp_path):
    sae = make_sae(use_error_term=False)
    sae.hook_sae_recons.eval()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    export(sae, tmp_path / "sae")
    assert sae.training
    assert not sae.hook_sae_recons.training
    assert not sae.cfg.use_error_term
    assert all(parameter.requires_grad for parameter in sae.parameters())
    assert all(torch.equal(tensor, sae.state_dict()[name]) for name, tensor in before.items())
    assert not any(point.fwd_hooks for point in sae.hook_points())


def test_weights_that_are_views_are_written_as_numbers(tmp_path):
    sae = make_sae(d_in=6, d_sae=16)
    sae.W_dec = torch.nn.Parameter(sae.W_enc.detach().T)
    assert not sae.W_dec.is_contiguous()
    saeexport_path = export(sae, tmp_path / "sae").path
    assert torch.equal(load_file(saeexport_path / "weights.safetensors")["W_dec"], sae.W_dec)


def test_a_service_of_another_user_can_read_it(exported):
    _, path = exported
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o777 & ~mask
    assert {entry.stat().st_mode & 0o777 for entry in path.iterdir()} == {0o666 & ~mask}


# The golden batch


def test_golden_inputs_are_a_sample_of_the_activations(tmp_path):
    x = normal(3, 500, 6)
    artifact = export(make_sae(), tmp_path / "sae", torch.from_numpy(x))
    golden = load_file(artifact.path / "golden.safetensors")["hook_sae_input"].numpy()
    rows = {row.tobytes() for row in x.reshape(-1, 6)}
    assert len(golden) == artifact.manifest.golden.tokens == 64
    assert all(row.tobytes() in rows for row in golden)
    assert artifact.manifest.golden.source == "activations"
    assert artifact.manifest.parity.tokens == 1024


def test_without_activations_they_are_called_synthetic(tmp_path):
    artifact = export(make_sae(), tmp_path / "sae")
    assert artifact.manifest.golden.source == "synthetic"


def test_the_golden_file_stays_small_at_any_size():
    config = runtime.read_artifact(TINY).manifest.sae
    for d_in, d_sae in ((768, 24576), (4096, 131072), (8192, 65536)):
        tokens = exporting._golden_tokens(dataclasses.replace(config, d_in=d_in, d_sae=d_sae), 1024)
        assert 1 <= tokens <= 64
        assert tokens * 4 * (4 * d_sae + 7 * d_in) < 6.5e6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_golden_file_has_enough_tokens_for_columns_at_any_size(dtype):
    config = runtime.read_artifact(TINY).manifest.sae
    for d_in, d_sae in ((768, 24576), (4096, 131072)):
        wide = dataclasses.replace(config, dtype=dtype, d_in=d_in, d_sae=d_sae)
        assert exporting._golden_tokens(wide, 1024) == MIN_COLUMN_TOKENS


def test_a_few_activations_are_enough(tmp_path):
    artifact = export(make_sae(), tmp_path / "sae", normal(4, 6))
    assert artifact.manifest.golden.tokens == artifact.manifest.parity.tokens == 4


def test_activations_may_be_bfloat16(tmp_path):
    x = torch.from_numpy(normal(20, 6)).bfloat16()
    artifact = export(make_sae(), tmp_path / "sae", x)
    golden = load_file(artifact.path / "golden.safetensors")["hook_sae_input"]
    assert torch.equal(golden, x.float())


def test_an_sae_on_its_user_s_class(tmp_path):
    """A subclass that computes the same with other operators is traced, not assumed to be its base class."""

    class Mine(HookedSAE):
        def preactivations(self, x):
            return (x - self.b_dec) @ self.W_enc + self.b_enc

    sae = Mine(dict(d_sae=16, d_in=6, hook_name="h", seed=0, device="cpu"))
    path = export(sae, tmp_path / "sae").path
    assert [node.op_type for node in graph_of(path, "encode").graph.node] == ["Sub", *PRODUCT, "Relu"]
