"""Every architecture: its equations, and its export, hooks and interventions."""

import math

import numpy as np
import onnx
import pytest
import torch
from transformer_lens.hook_points import HookPoint

import saeexport
from runtime import Ablate, Clamp, InputError, Intervention, SAESession, Scale, read_artifact
from saeexport import HookedSAE, export, load
from saeexport.original.exportable import architecture_of
from saeexport.original.hooked_sae import HookedRootModule
from saeexport.original.running import torch_hook
from tests.support.close import assert_hooks_close
from tests.support.samples import HOOKS, normal
from tests.support.zoo import CASES, D_IN, D_SAE, sae_of, target_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def case(request, artifact_of):
    """An SAE and a session of its artifact."""
    name, more = request.param
    with SAESession(artifact_of(name, **more).path, "cpu") as session:
        yield sae_of(name, **more), session


# The equations, from the papers, in NumPy


def equations(sae, x, target=None):
    """Return (acts_pre, acts_post, recons) of flat `x` in float64, sharing no code with the classes."""
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in sae.state_dict().items()}
    x, mean, size = x.astype(np.float64), 0.0, 1.0
    c = x
    if sae.cfg.normalize_activations == "layer_norm":
        mean, size = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        c = (x - mean) / (size + 1e-5)
    elif sae.cfg.normalize_activations == "constant_norm_rescale":
        size = np.linalg.norm(x, axis=1, keepdims=True) / math.sqrt(D_IN)
        c = x / size
    if sae.cfg.apply_b_dec_to_input:
        c = c - w["b_dec"]
    kind = sae.architecture
    if kind == "gated":
        pre = c @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"]
        post = np.where(c @ w["W_enc"] + w["b_gate"] > 0, np.maximum(pre, 0), 0)
    else:
        pre = c @ w["W_enc"] + w["b_enc"]
        post = np.maximum(pre, 0)
    if "jumprelu" in kind:
        post = np.where(pre > w["threshold"], post, 0)
    if "topk" in kind:
        size_of = np.abs(pre) if kind == "abstopk" else pre
        kept = size_of >= np.sort(size_of, axis=1)[:, [-sae.cfg.k]]
        post = np.where(kept, pre if kind == "abstopk" else post, 0)
    recons = (post @ w["W_dec"] + w["b_dec"]) * size + mean
    if "skip" in kind:
        recons = recons + x @ w["W_skip"].T
    return pre, post, recons


def test_it_computes_what_the_papers_say(case):
    sae, _ = case
    x, target = normal(20, D_IN, seed=8), target_of(sae, 20)
    with torch.no_grad():
        inputs = [torch.from_numpy(array) for array in (x, target) if array is not None]
        _, cache = sae.run_with_cache(*inputs)
    pre, post, recons = equations(sae, x)
    error = (x if target is None else target) - recons if ERROR in cache else None
    expected = {INPUT: x, PRE: pre, POST: post, RECONS: recons, ERROR: error, OUTPUT: recons}
    expected[OUTPUT] = recons + error if sae.cfg.use_error_term else recons
    assert list(cache) == [hook for hook in HOOKS if sae.cfg.use_error_term or hook != ERROR]
    assert_hooks_close(cache, {hook: expected[hook] for hook in cache})
    assert 0.02 < (post != 0).mean() < 0.8


@pytest.mark.parametrize("kind", ["jumprelu", "jumprelu_transcoder"])
def test_the_threshold_itself_is_off(kind):
    sae = sae_of(kind)
    pre = sae.threshold.detach() + torch.tensor([[-1e-3], [0.0], [1e-3]])
    post = sae.activation(pre, torch.zeros(3, D_IN))
    assert (post != 0).all(dim=1).tolist() == [False, False, True]
    assert torch.equal(post[2], pre[2])


def test_topk_keeps_the_positive_ones_of_the_k_largest():
    sae = sae_of("topk", k=3)
    pre = torch.tensor([5.0, -1.0, 3.0, 4.0, 2.0]).repeat(1, 1)
    kept = torch.zeros(1, D_SAE).fill_(-9.0)
    kept[:, :5] = pre
    assert sae.activation(kept, None)[0, :5].tolist() == [5, 0, 3, 4, 0]
    assert sae.activation(kept - 4.5, None)[0, :5].tolist() == [0.5, 0, 0, 0, 0]
    assert sae_of("abstopk", k=3).activation(kept, None).abs().sum() == 27


def test_a_gate_is_not_a_magnitude():
    sae = sae_of("gated")
    with torch.no_grad():
        sae.b_gate[:24], sae.b_gate[24:], sae.b_mag[:] = 100.0, -100.0, 2.0
        sae.W_enc *= 1e-3
        post = sae.encode(torch.zeros(1, D_IN))
    np.testing.assert_allclose(post[0], [2.0] * 24 + [0.0] * 24, atol=1e-2)


# The artifact


def test_the_session_is_the_original(case):
    sae, session = case
    x, target = normal(4, 5, D_IN, seed=8), target_of(sae, 4, 5)
    with torch.no_grad():
        inputs = [torch.from_numpy(array) for array in (x, target) if array is not None]
        expected, expected_cache = sae.run_with_cache(*inputs)
    output, cache = session.run_with_cache(x, target=target)
    assert list(cache) == list(expected_cache)
    assert_hooks_close({**cache, "the output": output}, {**expected_cache, "the output": expected})
    np.testing.assert_array_equal(session(x, target), output)
    np.testing.assert_array_equal(session.encode(x), cache[POST])
    np.testing.assert_allclose(session.decode(cache[POST], x), cache[RECONS], atol=1e-5)


def test_the_smallest_graph_that_computes_it_is_run(case):
    """There is one product per matrix: those of the error term's second pass and of a gate are merged."""
    sae, session = case
    model = onnx.load(session.artifact.path / "model.onnx", load_external_data=False)
    ops = [node.op_type for node in model.graph.node]
    products = sum(parameter.ndim == 2 for parameter in sae.parameters())
    assert ops.count("Gemm") + ops.count("MatMul") == products
    assert "Einsum" not in ops
    assert ops.count("TopK") == ("topk" in sae.architecture)
    external = {tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    assert external == set(sae.state_dict())  # nothing of a parameter was computed beforehand
    constants = [tensor for tensor in model.graph.initializer if tensor.name not in external]
    assert all(math.prod(tensor.dims) <= 2 for tensor in constants)  # numbers, axes, the targets of reshapes


def test_edits_and_functions_are_those_of_the_original(case):
    sae, session = case
    x, target = normal(16, D_IN, seed=9), target_of(sae, 16)
    edits = {1: Ablate(), 7: Clamp(1.5), 30: Scale(-2.0)}
    inputs = [torch.from_numpy(array) for array in (x, target) if array is not None]
    with torch.no_grad(), sae.hooks(fwd_hooks=[(POST, torch_hook(Intervention.of(edits)))]):
        _, expected = sae.run_with_cache(*inputs)
    _, cache = session.steer(x, edits, target=target)
    assert_hooks_close(cache, expected)

    def double(tensor, hook):
        return tensor * 2

    for hook in HOOKS[1:]:
        with torch.no_grad(), sae.hooks(fwd_hooks=[(hook, double)]):
            _, expected = sae.run_with_cache(*inputs)
        with session.hooks([(hook, double)]):
            _, cache = session.run_with_cache(x, target=target)
        for name, y in expected.items():
            np.testing.assert_allclose(cache[name], y, rtol=0, atol=5e-5, err_msg=f"{name} with a function at {hook}")


def test_it_is_its_own_checkpoint(case):
    sae, session = case
    again = load(session.artifact.path)
    assert type(again) is type(sae)
    assert again.cfg.to_dict() == sae.cfg.to_dict()
    assert all(torch.equal(y, again.state_dict()[name]) for name, y in sae.state_dict().items())
    saeexport.assert_parity(session.artifact.path, device="cpu")
    saeexport.assert_parity(session.artifact.path, sae, normal(30, D_IN), "cpu", targets=target_of(sae, 30))


def test_what_the_decoder_needs_is_asked_for():
    for case in ("standard", "layer_norm", "skip_transcoder"):
        sae = sae_of("standard", normalize_activations=case) if case == "layer_norm" else sae_of(case)
        if case != "standard":
            with pytest.raises(InputError, match="decode needs the input x"):
                sae.decode(torch.zeros(2, D_SAE))


def test_the_session_says_that_its_decoder_needs_the_input(tmp_path):
    path = export(sae_of("standard", normalize_activations="layer_norm"), tmp_path / "sae").path
    with SAESession(path, "cpu") as session:
        acts = session.encode(normal(3, D_IN))
        for x in (None, normal(4, D_IN)):
            message = r"also reads the input, but .* decode\(acts_post, x\) with an x of shape \(3, 10\)"
            with pytest.raises(InputError, match=message):
                session.decode(acts, x)


# An SAE that a user wrote


class Squared(HookedRootModule):
    """A custom class without code of saeexport: activations are the squares of positive preactivations."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        draws = torch.Generator().manual_seed(0)
        self.encoder = torch.nn.Linear(D_IN, D_SAE)
        self.W_dec = torch.nn.Parameter(torch.randn(D_SAE, D_IN, generator=draws) / 9)
        for name in HOOKS:
            setattr(self, name, HookPoint())
        self.setup()

    def forward(self, x):
        self.hook_sae_input(x)
        pre = self.hook_sae_acts_pre(self.encoder(x))
        acts = self.hook_sae_acts_post(torch.relu(pre).square())
        recons = self.hook_sae_recons(acts @ self.W_dec)
        if not self.cfg.use_error_term:
            return self.hook_sae_output(recons)
        clean = torch.relu(self.encoder(x)).square() @ self.W_dec
        return self.hook_sae_output(recons + self.hook_sae_error((x - clean).detach()))


@pytest.mark.parametrize("use_error_term", [True, False])
def test_an_sae_that_a_user_wrote(tmp_path, use_error_term):
    class Config:
        d_in, d_sae, hook_name = D_IN, D_SAE, "blocks.0.hook_resid_pre"

    Config.use_error_term = use_error_term
    torch.manual_seed(0)
    sae = Squared(Config())
    path = export(sae, tmp_path / "sae", normal(50, D_IN)).path
    assert read_artifact(path).manifest.sae.architecture == architecture_of(sae) == "custom:Squared"
    saeexport.assert_parity(path, sae, device="cpu")
    x = normal(9, D_IN)
    with torch.no_grad(), sae.hooks(fwd_hooks=[(POST, torch_hook(Intervention.of({3: Clamp(2.0)})))]):
        expected, _ = sae.run_with_cache(torch.from_numpy(x))
    with SAESession(path, "cpu") as session:
        np.testing.assert_allclose(session.steer(x, {3: Clamp(2.0)})[0], expected, atol=1e-5)
    with pytest.raises(saeexport.CheckpointError, match="Squared.*load_state_dict"):
        load(path)
    with pytest.raises(saeexport.CheckpointError, match="Squared.*load_state_dict"):
        saeexport.verify(path, device="cpu")


def test_a_subclass_is_not_taken_for_its_parent(tmp_path):
    class Thresholded(HookedSAE):
        def activation(self, acts_pre, x):
            return torch.relu(acts_pre) * (acts_pre > 0.5)

    sae = Thresholded(dict(d_sae=D_SAE, d_in=D_IN, hook_name="h", seed=0, device="cpu"))
    path = export(sae, tmp_path / "sae", normal(50, D_IN)).path
    assert read_artifact(path).manifest.sae.architecture == "custom:Thresholded"
    saeexport.assert_parity(path, sae, device="cpu")
