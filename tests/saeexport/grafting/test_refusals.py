"""What cannot be grafted is refused by name, and nothing is left behind."""

import re

import numpy as np
import onnx
import onnx.helper
import pytest

from runtime.errors import ArtifactError, ExportError, GraftError
from saeexport import export
from saeexport.cli import main
from saeexport.grafting.asked import split_sae
from saeexport.grafting.graft import graft
from saeexport.grafting.host import load_host
from saeexport.grafting.reference import load_model
from tests.support.samples import make_sae, normal
from tests.support.tiny_hosts import D_MODEL, TinyHost, value_at

HOOK = "blocks.1.hook_resid_post"
HOST = TinyHost()
VALUE = value_at(HOST, HOOK)


@pytest.fixture
def attempt(tmp_path, sae_at):
    """Return a function that grafts into a host that the test has changed, and expects the error to say something."""

    def make(says, change=None, host=HOST, saes=None, error=GraftError, **options):
        path = host.write(tmp_path / "host.onnx")
        if change is not None:
            model = onnx.load(path)
            change(model)
            onnx.save(model, path)
        options.setdefault("force", True)
        with pytest.raises(error, match=says):
            graft(path, saes or {f"{HOOK}@{VALUE}": sae_at(HOST, HOOK)}, tmp_path / "out" / "folder", **options)
        assert not (tmp_path / "out").exists()

    return make


def set_opset(version):
    def change(model):
        model.opset_import[0].version = version

    return change


def test_an_old_opset(attempt):
    attempt("has opset 13; at least 14 is needed", set_opset(13))


def test_operators_that_onnx_runtime_does_not_have(attempt):
    def change(model):
        model.graph.node[5].domain = "my.domain"
        model.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))

    attempt("has operators of my.domain, which ONNX Runtime does not have", change)


def test_a_value_that_is_not_there(attempt, sae_at):
    attempt("does not compute a value nowhere", saes={f"{HOOK}@nowhere": sae_at(HOST, HOOK)})


def test_a_value_inside_a_branch(attempt, sae_at):
    """A value of a subgraph is not one of the outermost graph, where SAEs are inserted."""

    def change(model):
        graph = model.graph
        (last,) = (node for node in graph.node if node.output[0] == "logits")
        inner = onnx.helper.make_node("Identity", [VALUE], ["inside"])
        info = onnx.helper.make_tensor_value_info("inside", onnx.TensorProto.FLOAT, ["batch", "seq", D_MODEL])
        branch = onnx.helper.make_graph([inner], "branch", [], [info])
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "true"))
        graph.node.insert(len(graph.node) - 1, onnx.helper.make_node("If", ["true"], ["chosen"], then_branch=branch,
                                                                     else_branch=branch))  # fmt: skip
        assert last is not None

    attempt(
        f"{HOOK}: the host .* computes inside inside of the If .* outermost graph only",
        change,
        saes={f"{HOOK}@inside": sae_at(HOST, HOOK)},
    )


def test_a_value_inside_a_function(attempt, sae_at):
    def change(model):
        domain = onnx.helper.make_opsetid("", 20)
        body = [onnx.helper.make_node("Identity", ["x"], ["inside"]), onnx.helper.make_node("Neg", ["inside"], ["y"])]
        model.functions.append(onnx.helper.make_function("own", "negate", ["x"], ["y"], body, [domain]))
        model.opset_import.append(onnx.helper.make_opsetid("own", 1))
        model.graph.node.append(onnx.helper.make_node("negate", [VALUE], ["negative"], domain="own"))

    saes = {f"{HOOK}@inside": sae_at(HOST, HOOK)}
    attempt("computes inside inside of the function own.negate", change, saes=saes)


def test_a_value_of_another_width(attempt, sae_at):
    attempt(
        "The value blocks/1/mlp/hook_post of the host .* is not a tensor of floats 16 wide",
        saes={f"{HOOK}@blocks/1/mlp/hook_post": sae_at(HOST, HOOK)},
    )


def test_a_quantised_value(attempt, sae_at):
    def change(model):
        graph = model.graph
        for name, value in (("one.scale", np.float32(0.1)), ("no.point", np.int8(0))):
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
        at = next(i for i, node in enumerate(graph.node) if VALUE in node.output) + 1
        graph.node.insert(at, onnx.helper.make_node("QuantizeLinear", [VALUE, "one.scale", "no.point"], ["quantised"]))

    attempt(
        f"{HOOK}: quantised is INT8 in the host .* graft into the model before it is quantised",
        change,
        saes={f"{HOOK}@quantised": sae_at(HOST, HOOK)},
    )


def test_two_saes_at_one_hook(attempt, sae_at):
    saes = {f"{HOOK}@{VALUE}": sae_at(HOST, HOOK), HOOK: sae_at(HOST, HOOK, seed=1)}
    attempt(f"Two SAEs are to be grafted at {HOOK}", saes=saes)


@pytest.mark.parametrize("hook", ["../../elsewhere", "/elsewhere", f"{HOOK},other", "a b", ".."])
def test_a_hook_that_cannot_name_a_folder_writes_nothing(attempt, sae_at, tmp_path, hook):
    attempt("in letters, digits and ._- only", saes={f"{hook}@{VALUE}": sae_at(HOST, HOOK)})
    assert not [path for path in tmp_path.rglob("*") if path.name == "elsewhere"]


def test_no_sae(tmp_path):
    with pytest.raises(GraftError, match="No SAE was given"):
        graft(HOST.write(tmp_path / "host.onnx"), [], tmp_path / "out")


def test_an_sae_without_a_hook(attempt, tmp_path):
    export(make_sae(D_MODEL, 32, hook_name=""), tmp_path / "sae", activations=normal(40, D_MODEL))
    attempt("Name the hook at which it is grafted", saes=[tmp_path / "sae"])


def test_int8_weights(attempt, tmp_path):
    export(make_sae(D_MODEL, 64, hook_name=HOOK), tmp_path / "sae", activations=normal(40, D_MODEL), weights="int8")
    attempt("has int8 weights", saes={f"{HOOK}@{VALUE}": tmp_path / "sae"})


def test_a_damaged_sae(attempt, sae_at):
    folder = sae_at(HOST, HOOK)
    (folder / "weights.safetensors").write_bytes(b"0" * (folder / "weights.safetensors").stat().st_size)
    attempt("sha256", saes={f"{HOOK}@{VALUE}": folder}, error=ArtifactError)


def test_unknown_modes_and_hooks(attempt):
    attempt("modes is .'taps'.; it must hold one or more of tap, splice, features", modes=["taps"])
    attempt("modes is 'tap'", modes="tap")
    attempt("modes is ..; it must", modes=[])
    attempt("hooks is .'hook_resid'.; it must hold one or more of hook_sae_input", hooks=["hook_resid"])


def test_a_file_that_is_no_model(tmp_path, sae_at):
    (tmp_path / "host.onnx").write_bytes(b"not a model")
    for name, says in (
        ("host.onnx", "is not an ONNX model"),
        ("missing.onnx", "cannot be read"),
        (".", "is a folder. Give its ONNX file, or hf:"),
    ):
        with pytest.raises(GraftError, match=says):
            graft(tmp_path / name, [sae_at(HOST, HOOK)], tmp_path / "out")


def test_external_data_that_is_missing_or_truncated(tmp_path, sae_at):
    path = HOST.write(tmp_path / "host.onnx", external=True)
    data = tmp_path / "host.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises((GraftError, ArtifactError)):
        graft(path, {f"{HOOK}@{VALUE}": sae_at(HOST, HOOK)}, tmp_path / "out", force=True)
    data.unlink()
    with pytest.raises((GraftError, ArtifactError), match=r"host\.onnx\.data"):
        graft(path, {f"{HOOK}@{VALUE}": sae_at(HOST, HOOK)}, tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()


def test_an_input_that_tokens_do_not_give(attempt):
    def change(model):
        model.graph.input.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [3]))

    attempt("has the input pixels, FLOAT .*, which cannot be made from tokens", change)


def test_a_host_without_tokens(attempt):
    def change(model):
        for node in model.graph.node:
            node.input[:] = ["ids" if name == "input_ids" else name for name in node.input]
        model.graph.input[0].name = "ids"

    attempt("none called input_ids. Pass feeds: --reference FILE", change)


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("r.npz", lambda path, feeds: np.savez(path, input_ids=feeds["input_ids"]), "attention_mask, position_ids"),
        ("r.npz", lambda path, feeds: path.write_bytes(b"PK"), "cannot be read"),
        ("r.safetensors", lambda path, feeds: path.write_bytes(b"1"), "cannot be read"),
        ("r.json", lambda path, feeds: path.write_text("{}"), "ends in '.json'"),
        ("r.npz", lambda path, feeds: None, "cannot be read"),
    ],
)
def test_references_that_cannot_be_used(attempt, tmp_path, name, write, says):
    write(tmp_path / name, HOST.feeds())
    attempt(says, reference=tmp_path / name)


def test_two_things_to_compare_with(attempt, tmp_path):
    attempt("Both a model for transformers and a file are given", hf=tmp_path, reference=tmp_path / "r.npz")


def test_an_operator_in_another_form_than_in_the_hosts_opset(attempt, tmp_path):
    """The reduction of a layer norm has an input for what was an attribute up to opset 17."""
    sae = make_sae(D_MODEL, 64, hook_name=HOOK, normalize_activations="layer_norm")
    export(sae, tmp_path / "sae", activations=normal(40, D_MODEL))
    attempt(
        "needs the operator .*, which does not .* in opset 14, that of the host. Export the host with opset 20",
        host=TinyHost(opset=14), saes={f"{HOOK}@{VALUE}": tmp_path / "sae"},
    )  # fmt: skip


def test_the_command_says_what_is_wrong(tmp_path, sae_at, capsys):
    path, sae = str(HOST.write(tmp_path / "host.onnx")), str(sae_at(HOST, HOOK))
    out = str(tmp_path / "out")
    assert main(["graft", path, "--sae", sae, "--sae", f"{HOOK}={sae}", out]) != 0
    assert "name a hook for each SAE or for none" in capsys.readouterr().err
    assert main(["graft", path, "--sae", f"{HOOK}@{VALUE}={sae}", out, "--force", "--modes", "tap,features"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"out: 2 graphs, \d", said)
    assert f"{HOOK}  {VALUE}" in said
    assert "tap against the ungrafted host" in said


def test_paths_and_values_may_contain_an_equals_sign(tmp_path, sae_at):
    folder = tmp_path / "seed=1,k=2"
    folder.mkdir()
    sae = sae_at(HOST, HOOK).rename(folder / "sae")
    for text, expected in (
        (f"{sae}", ("", f"{sae}")),
        (f"{HOOK}={sae}", (HOOK, f"{sae}")),
        (f"{HOOK}@a=b={sae}", (f"{HOOK}@a=b", f"{sae}")),
        (f"{HOOK}=missing=1/sae", (HOOK, "missing=1/sae")),
        ("missing", ("", "missing")),
    ):
        assert split_sae(text) == expected
    path = str(HOST.write(tmp_path / "host.onnx"))
    options = ["--force", "--modes", "features"]
    assert main(["graft", path, "--sae", f"{HOOK}@{VALUE}={sae}", str(tmp_path / "out"), *options]) == 0


def test_the_host_is_not_changed_by_loading_it(tmp_path):
    path = HOST.write(tmp_path / "host.onnx")
    before = path.read_bytes()
    loaded = load_host(path)
    assert loaded.values()[VALUE].dtype is not None
    assert path.read_bytes() == before


def test_a_path_that_exists_is_kept(tmp_path, graft_into):
    folder = graft_into(HOST, HOOK, modes=["tap"])
    before = (folder.folder / "host.json").read_bytes()
    with pytest.raises(ExportError, match="exists. Choose another path"):
        graft_into(HOST, HOOK, modes=["features"])
    (folder.folder / "saes" / HOOK / "note.txt").write_text("mine")
    with pytest.raises(ExportError, match=f"files that are not part of its artifact: saes/{HOOK}/note.txt"):
        graft_into(HOST, HOOK, modes=["features"], overwrite=True)
    assert (folder.folder / "host.json").read_bytes() == before
    (folder.folder / "saes" / HOOK / "note.txt").unlink()
    assert set(graft_into(HOST, HOOK, modes=["features"], overwrite=True).manifest.graphs) == {"features"}
    assert not (folder.folder / "tap.onnx").exists()


def test_a_folder_is_taken_for_a_hugging_face_model_only_if_it_is_called_one(tmp_path):
    with pytest.raises(GraftError, match=r"is a folder\. Give its ONNX file, or hf:.* to export the"):
        load_host(tmp_path)


def test_a_model_on_the_hub_is_not_downloaded():
    with pytest.raises(GraftError, match="Models on the Hub are not downloaded; get the folder with: hf download"):
        load_model("sentence-transformers/all-MiniLM-L6-v2")
