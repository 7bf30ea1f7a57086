"""A grafted host passes its verification, and every fault that it is meant to find fails it."""

import json
import shutil

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from runtime import ParityError, SAESession, assert_parity, read_host, verify
from runtime.artifact.manifest import Errors
from runtime.commands.main import main
from runtime.errors import IntegrityError, ManifestError
from runtime.hosts.rule import as_errors, host_budget, host_error, host_errors
from tests.support.grafted import POST, PRE, Z, graft_tiny, rewrite_manifest

UNCHANGED = lambda content: None  # noqa: E731


@pytest.fixture
def copied(grafted, tmp_path):
    return shutil.copytree(grafted.path, tmp_path / "copy")


def failures(path):
    return verify(path, "cpu").failures


def change_graph(folder, graph, change):
    """Change an ONNX file with a function of its model, and give the manifest its new checksum."""
    model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
    change(model.graph)
    onnx.save(model, folder / f"{graph}.onnx")
    rewrite_manifest(folder, UNCHANGED)


def rewire(graph, old, new):
    """Let every node read another value."""
    n = 0
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
                n += 1
    assert n


def test_a_grafted_host_passes(grafted):
    report = verify(grafted.path, "cpu")
    assert report.failures == []
    assert report.tokens == read_host(grafted.path).manifest.golden.tokens
    graphs = {verdict.graph for verdict in report.verdicts}
    assert graphs == {
        "tap", "features", "splice", "splice, none attached", "splice, edited", "splice, error terms", "stages",
        "splice, token by token", *(f"splice, {hook} alone" for hook in (POST, PRE, Z)),
    }  # fmt: skip
    assert {verdict.hook for verdict in report.verdicts if verdict.graph == "features"} == {
        f"{hook}.hook_sae_acts_post" for hook in (POST, PRE, Z)
    }
    assert_parity(grafted.path, "cpu")


@pytest.mark.parametrize("name", ["splice.onnx", "host.data", "golden.safetensors", f"saes/{Z}/weights.safetensors"])
def test_a_changed_file_is_found_and_nothing_is_run(copied, name):
    if not (copied / name).exists():
        pytest.skip("the small host keeps its weights in its graphs")
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    report = verify(copied, "cpu")
    assert not report.verdicts
    (problem,) = report.problems
    assert name in problem
    with pytest.raises(ParityError, match="not intact"):
        report.raise_for_failures()


def test_another_sae_in_a_folder_is_refused(copied):
    for name in ("sae.json", "weights.safetensors"):
        shutil.copyfile(copied / f"saes/{Z}" / name, copied / f"saes/{PRE}" / name)
    with pytest.raises(IntegrityError, match="the folder holds another SAE than the one that was grafted"):
        read_host(copied)


def test_an_attach_input_that_does_nothing_is_found(copied):
    def ignore(graph):
        for node in graph.node:
            if node.op_type == "Where" and node.input[0] == f"{Z}.attach":
                node.input[1] = node.input[2]

    change_graph(copied, "splice", ignore)
    found = failures(copied)
    assert any(f"splice: attaching the SAE at {Z} moves logits" in failure for failure in found)
    assert any(failure.startswith("splice: logits: the token error is") for failure in found)


def test_an_attach_input_that_is_always_on_is_found(copied):
    def always(graph):
        for node in graph.node:
            if node.op_type == "Where" and node.input[0] == f"{PRE}.attach":
                node.input[2] = node.input[1]

    change_graph(copied, "splice", always)
    assert any(failure.startswith("splice, none attached: logits: the token error") for failure in failures(copied))


def test_an_input_of_the_error_term_that_does_nothing_is_found(copied):
    change_graph(copied, "splice", lambda graph: rewire(graph, f"{PRE}.use_error_term", f"{PRE}.attach"))
    assert any(failure.startswith("splice: logits: the token error is") for failure in failures(copied))


def test_an_edit_that_does_nothing_is_found(copied):
    def ignore(graph):
        for hook in (POST, PRE, Z):
            ones = onnx.numpy_helper.from_array(np.zeros((0,), np.int64), f"{hook}.none")
            graph.initializer.append(ones)
            empty = onnx.numpy_helper.from_array(np.zeros((1, 0), np.float32), f"{hook}.empty")
            graph.initializer.append(empty)
            rewire(graph, f"{hook}.feature_ids", f"{hook}.none")
            for name in ("feature_scale", "feature_shift"):
                rewire(graph, f"{hook}.{name}", f"{hook}.empty")

    change_graph(copied, "splice", ignore)
    found = failures(copied)
    assert any(failure.startswith("splice, edited: logits: the token error is") for failure in found)
    assert any(failure.startswith("splice: the edit moves logits") for failure in found)


def test_an_sae_at_another_tensor_is_found(copied, grafted):
    for graph in ("tap", "features"):
        change_graph(
            copied, graph, lambda graph: move_saes(graph, "blocks/1/hook_resid_pre", "blocks/0/hook_resid_mid")
        )
    found = failures(copied)
    assert any(f"tap: {PRE}.hook_sae_input: the token error is" in failure for failure in found)
    assert any(failure.startswith(f"features: {PRE}.hook_sae_acts_post") for failure in found)


def move_saes(graph, old, new):
    """Let the nodes of the SAEs read another value, and leave those of the host."""
    for node in graph.node:
        if node.name.startswith((POST, PRE)):
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new


def test_swapped_saes_are_found(copied):
    def swap(graph):
        encoders = [tensor for tensor in graph.initializer if tensor.name.startswith((f"{PRE}.W_enc", f"{Z}.W_enc"))]
        one, other = encoders  # the CPU variant of the encoder has a name of its own
        one.name, other.name = other.name, one.name

    for graph in ("tap", "features", "splice"):
        change_graph(copied, graph, swap)
    found = failures(copied)
    for start in (f"tap: {Z}.hook_sae_acts_pre", f"features: {PRE}.hook_sae_acts_post", "splice: logits"):
        assert any(failure.startswith(start) for failure in found), start


def test_a_host_of_other_weights_is_found(copied, grafted, tmp_path):
    from tests.support.tiny_hosts import TinyHost

    other = TinyHost(cache=True, seed=1).weights["W_U"]

    def change(graph):
        for tensor in graph.initializer:
            if tensor.name == "W_U":
                tensor.CopyFrom(onnx.numpy_helper.from_array(other, "W_U"))

    for graph in ("tap", "splice"):
        change_graph(copied, graph, change)
    found = failures(copied)
    for start in ("tap: logits", "splice, none attached: logits", "splice: logits"):
        assert any(failure.startswith(start) for failure in found), start


def test_a_cache_of_another_model_is_found(copied):
    """Steps that do not read the cache differ from the prefill; the other comparisons have no earlier tokens."""

    def forget(graph):
        for node in graph.node:
            if node.op_type == "Concat" and node.output[0] == "present.0.key":
                zero = onnx.numpy_helper.from_array(np.array(0.0, np.float32), "nothing")
                graph.initializer.append(zero)
                product = onnx.helper.make_node("Mul", [node.input[0], "nothing"], ["forgotten"])
                node.input[0] = "forgotten"
                graph.node.insert(0, product)
                return

    change_graph(copied, "splice", forget)
    starts = {failure.split(":")[0] for failure in failures(copied)}
    assert starts == {"splice, token by token"}


def test_golden_values_of_another_host_are_found(copied):
    golden = load_file(copied / "golden.safetensors")
    golden["splice/logits"] = golden["outputs/logits"]
    save_file(golden, copied / "golden.safetensors")
    rewrite_manifest(copied, UNCHANGED)
    starts = {failure.split(":")[0] for failure in failures(copied)}
    assert starts >= {"splice", "stages"}


def test_a_golden_batch_that_lacks_a_tensor_is_refused(copied):
    golden = load_file(copied / "golden.safetensors")
    del golden[f"{Z}.input"]
    save_file(golden, copied / "golden.safetensors")
    rewrite_manifest(copied, UNCHANGED)
    with pytest.raises(IntegrityError, match=f"has no tensor {Z}.input"):
        verify(copied, "cpu")


def test_the_manifest_is_checked(copied):
    text = (copied / "host.json").read_text()
    (copied / "host.json").write_text(text.replace('"decoder"', '"encoder"'))
    with pytest.raises(ManifestError, match="host.json was changed after the export"):
        read_host(copied)

    def decide(content):
        content["host"]["kind"] = "oracle"

    (copied / "host.json").write_text(text)
    rewrite_manifest(copied, decide)
    with pytest.raises(ManifestError, match="host.json: host: kind is 'oracle'; it must be encoder or decoder. Graft"):
        read_host(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "format is 'other'"),
        (lambda c: c["saes"][0].update(folder="../elsewhere"), "folder is '../elsewhere'"),
        (lambda c: c["saes"][0].update(sha256="0" * 64), "sha256 is "),
        (lambda c: c["saes"].append(c["saes"][0]), "it must be one SAE per hook"),
        (lambda c: c["saes"].clear(), "saes is "),
        (lambda c: c["saes"][0]["evidence"].update(method="guess"), "evidence: method is 'guess'"),
        (lambda c: c["graphs"].pop("stage.0"), "with stage.0 and stage.3"),
        (lambda c: c["graphs"]["tap"]["inputs"].pop(0), "graph 'tap': inputs is "),
        (lambda c: c["host"]["cache"][0].update(past="nothing"), "cache: past is 'nothing'"),
        (lambda c: c["parity"]["splice"]["logits"].update(error=1.0), "its budget"),
        (lambda c: c["parity"].update(splice={}), r"parity: splice is \[\]"),
        (lambda c: c["golden"].update(tokens=0), "golden: tokens is 0"),
        (lambda c: c["files"].pop("tap.onnx"), "with an entry for tap.onnx"),
    ],
)
def test_impossible_values_are_refused(copied, change, message):
    rewrite_manifest(copied, change)
    with pytest.raises(ManifestError, match=message):
        read_host(copied)


def test_each_sae_is_an_artifact_of_its_own(grafted):
    with SAESession(grafted.path / "saes" / Z, "cpu") as sae:
        assert sae.cfg.hook_name == Z
    assert verify(grafted.path / "saes" / Z, "cpu").failures == []


def test_the_command_line_verifies_and_inspects_a_host(grafted, copied, capsys):
    assert main(["verify", str(grafted.path), "--device", "cpu", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"]
    assert document["manifest_sha256"] == read_host(grafted.path).sha256
    assert main(["inspect", str(grafted.path)]) == 0
    text = capsys.readouterr().out
    assert "decoder tiny with 3 SAEs" in text
    assert "splice, token by token  logits" in text
    (copied / "tap.onnx").unlink()
    assert main(["verify", str(copied), "--device", "cpu"]) == 1
    assert "tap.onnx is missing" in capsys.readouterr().out
    assert main(["verify", str(grafted.path), "--precision", "tf32"]) == 2
    assert "a grafted host is verified in its own" in capsys.readouterr().err


def test_an_error_is_that_of_the_worst_token_that_is_not_masked():
    reference = np.ones((2, 3, 4), np.float32)
    mask = np.array([[True, True, False], [True, False, False]])
    y = reference.copy()
    y[0, 2] = np.nan
    y[1, 0, 3] = 1.5
    assert host_errors(y, reference, mask) == Errors(0.25, 0.5)
    assert host_error(y, reference, np.ones((2, 3), bool)) == np.inf
    assert host_error(y[:1], reference, mask) == np.inf
    assert host_error(np.zeros((2, 4)), np.zeros((2, 4)), mask) == 0
    assert host_budget(1e-6, "float32") == host_budget(1e-6, "float32", "float32") == 4e-6 + 2**-20
    assert host_budget(1e-6, "float32", "float16") == 4e-6 + 2**-20 + 2**-9
    assert host_budget(1e-3, "float16", "float32") == 4e-3 + 2**-7
    assert as_errors(1e-6, reference, mask) == Errors(1e-6, 2e-6)


def test_one_sae_without_a_cache_passes(tmp_path):
    grafted = graft_tiny(tmp_path, [Z], cache=False)
    assert failures(grafted.path) == []
