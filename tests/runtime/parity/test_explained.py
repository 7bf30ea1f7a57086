"""What explains the decisions of a graph that does not show its preactivations, where the truth's are exactly zero."""

import pytest
import torch

from runtime.parity.decisions import follow_graph
from runtime.parity.judge import judge
from saeexport.proof.decisions import stages_of
from saeexport.proof.truth import reference_of
from tests.support.samples import HOOKS, normal
from tests.support.zoo import D_IN, sae_of

PRE, POST = HOOKS[1:3]


@pytest.mark.parametrize(("architecture", "sign"), [("standard", 1), ("jumprelu", 1), ("abstopk", 1), ("abstopk", -1)])
@pytest.mark.parametrize(("part", "passes"), [(0.1, True), (3.0, False)], ids=["within", "beyond"])
def test_a_preactivation_of_exactly_zero_may_be_on_by_a_rounding(architecture, sign, part, passes):
    sae, x = sae_of(architecture), normal(40, D_IN)
    with torch.no_grad():
        sae.W_enc[:, 5] = 0.0
        sae.b_enc[5] = 0.0
        if architecture == "jumprelu":
            sae.threshold[5] = 0.0
        if architecture == "abstopk":
            sae.cfg.k = sae.cfg.d_sae  # every feature is on, unless it is 0
    reference = reference_of(sae, x)
    assert not reference.truth[PRE][:, 5].any()
    y = reference.original[POST].copy()
    assert y[7, 5] == 0
    y[7, 5] = sign * part * reference.acts_pre_tolerance[7, 5]
    outputs = {POST: y}
    followed = follow_graph(reference, outputs, stages_of(sae, reference))
    assert (judge("acts", [POST], outputs, followed)[0].failures == ()) == passes
