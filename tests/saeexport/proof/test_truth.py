"""The truth in float64, uncertain features, and tokens that are left out because they prove nothing."""

import copy
import importlib
import weakref

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from runtime import ParityError, SAESession
from saeexport import ExportError, HookedSAE, export
from saeexport.graphs import write as graphs
from saeexport.original import precision
from saeexport.original.precision import InFloat64
from saeexport.proof.truth import reference_of
from tests.support.samples import HOOKS, make_sae, normal
from tests.support.zoo import ARCHITECTURES, D_IN, sae_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
exporting = importlib.import_module("saeexport._export")
write_weights = exporting._write_weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_operations_in_float64_are_those_of_a_copy_in_float64(architecture):
    sae, x = sae_of(architecture), torch.from_numpy(normal(9, D_IN))
    wide = copy.deepcopy(sae).double()
    with torch.no_grad():
        expected, expected_cache = wide.run_with_cache(x.double())
        with InFloat64():
            output, cache = sae.run_with_cache(x)
    assert torch.equal(output, expected)
    assert all(torch.equal(cache[hook], y) for hook, y in expected_cache.items() if hook != INPUT)
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.float32}


def test_float64_holds_one_matrix_at_a_time(monkeypatch):
    """The widened copy of a tensor is freed before the next operation."""
    sae, widen, made, alive = make_sae(d_in=64, d_sae=512), precision._widened, [], []

    def note(tensor):
        alive.append(sum(copy() is not None for copy in made))
        wide = widen(tensor)
        if wide.numel() == 64 * 512:
            made.append(weakref.ref(wide))
        return wide

    monkeypatch.setattr(precision, "_widened", note)
    with torch.no_grad(), InFloat64():
        sae(torch.from_numpy(normal(2, 64)))
    assert len(made) >= 4
    assert max(alive) <= 1


def test_a_relu_has_no_threshold_that_matters():
    """ReLU is continuous: a preactivation within rounding of zero gives an activation of that size."""
    sae, x = make_sae(), torch.from_numpy(normal(40, 6))
    with torch.no_grad():
        sae.b_enc[5] -= sae.preactivations(x[7])[5]
        sae.b_enc[6] -= sae.preactivations(x[8])[6]
    assert reference_of(sae, x.numpy()).tokens == 40


def test_a_token_whose_values_cancel_is_left_out():
    """Its error would become the budget of all tokens."""
    sae, x = make_sae(), torch.from_numpy(normal(40, 6))
    with torch.no_grad():
        sae.b_enc -= sae.preactivations(x[7])
    reference = reference_of(sae, x.numpy())
    assert (reference.tokens, reference.left_out) == (39, 1)
    assert max(budget.token for budget in reference.budgets.values()) < 1e-4


def test_a_token_that_is_only_far_less_exact_than_the_rest_is_left_out_too():
    sae, x = make_sae(), torch.from_numpy(normal(40, 6))
    with torch.no_grad():
        sae.b_enc -= 0.999 * sae.preactivations(x[7])
    reference = reference_of(sae, x.numpy())
    assert (reference.tokens, reference.left_out) == (39, 1)
    assert max(budget.token for budget in reference.budgets.values()) < 1e-5


@pytest.mark.parametrize("architecture", ["jumprelu", "gated", "topk", "abstopk", "standard"])
def test_a_feature_that_is_wrongly_on_is_seen(tmp_path, monkeypatch, architecture):
    """Leaving tokens out does not hide other defects: a graph with another threshold, gate or k is refused."""
    wrong = sae_of(architecture)
    with torch.no_grad():
        if architecture == "jumprelu":
            wrong.threshold *= 1.05
        elif architecture == "gated":
            wrong.b_gate += 0.05
        elif "topk" in architecture:
            wrong.cfg.k += 1
        else:
            wrong.b_enc += 0.05
    trace = graphs.trace
    monkeypatch.setattr(graphs, "trace", lambda sae, config: trace(wrong, config))
    monkeypatch.setattr(exporting, "_write_weights", lambda state, path: write_weights(wrong.state_dict(), path))
    with pytest.raises((ParityError, ExportError), match="hook_sae_acts_p"):
        export(sae_of(architecture), tmp_path / "sae", normal(64, D_IN))


class InPlace(HookedSAE):
    """It fills a new tensor in place, as many top-k SAEs do."""

    def activation(self, acts_pre, x):
        values, features = torch.relu(acts_pre).topk(5, dim=-1)
        acts = torch.zeros(acts_pre.shape[0], self.cfg.d_sae)
        acts.scatter_(-1, features, values)
        return acts

    def decode(self, acts_post, x=None):
        out = torch.zeros(acts_post.shape[0], self.cfg.d_in)
        out.add_(acts_post @ self.W_dec + self.b_dec)
        return out


class OtherInFloat64(HookedSAE):
    """An operator of its own may have another kernel for float64."""

    def preactivations(self, x):
        pre = super().preactivations(x)
        return 1.01 * pre if x.dtype == torch.float64 else pre


class Dropping(HookedSAE):
    """In training mode, in which modules start, it drops half of the input."""

    def preactivations(self, x):
        return super().preactivations(torch.nn.functional.dropout(x, 0.5, self.training))


class Steep(HookedSAE):
    def activation(self, acts_pre, x):
        return torch.expm1(3 * torch.relu(acts_pre)) + 20 * torch.relu(acts_pre)


class Crooked(HookedSAE):
    """Its reconstruction depends on more than the activations."""

    def run(self, input, target):
        self.hook_sae_input(input)
        pre = self.hook_sae_acts_pre(self.preactivations(input))
        acts = self.hook_sae_acts_post(torch.relu(pre))
        return self.hook_sae_output(self.hook_sae_recons(self.decode(acts, input) + pre[:, : self.cfg.d_in]))


def users(kind, **more):
    sae = kind(dict(d_in=D_IN, d_sae=64, hook_name="h", seed=0, device="cpu", use_error_term=False))
    with torch.no_grad():
        sae.b_enc += 0.1
    return sae


@pytest.mark.parametrize("kind", [InPlace, Dropping, Steep])
def test_what_a_user_s_class_does_is_proved_with_a_budget_of_rounding(tmp_path, kind):
    sae, x = users(kind), normal(50, D_IN)
    artifact = export(sae, tmp_path / "sae", x)
    assert max(hook.budget.token for hook in artifact.manifest.parity.hooks.values()) < 1e-3
    assert artifact.manifest.parity.left_out <= 2
    assert sae.training
    with SAESession(artifact, "cpu") as session, torch.no_grad():
        np.testing.assert_allclose(session(x), sae.eval()(torch.from_numpy(x)), rtol=1e-4, atol=1e-3)


def test_an_original_that_differs_in_float64_is_refused(tmp_path):
    message = "PyTorch's own error .* on most tokens it is more than the 1e-03 that rounding explains"
    with pytest.raises(ParityError, match=message):
        export(users(OtherInFloat64), tmp_path / "sae", normal(50, D_IN))


class Scalar(HookedSAE):
    """It has a scalar parameter."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.gain = torch.nn.Parameter(torch.tensor(1.5))

    def decode(self, acts_post, x=None):
        return super().decode(acts_post) * self.gain


def test_a_parameter_without_dimensions_is_stored(tmp_path):
    sae = users(Scalar)
    path = export(sae, tmp_path / "sae", normal(50, D_IN)).path
    stored = load_file(path / "weights.safetensors")["gain"]
    assert (stored.shape, float(stored)) == ((), 1.5)


def test_a_reconstruction_that_bypasses_the_activations_is_refused(tmp_path):
    with pytest.raises(ExportError, match="hook_sae_recons of this Crooked depends on hook_sae_acts_pre other than"):
        export(users(Crooked), tmp_path / "sae", normal(50, D_IN))


def test_how_many_are_left_out_is_recorded(tmp_path):
    sae, x = make_sae(), torch.from_numpy(normal(40, 6))
    with torch.no_grad():
        sae.b_enc -= sae.preactivations(x[7])
    parity = export(sae, tmp_path / "sae", x).manifest.parity
    assert (parity.tokens, parity.left_out) == (39, 1)


def test_a_token_that_cannot_be_normalised_is_named(tmp_path):
    x = normal(20, D_IN)
    x[3] = 0
    with pytest.raises(ParityError, match=r"hook_sae_acts_pre is nan at \[3, 0\]: .* \(a token of zeros has no norm"):
        export(sae_of("standard", normalize_activations="constant_norm_rescale"), tmp_path / "sae", x)
