"""Inputs that the exporter refuses, without leaving files behind."""

import importlib
import re

import numpy as np
import pytest
import torch

from runtime import InputError, ParityError
from saeexport import ExportError, export
from saeexport.graphs import write as graphs
from saeexport.original.exportable import check_functions
from tests.support.samples import HOOKS, make_sae, normal

exporting = importlib.import_module("saeexport._export")


@pytest.mark.parametrize("hook_name", HOOKS)
@pytest.mark.parametrize("kind", ["forward", "backward", "permanent", "torch"])
def test_hooks_that_are_still_attached_are_named(tmp_path, hook_name, kind):
    sae = make_sae()
    point, zero = sae.hook_dict[hook_name], lambda tensor, hook: tensor * 0
    if kind == "torch":
        handle = point.register_forward_hook(lambda module, args, output: output * 0)
    else:
        point.add_hook(zero, dir="bwd" if kind == "backward" else "fwd", is_permanent=kind == "permanent")
    how = r"handle.remove\(\)" if kind == "torch" else r"sae.reset_hooks\(including_permanent=True\)"
    with pytest.raises(ExportError, match=rf"attached to {hook_name};.*{how}"):
        export(sae, tmp_path / "sae")
    assert not any(tmp_path.iterdir())
    handle.remove() if kind == "torch" else sae.reset_hooks(including_permanent=True)  # as the message says
    check_functions(sae)


def test_a_hook_on_the_sae_itself_is_named(tmp_path):
    sae = make_sae()
    sae.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    with pytest.raises(ExportError, match="attached to the SAE itself"):
        export(sae, tmp_path / "sae")


def test_other_modules_are_refused(tmp_path):
    with pytest.raises(ExportError, match=r"A Linear with the hooks None cannot be exported\. Pass a HookedSAE"):
        export(torch.nn.Linear(3, 3), tmp_path / "sae")


def test_a_dtype_that_cannot_be_proved_is_refused(tmp_path):
    message = r"The weights are float64; they must all be one of float32, float16, bfloat16. .*dtype=\"float32\""
    with pytest.raises(ExportError, match=message):
        export(make_sae(dtype=torch.float64), tmp_path / "sae")
    with pytest.raises(ExportError, match="dtype is 'int4'; it must be one of float32, float16, bfloat16"):
        export(make_sae(), tmp_path / "sae", dtype="int4")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    sae = make_sae()
    with torch.no_grad():
        sae.W_dec[2, 3] = torch.inf
    with pytest.raises(ExportError, match=r"W_dec is inf at \[2, 3\]; every weight must be finite"):
        export(sae, tmp_path / "sae")


@pytest.mark.parametrize(
    ("hook_name", "head_shape"),
    [("blocks.0.hook_resid_pre", (2, 3)), ("blocks.0.attn.hook_z", (2, 4)), ("blocks.0.attn.hook_z", (1, 6))],
)
def test_a_head_shape_that_does_not_fit(tmp_path, hook_name, head_shape):
    message = rf"head_shape is {re.escape(str(head_shape))}; it needs a hook_name that ends in _z"
    with pytest.raises(ExportError, match=message):
        export(make_sae(hook_name=hook_name), tmp_path / "sae", head_shape=head_shape)


@pytest.mark.parametrize(
    ("activations", "error", "message"),
    [
        (normal(4, 5), InputError, r"activations has shape \(4, 5\); this SAE takes \(\.\.\., 6\)"),
        (np.ones((4, 6)), InputError, r"activations is \(4, 6\) float64"),
        (normal(0, 6), ExportError, r"activations has shape \(0, 6\), without a token"),
        (np.full((4, 6), np.nan, np.float32), ExportError, "not finite"),
    ],
)
def test_activations_that_do_not_fit(tmp_path, activations, error, message):
    with pytest.raises(error, match=message):
        export(make_sae(), tmp_path / "sae", activations)
    assert not any(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    def spoil(model):
        for node in model.graph:
            if node.op_type == "Relu":
                node.op_type = "Abs"
        return model

    products_to_gemm = graphs.products_to_gemm
    monkeypatch.setattr(graphs, "products_to_gemm", lambda model: spoil(products_to_gemm(model)))
    with pytest.raises(ParityError, match=r"sae was not written: parity is not met(.|\n)*hook_sae_acts_post"):
        export(make_sae(), tmp_path / "sae")
    assert not any(tmp_path.iterdir())


def test_a_graph_with_outputs_in_another_order_is_not_written(tmp_path, monkeypatch):
    extract = graphs.extract

    def reorder(model, inputs, outputs):
        return extract(model, inputs, outputs[::-1])

    monkeypatch.setattr(graphs, "extract", reorder)
    with pytest.raises(ExportError, match=f"model.onnx has the outputs {', '.join(HOOKS[::-1])}; they must be"):
        export(make_sae(), tmp_path / "sae")
    assert not any(tmp_path.iterdir())


def test_a_graph_that_is_not_valid_is_not_written(tmp_path, monkeypatch):
    describe = graphs.describe

    def spoil(model, *args):
        model.graph[0].op_type = "NoSuchOperator"
        return describe(model, *args)

    monkeypatch.setattr(graphs, "describe", spoil)
    with pytest.raises(ExportError, match="model.onnx is not valid ONNX"):
        export(make_sae(), tmp_path / "sae")
    assert not any(tmp_path.iterdir())
