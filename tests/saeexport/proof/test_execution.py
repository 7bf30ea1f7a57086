"""How a proof is run: each product of the original once, each graph loaded once, one graph with matrices at a time."""

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from runtime import ArtifactError, ParityError, SAEError
from runtime.artifact.contracts import ACTIVATE, CONTRACTS
from runtime.parity.running import KeptGraphs
from runtime.session.interventions import Intervention
from runtime.session.loading import LoadedGraphs
from saeexport import _export as exporting
from saeexport import export
from saeexport.original import running
from saeexport.original.precision import HalfProducts, InFloat64
from saeexport.original.running import all_hooks, computing, edited_hooks, run_to_hook, torch_hook
from saeexport.proof.evaluator import HalfGraphs
from tests.support.breaking import edit_graph
from tests.support.samples import HOOKS, make_sae, normal
from tests.support.zoo import ARCHITECTURES, D_IN, sae_of, target_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
EDITS = Intervention(np.array([3, 7]), np.array([[0.0, 0.5]]), np.array([[1.5, 0.25]]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("with_error", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stage_alone_computes_what_a_whole_pass_computes(architecture, with_error, dtype):
    sae = sae_of(architecture, use_error_term=with_error).to(dtype)
    x = torch.from_numpy(normal(20, D_IN)).to(dtype).float().numpy()
    target = target_of(sae, 20)
    target = None if target is None else torch.from_numpy(target).to(dtype).float().numpy()
    clean = all_hooks(sae, x, target)
    assert running._stage(sae, POST, RECONS) is not None
    found, expected = edited_hooks(sae, clean, target, EDITS), all_hooks(sae, x, target, (POST, torch_hook(EDITS)))
    assert list(found) == list(expected)
    for hook, y in expected.items():
        np.testing.assert_array_equal(found[hook], y, err_msg=hook)
    assert (found[RECONS] != clean[RECONS]).any()
    for given, wanted in ((PRE, POST), (POST, RECONS)):
        np.testing.assert_array_equal(run_to_hook(sae, [x, target], wanted, given, clean[given]), clean[wanted])


def test_a_hook_function_of_the_user_takes_part():
    sae, x = make_sae(), normal(5, 6)
    clean = all_hooks(sae, x, None)
    sae.hook_sae_recons.add_hook(lambda tensor, hook: 2 * tensor)
    assert running._stage(sae, POST, RECONS) is None
    np.testing.assert_array_equal(edited_hooks(sae, clean, None, EDITS)[RECONS] / 2,
                                  all_hooks(make_sae(), x, None, (POST, torch_hook(EDITS)))[RECONS])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_half_precision_are_rounded_once(dtype):
    x, w, b = (torch.from_numpy(normal(*shape, seed=i)).to(dtype) for i, shape in enumerate([(9, 64), (64, 40), (40,)]))
    expected = (x.float() @ w.float()).to(dtype)
    with HalfProducts():
        products = [x @ w, torch.einsum("ij,jk->ik", x, w), torch.nn.functional.linear(x, w.T), torch.mm(x, w)]
        sums = [torch.addmm(b, x, w), torch.nn.functional.linear(x, w.T, bias=b)]
        wide = x.float() @ w.float()
        assert (x + x).dtype == dtype
    assert all(torch.equal(y, expected) for y in products)
    assert all(torch.equal(y, (x.float() @ w.float() + b.float()).to(dtype)) for y in sums)
    assert wide.dtype == torch.float32
    truth = x.double() @ w.double()
    own, ours = (float((y.double() - truth).norm()) for y in (x @ w, expected))
    assert ours == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_chain_of_products_is_rounded_as_pytorch_rounds_it(dtype):
    """PyTorch multiplies two factors at a time and rounds in between."""
    factors = [torch.from_numpy(normal(*shape, seed=i)).to(dtype) for i, shape in enumerate([(9, 64), (64, 40), (40,)])]
    with HalfProducts():
        found = torch.einsum("ij,jk,k->ik", *factors)
    assert torch.equal(found, torch.einsum("ij,jk,k->ik", *factors))


def test_what_onnx_runtime_refuses_in_half_precision_is_said_in_an_error_of_ours(tmp_path):
    path = export(make_sae(), tmp_path / "sae", normal(40, 6), dtype="float16").path
    with pytest.raises(SAEError, match="ONNX Runtime cannot run it with casts around each operator: "):
        HalfGraphs().run("model", path / "model.onnx", {"input": normal(3, 7).astype(np.float16)})
    edit_graph(lambda model: setattr(model.graph.node[0], "op_type", "Softmax13"))(path / "model.onnx")
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot load it with casts around each operator: "):
        HalfGraphs().run("model", path / "model.onnx", {"input": normal(3, 6).astype(np.float16)})


def test_the_truth_of_half_precision_is_in_float64():
    sae, x = sae_of("standard", apply_b_dec_to_input=False).to(torch.float16), normal(9, D_IN)
    x = x.astype(np.float16)
    with InFloat64(), computing(sae):
        found = run_to_hook(sae, [x, None], PRE)
    state = {name: p.detach().double().numpy() for name, p in sae.named_parameters()}
    np.testing.assert_allclose(found, x.astype(np.float64) @ state["W_enc"] + state["b_enc"], rtol=1e-13, atol=1e-13)


def test_a_portable_graph_in_half_precision_for_one_number_of_tokens_is_seen(tmp_path, monkeypatch):
    """No session runs it on a CPU, so that the proof has to run it in several calls itself."""
    write_graphs = exporting.write_graphs

    def for_40_tokens(model):
        (output,) = model.graph.output
        next(node for node in model.graph.node if output.name in node.output).output[0] = "any"
        shape = numpy_helper.from_array(np.array([40, 6]), "shape")
        model.graph.initializer.append(shape)
        model.graph.node.append(helper.make_node("Reshape", ["any", "shape"], [output.name]))

    def spoilt(model, config, weights):
        specs = write_graphs(model, config, weights)
        edit_graph(for_40_tokens)(weights.parent / "decode.onnx")
        return specs

    monkeypatch.setattr(exporting, "write_graphs", spoilt)
    with pytest.raises(ParityError, match=r"\n- decode: ONNX Runtime cannot run it with casts around each operator"):
        export(make_sae(), tmp_path / "sae", normal(40, 6), dtype="bfloat16")


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_each_graph_is_loaded_once_and_one_at_a_time(tmp_path, monkeypatch, architecture):
    loads, together = [], []
    load = LoadedGraphs._load

    def note(self, graph):
        loads.append(graph)
        together.append({*self.loaded, graph} - {ACTIVATE})
        return load(self, graph)

    monkeypatch.setattr(LoadedGraphs, "_load", note)
    export(sae_of(architecture), tmp_path / "sae", normal(64, D_IN))
    assert sorted(loads) == sorted(CONTRACTS)
    assert max(map(len, together)) == 1


def test_a_graph_is_kept_until_another_takes_its_place():
    released = []
    kept = KeptGraphs(released.append)
    for graph in ("model", "activate", "model", "activate", "decode", "decode", "model"):
        kept.make_room(graph)
    assert released == ["model", "decode"]
