"""Budgets for GPUs that round the factors of float32 products to TF32, tested with an emulation on the CPU."""

import numpy as np
import pytest
import torch

import runtime
from runtime.arrays.dtypes import rounded
from runtime.parity import verify
from runtime.parity.decisions import follow_graph
from runtime.parity.golden import load_golden
from runtime.parity.judge import judge
from saeexport import export
from saeexport.original.precision import InTF32, _to_tf32
from saeexport.original.running import all_hooks
from saeexport.proof.decisions import stages_of
from saeexport.proof.truth import for_tf32, reference_of, run_in_tf32, steered_reference_of, typical_intervention
from tests.support.samples import HOOKS, TINY, make_sae, normal
from tests.support.zoo import ARCHITECTURES, D_IN, sae_of, target_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS


def references(architecture, tokens=64, **more):
    """Return an SAE with its references, in float32 and in TF32."""
    sae = sae_of(architecture, **more)
    clean = reference_of(sae, normal(tokens, D_IN), target_of(sae, tokens))
    steered = steered_reference_of(sae, clean, typical_intervention(clean))
    return sae, steered, for_tf32(sae, steered, run_in_tf32(sae, steered))


def failures(outputs, reference):
    hooks = [hook for hook in HOOKS if hook in reference.original]
    return [failure for verdict in judge("model", hooks, outputs, reference) for failure in verdict.failures]


def test_tf32_has_ten_bits_of_mantissa_and_rounds_to_the_nearest_even():
    for value, expected in ((1 + 2**-10, 1 + 2**-10), (1 + 2**-11, 1.0), (1 + 3 * 2**-11, 1 + 2**-9),
                            (1 + 2**-11 + 2**-20, 1 + 2**-10), (-1 - 2**-12, -1.0), (0.0, 0.0)):  # fmt: skip
        assert _to_tf32(torch.tensor(value)).item() == expected


@pytest.mark.parametrize("product", [
    lambda x, w: x @ w, lambda x, w: torch.einsum("ab,bc->ac", x, w), lambda x, w: torch.nn.functional.linear(x, w.T),
    lambda x, w: torch.addmm(torch.zeros(5), x, w), torch.mm,
])  # fmt: skip
def test_every_product_is_emulated_and_nothing_else(product):
    x, w = torch.from_numpy(normal(4, 6)), torch.from_numpy(normal(6, 5, seed=2))
    with InTF32():
        found, total = product(x, w), x + 1
    assert torch.equal(found, product(_to_tf32(x), _to_tf32(w)))
    assert torch.equal(total, x + 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_tf32_computes_passes_its_budgets_and_fails_those_of_float32(architecture):
    sae, steered, tf32 = references(architecture, use_error_term=True)
    with InTF32():
        outputs = all_hooks(sae, steered.original[INPUT], steered.target)
        followed = follow_graph(tf32.clean, outputs, stages_of(sae, tf32.clean))
    assert failures(outputs, followed) == []
    assert failures(outputs, steered.clean)
    for hook in tf32.truth:
        assert tf32.budgets[hook].token > steered.budgets[hook].token


def test_what_bfloat16_computes_fails_the_budgets_of_tf32():
    _, _, tf32 = references("standard")
    sae = sae_of("standard")
    state = {name: tensor.detach().numpy() for name, tensor in sae.named_parameters()}
    centered = tf32.original[INPUT] - state["b_dec"]
    pre = rounded(centered, "bfloat16") @ rounded(state["W_enc"], "bfloat16") + state["b_enc"]
    outputs = {**tf32.clean.original, PRE: pre, POST: np.maximum(pre, 0)}
    assert any(PRE in failure for failure in failures(outputs, tf32.clean))


def test_more_gates_are_uncertain_in_tf32():
    _, steered, tf32 = references("gated", tokens=500)
    assert tf32.clean.is_uncertain.sum() > steered.clean.is_uncertain.sum()
    assert tf32.clean.is_uncertain.mean() < 0.05
    assert tf32.clean.flips.sum() > steered.clean.flips.sum()


def test_they_are_recorded_and_read_back(tmp_path):
    sae, x = sae_of("gated"), normal(60, D_IN)
    artifact = export(sae, tmp_path / "sae", x)
    clean = reference_of(sae, x)
    in_float32 = steered_reference_of(sae, clean, typical_intervention(clean))
    measured = run_in_tf32(sae, in_float32)
    steered = for_tf32(sae, in_float32, measured)
    parity, golden = artifact.manifest.parity, load_golden(artifact, "tf32")
    for recorded, reference, ran, read in (
        (parity.tf32, steered.clean, measured.clean, golden.clean),
        (parity.tf32_steered, steered, measured, golden),
    ):
        assert {hook: record.budget for hook, record in recorded.items()} == reference.budgets == read.budgets
        assert all(record.original == ran.errors(hook, ran.original[hook]) for hook, record in recorded.items())
    np.testing.assert_array_equal(golden.clean.is_uncertain, steered.clean.is_uncertain)
    assert load_golden(artifact).budgets == {hook: record.budget for hook, record in parity.steered.items()}


def test_half_precision_has_no_tf32_budgets(tmp_path):
    parity = export(make_sae(), tmp_path / "sae", dtype="float16").manifest.parity
    assert (parity.tf32, parity.tf32_steered) == ({}, {})


def test_verify_takes_the_budgets_of_the_precision(monkeypatch):
    """The session gets the precision, as on a GPU, and the graphs are judged with the budgets measured for it."""
    opened, asked = verify.SAESession, []

    def on_a_cpu(path, device, *, precision, **options):
        asked.append(precision)
        return opened(path, device, **options)

    monkeypatch.setattr(verify, "SAESession", on_a_cpu)
    parity = runtime.read_artifact(TINY).manifest.parity
    for precision, record in (("tf32", parity.tf32), ("float32", parity.hooks)):
        budget = {hook: of_hook.budget for hook, of_hook in record.items()}
        report = runtime.verify(TINY, "cpu", precision)
        assert report.failures == []
        found = {verdict.hook: verdict.budget for verdict in report.verdicts if verdict.graph == "model"}
        assert {hook: found[hook] for hook in budget} == budget
    assert asked == ["tf32", "float32"]
