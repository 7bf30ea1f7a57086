"""The manifest says of each graph what an engine must support in order to load it."""

import dataclasses

import onnx
import pytest
from onnx import TensorProto, helper

from runtime.artifact.contracts import PORTABLE, SPARSE
from runtime.artifact.folder import read_artifact
from saeexport import ExportError, HookedSAE, export
from saeexport.graphs import portable, requirements
from saeexport.graphs.portable import IR_VERSION, OPSET, violations
from saeexport.graphs.requirements import FIRST_ONNXRUNTIME, requirements_of
from tests.support.samples import MINILM, TINY, make_sae, normal
from tests.support.zoo import CASES

WITH_CONTROL_FLOW = [SPARSE[name] for name in SPARSE]


def operators_in(graph):
    """Yield the domain and the name of every node, and of those in the bodies of nodes, by the package onnx alone."""
    for node in graph.node:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from operators_in(body)


def check_against_the_files(path):
    for spec in read_artifact(path).manifest.graphs.values():
        model = onnx.load_model(path / spec.file, load_external_data=False)
        found = set(operators_in(model.graph))
        assert spec.requires.ir_version == model.ir_version
        assert spec.requires.opset_import == {one.domain or "ai.onnx": one.version for one in model.opset_import}
        assert spec.requires.operators == tuple(sorted(f"{domain}.{name}".lstrip(".") for domain, name in found))
        assert {domain for domain, _ in found} == {one.domain for one in model.opset_import}  # no unused set
        assert spec.requires.portable == (violations(path / spec.file) == [])


@pytest.mark.parametrize("path", [TINY, MINILM], ids=lambda path: path.name)
def test_the_models_here_say_what_their_files_need(path):
    check_against_the_files(path)
    graphs = read_artifact(path).manifest.graphs
    assert {name for name, spec in graphs.items() if spec.requires.portable} == set(PORTABLE)
    assert {spec.requires.onnxruntime for spec in graphs.values()} == {FIRST_ONNXRUNTIME}
    assert all({"If", "Loop"} & set(graphs[name].requires.operators) for name in WITH_CONTROL_FLOW)


@pytest.mark.parametrize(("architecture", "more"), CASES[:11], ids=str)
def test_every_architecture_says_what_its_files_need(artifact_of, architecture, more):
    check_against_the_files(artifact_of(architecture, **more).path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_needs_no_control_flow(tmp_path, dtype):
    artifact = export(make_sae(), tmp_path / "sae", normal(30, 6), dtype=dtype)
    check_against_the_files(artifact.path)
    assert all(spec.requires.portable for spec in artifact.manifest.graphs.values())


def test_int8_weights_need_a_later_onnx_runtime_where_they_are_multiplied_in_8_bits(tmp_path):
    artifact = export(make_sae(), tmp_path / "sae", normal(40, 6), weights="int8")
    check_against_the_files(artifact.path)
    needed = {name: spec.requires for name, spec in artifact.manifest.graphs.items()}
    assert needed["model"].onnxruntime == "1.22"
    assert needed["model"].opset_import == {"ai.onnx": 20, "com.microsoft": 1}
    assert "com.microsoft.MatMulNBits" in needed["model"].operators
    assert (needed["decode"].onnxruntime, needed["decode"].opset_import) == ("1.18", {"ai.onnx": 20})
    assert [name for name, one in needed.items() if one.portable] == ["activate"]


def test_a_class_of_ones_own_may_be_not_portable_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(portable.OPERATORS, "Relu", ())
    own = type("Mine", (HookedSAE,), {})({"d_in": 6, "d_sae": 16, "hook_name": "h"})
    graphs = export(own, tmp_path / "sae").manifest.graphs
    assert not graphs["model"].requires.portable
    assert graphs["decode"].requires.portable


@pytest.fixture
def file_of(tmp_path):
    """Return a function that writes a graph of one node from x to y, and returns its file."""

    def write(operator, domain="", opset=OPSET, ir_version=IR_VERSION, **attributes):
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
        node = helper.make_node(operator, ["x"], ["y"], domain=domain, **attributes)
        imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
        model = helper.make_model(
            helper.make_graph([node], "graph", [x], [y]), opset_imports=imports, ir_version=ir_version
        )
        onnx.save_model(model, tmp_path / "graph.onnx")
        return tmp_path / "graph.onnx"

    return write


def test_the_release_of_an_operator_of_another_domain_is_unknown(file_of):
    found = requirements_of(file_of("Twice", domain="mine"))
    assert (found.operators, found.onnxruntime, found.portable) == (("mine.Twice",), None, False)
    assert found.opset_import == {"ai.onnx": OPSET, "mine": 1}


def test_releases_are_compared_as_numbers(file_of, monkeypatch):
    monkeypatch.setitem(requirements.CONTRIBUTED, "com.microsoft.FastGelu", "1.9")
    assert requirements_of(file_of("FastGelu", domain="com.microsoft")).onnxruntime == FIRST_ONNXRUNTIME
    monkeypatch.setitem(requirements.CONTRIBUTED, "com.microsoft.FastGelu", "1.100")
    assert requirements_of(file_of("FastGelu", domain="com.microsoft")).onnxruntime == "1.100"


@pytest.mark.parametrize("change", [{"opset": 21}, {"ir_version": 11}])
def test_another_opset_is_refused_because_its_first_release_is_another(file_of, change):
    with pytest.raises(ExportError, match=r"graph.onnx has opset \d+ and IR version \d+; the exporter writes opset 20"):
        requirements_of(file_of("Relu", **change))


def test_the_requirements_are_not_part_of_the_contract():
    graphs = read_artifact(TINY).manifest.graphs
    assert all(dataclasses.replace(spec, requires=None) == spec for spec in graphs.values())
