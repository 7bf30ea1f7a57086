"""A host that was exported in bfloat16 computes in float32 with its weights, and is proved as a float32 host is."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from runtime import Clamp, HostSession, verify
from runtime.commands.inspect_host import describe_host
from runtime.errors import GraftError
from saeexport import export, graft
from saeexport.grafting.float32 import compute_in_float32, computes_in_bfloat16
from saeexport.grafting.host import load_host
from saeexport.grafting.reference import capture, load_model
from tests.hosts.exporters import dynamo
from tests.support.explaining import explaining_sae
from tests.support.language_models import save
from tests.support.tiny_hosts import D_MODEL, TinyHost, value_at

HOOK, Z = "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"
ATOL = 1e-4
"""The epsilon of the norms is rounded to bfloat16, too, which moves logits of sizes up to 10 by 3e-5."""


def sae_in(folder, host, hook, dtype="float32"):
    activations = host.run(host.feeds())[hook].reshape(-1, D_MODEL).astype(np.float32)
    sae = explaining_sae(D_MODEL, hook, explained=0.5, center=np.median(activations, axis=0))
    export(sae, folder / f"{hook}.{dtype}", activations=activations, dtype=dtype)
    return folder / f"{hook}.{dtype}"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("hook", [HOOK, Z], ids=["resid_post", "z"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_bfloat16_host_is_proved(tmp_path, hook, dtype, fused):
    host = TinyHost(dtype="bfloat16", cache=True, fused=fused)
    sae = sae_in(tmp_path, host, hook, dtype)
    path = host.write(tmp_path / "host.onnx", external=True)
    folder = graft(path, {f"{hook}@{value_at(host, hook)}": sae}, tmp_path / "out", force=True)
    assert "bfloat16, computed in float32" in describe_host(folder)
    assert {tensor.dtype for tensor in folder.manifest.host.outputs} == {"float32"}
    assert folder.manifest.parity.tap["logits"].budget < 1e-5  # nothing is rounded to bfloat16
    assert verify(folder.folder, "cpu").failures == []
    feeds = {name: array for name, array in host.feeds().items() if not name.startswith("past")}
    mask = feeds["attention_mask"] != 0
    with HostSession(folder.folder, "cpu") as session:
        output, cache = session.run_with_cache(feeds)
        np.testing.assert_allclose(output.logits[mask], host.run(feeds)["logits"][mask], atol=ATOL)
        np.testing.assert_allclose(
            cache[hook].reshape(*mask.shape, -1)[mask], host.run(feeds)[hook].reshape(*mask.shape, -1)[mask], atol=ATOL
        )
        with session.steering({hook: {3: Clamp(8.0)}}, use_error_term=False):
            assert np.abs(session(feeds).logits[mask] - output.logits[mask]).max() > 0.1
        sequence = session.generate(np.array([5, 11, 3]), 4, edits={hook: {3: Clamp(8.0)}})
        assert sequence.shape == (1, 7)


def test_its_large_weights_stay_in_bfloat16(tmp_path):
    folders = {}
    for dtype in ("float", "bfloat16"):
        host = TinyHost(dtype=dtype)
        (tmp_path / dtype).mkdir()
        path = host.write(tmp_path / dtype / "host.onnx", external=True)
        sae = sae_in(tmp_path / dtype, host, HOOK)
        folders[dtype] = graft(path, {f"{HOOK}@{value_at(host, HOOK)}": sae}, tmp_path / f"out-{dtype}", force=True)
    model = onnx.load(folders["bfloat16"].folder / "tap.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {kinds["W_U"], kinds["W_E"]} == {onnx.TensorProto.BFLOAT16}
    sizes = {name: folder.manifest.files["host.data"].bytes for name, folder in folders.items()}
    assert sizes["bfloat16"] < sizes["float"]


def test_activations_in_a_file_may_have_been_computed_in_bfloat16(tmp_path):
    host = TinyHost(dtype="bfloat16")
    path, sae = host.write(tmp_path / "host.onnx"), sae_in(tmp_path, host, HOOK)
    x = host.run(host.feeds())[HOOK].astype(np.float32)
    draws = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    for size, name in ((0.03, "near.npz"), (0.4, "far.npz")):
        noise = size * draws * np.linalg.norm(x, axis=-1, keepdims=True) / np.linalg.norm(draws, axis=-1, keepdims=True)
        np.savez(tmp_path / name, **host.feeds(), **{f"hooks/{HOOK}": x + noise})
    made = graft(path, [sae], tmp_path / "out", reference=tmp_path / "near.npz", modes=["tap"])
    assert made.manifest.saes[0].value == value_at(host, HOOK)
    with pytest.raises(GraftError, match=r"is the tensor at the hook\. The nearest .*\(2e-01 is allowed\)"):
        graft(path, [sae], tmp_path / "other", reference=tmp_path / "far.npz", modes=["tap"])


def test_the_same_bytes_each_time(tmp_path):
    host = TinyHost(dtype="bfloat16")
    path, sae = host.write(tmp_path / "host.onnx", external=True), sae_in(tmp_path, host, HOOK)
    made = [graft(path, {f"{HOOK}@{value_at(host, HOOK)}": sae}, tmp_path / name, force=True) for name in "ab"]
    assert made[0].sha256 == made[1].sha256


def test_a_host_that_only_casts_to_bfloat16_stays_as_it_is(tmp_path):
    """It rounds on purpose, as what emulates bfloat16 does, and a CPU runs it."""
    path = TinyHost().write(tmp_path / "host.onnx")
    model = onnx.load(path)
    value = value_at(TinyHost(), HOOK)
    at = next(i for i, node in enumerate(model.graph.node) if value in node.output)
    for node in model.graph.node:
        node.input[:] = ["rounded" if name == value else name for name in node.input]
    for kind, name, to in ((value, "half", 16), ("half", "rounded", 1)):
        at += 1
        model.graph.node.insert(at, onnx.helper.make_node("Cast", [kind], [name], to=to))
    onnx.save(model, path)
    host = load_host(path)
    assert (host.is_widened, host.dtype) == (False, "bfloat16")
    assert host.values()["half"].dtype == ir.DataType.BFLOAT16


def test_constants_attributes_subgraphs_and_functions_become_float32():
    # The bits of 2, 3 and 1 are 16384, 16448 and 16256.
    text = """
        <ir_version: 10, opset_import: ["" : 20, "own" : 1]>
        g (bfloat16[n] x, bool c) => (bfloat16[n] y, bfloat16[2] r)
        <bfloat16[1] w = {16384}>
        {
            k = Constant <value = bfloat16[1] {16448}> ()
            size = Shape (x)
            filled = ConstantOfShape <value = bfloat16[1] {16256}> (size)
            float = Cast <to = 1> (x)
            back = Cast <to = 16> (float)
            chosen = If (c) <
                then_branch = t () => (bfloat16[n] a) { a = Mul (back, k) },
                else_branch = e () => (bfloat16[n] b) { b = Add (back, filled) }
            >
            twice = own.twice (chosen)
            y = Mul (twice, w)
            r = RandomNormal <dtype = 16, shape = [2]> ()
        }
        <domain: "own", opset_import: ["" : 20]>
        twice (x) => (y) { f = Cast <to = 16> (x)  y = Add (f, f) }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert computes_in_bfloat16(model)
    compute_in_float32(model)
    assert not computes_in_bfloat16(model)
    proto = ir.to_proto(model)
    fields = [line.split() for line in str(proto).splitlines()]
    assert ["data_type:", "16"] not in fields
    assert ["elem_type:", "16"] not in fields
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([1.5, -2.25], np.float32)
    for c, expected in ((True, x * 3 * 2 * 2), (False, (x + 1) * 2 * 2)):
        np.testing.assert_array_equal(session.run(["y"], {"x": x, "c": np.array(c)})[0], expected)


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama"])
def exported(request, tmp_path_factory):
    """A model that torch.onnx.export wrote in bfloat16, and the folder for transformers."""
    root = tmp_path_factory.mktemp(request.param)
    folder = save(request.param, root / "model")
    return request.param, dynamo(torch.bfloat16)(folder, root), folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_transformers_in_bfloat16_is_found_and_proved(exported, tmp_path):
    name, path, folder = exported
    hook = "blocks.1.hook_normalized_resid_post" if name == "bert" else HOOK
    feeds = {"input_ids": np.arange(3, 23).reshape(2, 10), "attention_mask": np.ones((2, 10), np.int64)}
    activations = capture(load_model(folder), feeds, [hook])[hook]
    sae = explaining_sae(activations.shape[-1], hook, 0.9, activations[0].mean(0))
    export(sae, tmp_path / "sae", activations=activations.reshape(-1, activations.shape[-1]))
    made = graft(path, [tmp_path / "sae"], tmp_path / "out", hf=folder)
    assert made.manifest.saes[0].evidence.error < 1e-4
    assert made.manifest.parity.reference == "pytorch"
    assert max(record.budget for record in made.manifest.parity.splice.values()) < 1e-3
    assert made.manifest.parity.exact


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_host_of_other_weights_is_refused(exported, tmp_path):
    name, path, folder = exported
    other = load_model(folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std() / 30)
    other.save_pretrained(tmp_path / "other")
    hook = "blocks.1.hook_normalized_resid_post" if name == "bert" else HOOK
    sae = explaining_sae(64, hook)
    export(sae, tmp_path / "sae", activations=torch.randn(64, 64))
    with pytest.raises(GraftError, match=r"is the tensor at the hook\. The nearest .*\(1e-02 is allowed\)"):
        graft(path, [tmp_path / "sae"], tmp_path / "out", hf=tmp_path / "other")
