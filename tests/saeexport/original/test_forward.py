"""The check of the forward pass: what a class may not do with its hooks."""

from contextlib import nullcontext

import pytest
import torch

from saeexport import ExportError, HookedSAE
from saeexport.original.exportable import config_of
from saeexport.original.forward import check_edits, check_forward
from tests.support.samples import HOOKS, make_sae, normal
from tests.support.zoo import ARCHITECTURES, sae_of

FIRST, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS


def make(kind, **options):
    given = make_sae(**options)
    sae = kind(given.cfg)
    sae.load_state_dict(given.state_dict())
    return sae


def check(sae):
    config = config_of(sae, None)
    check_forward(sae, config)
    check_edits(sae, config, normal(40, config.d_in), normal(40, sae.cfg.d_out) if config.takes_target else None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_subclass_of_every_architecture_passes(architecture, dtype):
    sae = sae_of(architecture, dtype=dtype)
    sae.__class__ = type("Custom", (type(sae),), {})
    for use_error_term in (False, True):
        sae.cfg.use_error_term = use_error_term
        check(sae)


class Fails(HookedSAE):
    def activation(self, acts_pre, x):
        raise RuntimeError("no such feature")


class ChangesItsInput(HookedSAE):
    def preactivations(self, x):
        return super().preactivations(x.mul_(2))


class FiresInAnotherOrder(HookedSAE):
    def forward(self, input):
        self.hook_sae_input(input)
        acts_pre = self.preactivations(input)
        acts_post = self.hook_sae_acts_post(torch.relu(acts_pre))
        self.hook_sae_acts_pre(acts_pre)
        return self.hook_sae_output(self.hook_sae_recons(self.decode(acts_post, input)))


class FiresTwice(HookedSAE):
    def forward(self, input):
        super().forward(input)
        return super().forward(input)


class LeavesAHookOut(HookedSAE):
    def forward(self, input):
        recons = self.decode(self.encode(input), input)
        return self.hook_sae_output(self.hook_sae_recons(recons))


class DropsFeatures(HookedSAE):
    def activation(self, acts_pre, x):
        return torch.relu(acts_pre)[..., :8]

    def decode(self, acts_post, x=None):
        return acts_post @ self.W_dec[:8] + self.b_dec


class ActsAreBool(HookedSAE):
    def activation(self, acts_pre, x):
        return acts_pre > 0

    def decode(self, acts_post, x=None):
        return super().decode(acts_post.to(self.W_dec.dtype), x)


class ReturnsATuple(HookedSAE):
    def forward(self, input):
        return super().forward(input), None


class ScalesItsOutput(HookedSAE):
    def forward(self, input):
        return 2 * super().forward(input)


class ScalesItsInput(HookedSAE):
    def forward(self, input):
        return super().forward(2 * input)


class IsCalledDifferently(HookedSAE):
    def __call__(self, input):
        return super().__call__(2 * input)


class IsRandom(HookedSAE):
    def activation(self, acts_pre, x):
        return torch.nn.functional.dropout(torch.relu(acts_pre), 0.5)


class IgnoresActsPre(HookedSAE):
    def preactivations(self, x):
        self.kept = super().preactivations(x)
        return self.kept

    def activation(self, acts_pre, x):
        return torch.relu(self.kept)


class ChangesActsPre(HookedSAE):
    def activation(self, acts_pre, x):
        return acts_pre.relu_()


class IgnoresRecons(HookedSAE):
    def forward(self, input):
        self.hook_sae_input(input)
        acts_pre = self.hook_sae_acts_pre(self.preactivations(input))
        recons = self.decode(self.hook_sae_acts_post(self.activation(acts_pre, input)), input)
        self.hook_sae_recons(recons)
        return self.hook_sae_output(recons)


class ErrorDependsOnHooks(HookedSAE):
    def forward(self, input):
        self.hook_sae_input(input)
        acts_pre = self.hook_sae_acts_pre(self.preactivations(input))
        recons = self.hook_sae_recons(self.decode(self.hook_sae_acts_post(self.activation(acts_pre, input)), input))
        return self.hook_sae_output(recons + self.hook_sae_error(input - recons))


@pytest.mark.parametrize(
    ("kind", "use_error_term", "message"),
    [
        (Fails, True, r"Fails fails on inputs of float32 \[3, 6\]: RuntimeError: no such feature"),
        (ChangesItsInput, True, "ChangesItsInput changes its input in place; it must compute with a copy of it"),
        (FiresInAnotherOrder, False, f"in the order {FIRST}, {POST}, {PRE}.*each must fire once, .* {FIRST}, {PRE}, "),
        (FiresTwice, True, f"fire in the order .*{OUTPUT}, {FIRST}.*; each must fire once"),
        (LeavesAHookOut, False, f"fire in the order {RECONS}, {OUTPUT}; each must fire once"),
        (FiresInAnotherOrder, True, f"each must fire once, in the order .*{ERROR}, {OUTPUT}"),
        (
            DropsFeatures,
            True,
            rf"{POST} of DropsFeatures is float32 \[3, 8\] for 3 tokens; .*must be float32 \[3, 16\]",
        ),
        (ActsAreBool, True, rf"{POST} of ActsAreBool is bool \[3, 16\] for 3 tokens; .*must be float32 \[3, 16\]"),
        (ReturnsATuple, True, f"ReturnsATuple returns a tuple; it must return the tensor of {OUTPUT}"),
        (ScalesItsOutput, True, f"ScalesItsOutput returns another tensor than {OUTPUT}"),
        (ScalesItsInput, True, f"{FIRST} of ScalesItsInput is not the input that it is called with"),
        (IsCalledDifferently, True, f"{FIRST}, {PRE}, .* differ between run_with_cache and run_with_hooks .*__call__"),
        (IsRandom, True, f"{POST}, .* of IsRandom differ between run_with_cache .*Is something in it random"),
        (ChangesActsPre, True, f"{PRE} of ChangesActsPre differ between .* the tensor of a hook in place"),
        (IgnoresActsPre, False, rf"{POST} of IgnoresActsPre is the same whatever .* at {PRE}; it must .* self.{PRE}\("),
        (IgnoresRecons, False, f"{OUTPUT} of IgnoresRecons is the same whatever a hook function returns at {RECONS}"),
        (ErrorDependsOnHooks, True, f"{ERROR} of ErrorDependsOnHooks changes with what .* in a pass without hooks"),
    ],
)
def test_a_forward_pass_that_no_artifact_reproduces(kind, use_error_term, message):
    with pytest.raises(ExportError, match=message):
        check(make(kind, use_error_term=use_error_term))


class MyGated(ARCHITECTURES["gated"]):
    pass


class IgnoresActsPreBehindGates(MyGated):
    def activation(self, acts_pre, x):
        return super().activation(self.preactivations(x), x)


def with_few_open_gates(kind, dtype):
    """Return an SAE of a gated class with the gates open on a single one of 40 tokens, and these tokens."""
    sae, tokens = sae_of("gated", dtype=dtype), normal(40, 10)
    sae.__class__ = kind
    tokens[7] *= 1000
    with torch.no_grad():
        sae.b_gate.fill_(-100)
    return sae, tokens


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_closed_gates_do_not_count_as_ignored_preactivations(dtype):
    sae, tokens = with_few_open_gates(MyGated, dtype)
    config = config_of(sae, None)
    check_forward(sae, config)
    check_edits(sae, config, tokens[:7], None)  # there is no feature that could change
    check_edits(sae, config, tokens, None)
    with pytest.raises(ExportError, match=f"{POST} of IgnoresActsPreBehindGates is the same whatever"):
        check_edits(with_few_open_gates(IgnoresActsPreBehindGates, dtype)[0], config, tokens, None)


class MyOwn(HookedSAE):
    pass


class IgnoresActsPost(HookedSAE):
    def decode(self, acts_post, x=None):
        return super().decode(self.activation(self.preactivations(x), x), x)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["W_dec", "W_enc"])
def test_weights_of_zeros_do_not_count_as_ignored_tensors(name, dtype):
    for kind, fits in ((MyOwn, True), (IgnoresActsPost, False)):
        sae = sae_of("standard", dtype=dtype)
        sae.__class__ = kind
        with torch.no_grad():
            getattr(sae, name).zero_()
            sae.b_enc.fill_(0.5)
        config, tokens = config_of(sae, None), normal(40, sae.cfg.d_in)
        check_forward(sae, config)
        with nullcontext() if fits else pytest.raises(ExportError, match=f"{RECONS} .* is the same whatever .*{POST}"):
            check_edits(sae, config, tokens, None)


def test_the_check_leaves_the_sae_and_the_random_numbers_as_they_were():
    sae = make(ScalesItsOutput).train()
    state = torch.get_rng_state()
    with pytest.raises(ExportError):
        check(sae)
    assert torch.equal(torch.get_rng_state(), state)
    assert sae.training
    assert not any(module._forward_hooks for module in sae.modules())


def test_an_error_in_the_middle_of_a_pass_leaves_no_hook_functions():
    sae = make(Fails)
    with pytest.raises(ExportError) as caught:
        check(sae)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not any(module._forward_hooks for module in sae.modules())
