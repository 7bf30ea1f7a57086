"""The model repository for Triton: its files, its configurations, and that its graphs compute what they should."""

import os
import re
import shutil

import numpy as np
import onnxruntime
import pytest

from runtime import ArtifactError, InputError, SAESession, read_artifact, verify_outputs
from runtime.serving import triton
from runtime.serving.triton import config_text, onnx_config, write_repository
from saeexport import export
from saeexport.cli import main as saeexport
from tests.support.commands import said
from tests.support.samples import TINY, make_sae, normal
from tests.support.wrong import NOT_A_NUMBER, accepted
from tests.support.zoo import D_IN, D_OUT, D_SAE, sae_of

PORTABLE = ["model", "encode", "activate", "decode", "steer", "features"]


def tensors(config, role):
    """Return name, datatype and dimensions of the inputs or outputs in the text of a configuration."""
    (block,) = re.findall(rf"^{role} \[\n(.*?)\n\]$", config, re.MULTILINE | re.DOTALL)
    found = re.findall(r'\{ name: "(\w+)" data_type: (\w+) dims: \[ (.*?) \] \}', block)
    assert len(found) == len(block.splitlines())
    return [(name, kind, [int(size) for size in dims.split(", ")]) for name, kind, dims in found]


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def repository(tmp_path):
    write_repository(TINY, tmp_path / "models")
    return tmp_path / "models"


def test_the_graphs_of_a_repository_compute_what_those_of_the_artifact_do(repository):
    def run(graph, inputs):
        path = repository / f"tiny_{graph}" / "1" / "model.onnx" / "model.onnx"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return dict(zip([tensor.name for tensor in session.get_outputs()], session.run(None, inputs), strict=True))

    assert sorted(folder.name for folder in repository.iterdir()) == sorted(f"tiny_{graph}" for graph in PORTABLE)
    verify_outputs(TINY, run, PORTABLE).raise_for_failures()


def test_each_model_has_its_files_and_one_copy_of_the_weights(repository):
    for graph in PORTABLE:
        found = contents(repository / f"tiny_{graph}")
        assert list(found) == ["1/model.onnx/model.onnx", "1/model.onnx/sae.json", "1/model.onnx/weights.safetensors",
                               "config.pbtxt"]  # fmt: skip
        assert found["1/model.onnx/model.onnx"] == (TINY / f"{graph}.onnx").read_bytes()
        assert found["1/model.onnx/weights.safetensors"] == (TINY / "weights.safetensors").read_bytes()
    weights = {file.stat().st_ino for file in repository.rglob("weights.safetensors")}
    assert len(weights) == 1
    assert (TINY / "weights.safetensors").stat().st_ino not in weights


def test_without_hard_links_there_are_copies(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError

    monkeypatch.setattr(triton.os, "link", refuse)
    write_repository(TINY, tmp_path / "models", graphs=["model", "encode"])
    assert len({file.stat().st_ino for file in (tmp_path / "models").rglob("weights.safetensors")}) == 2


def test_tokens_are_the_batch_dimension_where_every_tensor_has_them():
    artifact = read_artifact(TINY)
    config = onnx_config(artifact, "encode", "tiny", 100)
    assert config.startswith('name: "tiny_encode"\nbackend: "onnxruntime"\nmax_batch_size: 100\ndynamic_batching { }\n')
    assert tensors(config, "input") == [("input", "TYPE_FP32", [6])]
    assert tensors(config, "output") == [(f"hook_sae_acts_{end}", "TYPE_FP32", [16]) for end in ("pre", "post")]
    for graph in ("features", "steer"):
        assert "max_batch_size: 0\ninput [" in onnx_config(artifact, graph, "tiny")
    features, steer = (onnx_config(artifact, graph, "tiny") for graph in ("features", "steer"))
    assert tensors(features, "input") == [("input", "TYPE_FP32", [-1, 6]), ("k", "TYPE_INT64", [1])]
    assert tensors(features, "output") == [
        ("indices", "TYPE_INT64", [-1, -1]), ("values", "TYPE_FP32", [-1, -1]), ("l0", "TYPE_INT64", [-1]),
    ]  # fmt: skip
    assert tensors(steer, "input")[1:] == [
        ("feature_ids", "TYPE_INT64", [-1]),
        ("feature_scale", "TYPE_FP32", [-1, -1]),
        ("feature_shift", "TYPE_FP32", [-1, -1]),
    ]


@pytest.mark.parametrize("graph", ["model", "model.sparse", "features.sparse"])
def test_cpu_variants_run_on_a_cpu(graph):
    kind = "KIND_CPU" if "." in graph else "KIND_AUTO"
    assert onnx_config(read_artifact(TINY), graph, "tiny").endswith(f"instance_group [ {{ count: 1 kind: {kind} }} ]\n")


def test_other_dtypes_and_shapes(tmp_path):
    half = read_artifact(export(make_sae(), tmp_path / "half", normal(40, 6), dtype="bfloat16").path)
    config = onnx_config(half, "model", "half")
    assert ("hook_sae_recons", "TYPE_BF16", [6]) in tensors(config, "output")
    assert "KIND_GPU" in config
    assert "KIND_CPU" in onnx_config(half, "model.wide", "half")
    int8 = read_artifact(export(make_sae(64, 64), tmp_path / "int8", normal(40, 64), weights="int8").path)
    assert "KIND_CPU" in onnx_config(int8, "model", "int8")
    coder = read_artifact(export(sae_of("transcoder", use_error_term=True), tmp_path / "coder").path)
    config = onnx_config(coder, "model", "coder")
    assert tensors(config, "input") == [("input", "TYPE_FP32", [D_IN]), ("target", "TYPE_FP32", [D_OUT])]
    assert ("hook_sae_acts_post", "TYPE_FP32", [D_SAE]) in tensors(config, "output")
    heads = export(make_sae(12, hook_name="blocks.0.attn.hook_z"), tmp_path / "heads", head_shape=(3, 4)).path
    assert tensors(onnx_config(read_artifact(heads), "model", "heads"), "input") == [("input", "TYPE_FP32", [3, 4])]


def test_a_repository_gets_further_models_and_versions(tmp_path):
    out = tmp_path / "deep" / "models"
    write_repository(TINY, out, graphs=["model"])
    before = contents(out)
    write_repository(TINY, out, graphs=["encode"])
    write_repository(TINY, out, graphs=["model"], name="other")
    assert write_repository(TINY, out, graphs=["model", "encode"], version=2) == [
        out / "tiny_model",
        out / "tiny_encode",
    ]
    after = contents(out)
    assert before.items() <= after.items()
    assert {name.split("/")[1] for name in after if name.startswith("tiny_encode")} == {"1", "2", "config.pbtxt"}
    assert os.listdir(tmp_path / "deep") == ["models"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graphs": ["model"]}, "tiny_model has version 1. Choose another version"),
        ({"name": "a b"}, r"The name 'a b' must consist of .*Choose another \(name=, --name\)"),
        ({"graphs": ["encode", "model"]}, "tiny_model has version 1"),
        ({"graphs": ["model"], "version": 2, "max_tokens": 5}, "tiny_model exists and has another configuration"),
        ({"graphs": ["middle"]}, "has no graph middle; it has model, encode"),
        ({"graphs": []}, "no graphs are given"),
        ({"graphs": "model"}, "graphs is 'model'; it must be a list"),
        ({"name": "a/b"}, "The name 'a/b' must consist of letters"),
        ({"name": ""}, "The name '' must consist of letters"),
        ({"name": 5}, "The name 5 must consist of letters"),
    ],
)
def test_what_is_refused_changes_nothing(tmp_path, options, message):
    out = tmp_path / "models"
    write_repository(TINY, out, graphs=["model"])
    before = contents(tmp_path)
    with pytest.raises(InputError, match=message):
        write_repository(TINY, out, **options)
    assert contents(tmp_path) == before


def test_numbers_are_checked(tmp_path):
    wrong = [*NOT_A_NUMBER, 0, -1]
    assert accepted(lambda n: write_repository(TINY, tmp_path / "a", version=n), wrong) == []
    assert accepted(lambda n: write_repository(TINY, tmp_path / "a", max_tokens=n), [*wrong, 2**31]) == []


def test_a_changed_file_and_a_failure_in_between_leave_nothing(artifact, tmp_path, monkeypatch):
    (artifact / "steer.onnx").write_bytes(b"\0" * (artifact / "steer.onnx").stat().st_size)
    with pytest.raises(ArtifactError, match=r"steer\.onnx"):
        write_repository(artifact, tmp_path / "out" / "models")
    assert not (tmp_path / "out").exists()
    copies = []

    def copy_twice(source, target, copy=shutil.copyfile):
        copies.append(target)
        if len(copies) > 2:
            raise OSError("no space left")
        return copy(source, target)

    monkeypatch.setattr(triton.shutil, "copyfile", copy_twice)
    with pytest.raises(OSError, match="no space left"):
        write_repository(TINY, tmp_path / "out" / "models")
    assert os.listdir(tmp_path / "out") == []


def test_text_is_quoted():
    with SAESession(TINY, "cpu") as session:
        specs = session.artifact.manifest.graphs["encode"].inputs
    config = config_text(
        "a", "python", specs, specs, "KIND_CPU", parameters={"path": 'C:\\a "b"\n'}, optional=["input"]
    )
    assert r'value: { string_value: "C:\\a \"b\"\n" }' in config
    assert "dims: [ -1, 6 ] optional: true }" in config


def test_both_command_lines(tmp_path, capsys):
    options = ["--graphs", "model", "--name", "n", "--model-version", 3, "--max-tokens", 7]
    for command, out in (({}, tmp_path / "a"), ({"command": saeexport}, tmp_path / "b")):
        text = said(capsys, 0, "package", "--triton", TINY, out, *options, **command)
        assert text == f"{out}: version 3 of n_model\n"
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert b"max_batch_size: 7" in contents(tmp_path / "a")["n_model/config.pbtxt"]
    assert "has version 3" in said(capsys, 2, "package", "--triton", TINY, tmp_path / "a", *options)
    with pytest.raises(SystemExit):
        saeexport(["package", str(TINY), str(tmp_path / "c")])
    assert "--triton is required" in capsys.readouterr().err


def test_the_numbers_of_the_repository_are_those_of_the_session(repository):
    path = repository / "tiny_features" / "1" / "model.onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = normal(5, 6)
    with SAESession(TINY, "cpu") as sae:
        for found, wanted in zip(
            session.run(None, {"input": x, "k": np.array([3])}), sae.top_features(x, 3), strict=True
        ):
            assert np.allclose(found, wanted)
