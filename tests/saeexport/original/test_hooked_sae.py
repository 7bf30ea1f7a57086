"""The PyTorch original: its configuration, parameters, forward pass and hooks."""

import numpy as np
import pytest
import torch
from transformer_lens.hook_points import HookPoint

from runtime import InputError
from saeexport import HookedSAE, HookedSAEConfig
from tests.support import oracle
from tests.support.samples import HOOKS, make_sae, normal

CFG = dict(d_sae=16, d_in=6, hook_name="blocks.0.hook_resid_pre", device="cpu")
Z = "blocks.0.attn.hook_z"


def x_of(*shape):
    return torch.from_numpy(normal(*shape))


# Configuration and parameters


def test_takes_a_config_or_a_dict_of_its_keys():
    from_config, from_dict = HookedSAE(HookedSAEConfig(**CFG, seed=3)), HookedSAE(dict(CFG, seed=3))
    assert from_config.cfg == from_dict.cfg
    assert all(torch.equal(a, b) for a, b in zip(from_config.parameters(), from_dict.parameters(), strict=True))


def test_refuses_a_string():
    with pytest.raises(ValueError, match="HookedSAEConfig or a dict"):
        HookedSAE("gpt2-small")


def test_names_unknown_and_missing_keys():
    with pytest.raises(ValueError, match=r"unknown keys \['d_model'\] and misses \['d_sae'\]"):
        HookedSAE(dict(d_in=6, hook_name="h", d_model=3))


def test_defaults():
    cfg = HookedSAEConfig(16, 6, "h")
    assert (cfg.d_sae, cfg.d_in, cfg.use_error_term, cfg.dtype, cfg.seed) == (16, 6, False, torch.float32, None)
    assert cfg.device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_config_survives_a_dict():
    cfg = HookedSAEConfig(**CFG, seed=3, dtype=torch.float16)
    assert HookedSAEConfig.from_dict(cfg.to_dict()) == cfg


def test_a_seed_makes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    one, two, other = (HookedSAE(dict(CFG, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one.W_enc, two.W_enc)
    assert not torch.equal(one.W_enc, other.W_enc)
    assert torch.equal(torch.rand(1), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_state_dict_has_four_keys_in_the_dtype(dtype):
    state = HookedSAE(dict(CFG, dtype=dtype)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == {"W_enc": (6, 16), "W_dec": (16, 6), "b_enc": (16,), "b_dec": (6,)}
    assert {tensor.dtype for tensor in state.values()} == {dtype}


def test_biases_are_zero_and_weights_kaiming_uniform():
    sae = HookedSAE(dict(CFG, d_in=200, d_sae=300, seed=0))
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()
    for weight in (sae.W_enc, sae.W_dec):
        bound = (6 / weight.shape[1]) ** 0.5  # torch's fan_in is the second dimension
        assert 0.99 * bound < weight.abs().max() <= bound


# Forward


@pytest.mark.parametrize("use_error_term", [True, False])
def test_matches_the_equations(use_error_term):
    sae, x = make_sae(use_error_term=use_error_term), x_of(50, 6)
    truth = oracle.six_hooks(sae.state_dict(), x, use_error_term)
    output, cache = sae.run_with_cache(x)
    for hook, tensor in {**cache, "hook_sae_output": output}.items():
        np.testing.assert_allclose(tensor.detach(), truth[hook], atol=5e-6, err_msg=hook)


def test_hooks_fire_in_order_with_their_shapes():
    sae = make_sae()
    _, cache = sae.run_with_cache(x_of(2, 3, 6))
    assert list(cache) == HOOKS
    assert [tuple(tensor.shape[2:]) for tensor in cache.values()] == [(6,), (16,), (16,), (6,), (6,), (6,)]


# What is easy to get wrong, by its number in the contract


def test_1_a_returned_input_is_discarded_but_an_edit_in_place_takes_effect():
    sae, x = make_sae(), x_of(4, 6)
    clean = sae(x)
    assert torch.equal(sae.run_with_hooks(x, fwd_hooks=[("hook_sae_input", lambda t, hook: t * 0)]), clean)

    def double(tensor, hook):
        tensor.mul_(2)

    assert torch.equal(sae.run_with_hooks(x.clone(), fwd_hooks=[("hook_sae_input", double)]), sae(x * 2))


@pytest.mark.parametrize("hook_name", HOOKS[1:])
def test_1_a_returned_value_replaces_the_others(hook_name):
    sae, x = make_sae(), x_of(4, 6)
    _, clean = sae.run_with_cache(x)
    seen = {}
    with sae.hooks([(hook_name, lambda t, hook: t + 1), (hook_name, lambda t, hook: seen.update(t=t))]):
        output = sae(x)
    assert torch.equal(seen["t"], clean[hook_name] + 1)
    assert not torch.equal(output, clean["hook_sae_output"])


@pytest.mark.parametrize("hook_name", ["hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons"])
def test_2_the_error_is_that_of_the_clean_pass_bit_for_bit(hook_name):
    sae, x = make_sae(), x_of(4, 6)
    _, clean = sae.run_with_cache(x)
    with sae.hooks([(hook_name, lambda t, hook: t * 3 + 1)]):
        _, edited = sae.run_with_cache(x)
    assert torch.equal(edited["hook_sae_error"], clean["hook_sae_error"])
    assert not torch.equal(edited["hook_sae_output"], clean["hook_sae_output"])


@pytest.mark.parametrize("use_error_term", [True, False])
def test_2_the_error_carries_no_gradient(use_error_term):
    sae, x = make_sae(use_error_term=use_error_term), x_of(4, 6)
    kept = {}

    def keep(tensor, hook):
        tensor.retain_grad()
        kept["acts"] = tensor

    output = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", keep)])
    grad_output = x_of(4, 6)
    output.backward(grad_output)
    torch.testing.assert_close(kept["acts"].grad, grad_output @ sae.W_dec.T)


def test_3_without_the_error_term_its_hook_does_not_fire():
    sae = make_sae(use_error_term=False)
    _, cache = sae.run_with_cache(x_of(4, 6))
    assert list(cache) == [hook for hook in HOOKS if hook != "hook_sae_error"]
    assert list(sae.hook_dict) == HOOKS


def test_4_the_error_term_restores_the_input_up_to_rounding_and_sums_exactly():
    sae, x = make_sae(), x_of(40, 6)
    output, cache = sae.run_with_cache(x)
    torch.testing.assert_close(output, x)
    assert torch.equal(output, cache["hook_sae_recons"] + cache["hook_sae_error"])
    zero = lambda t, hook: torch.zeros_like(t)  # noqa: E731
    without_error = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_error", zero)])
    assert torch.equal(without_error, cache["hook_sae_recons"])
    without_recons = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_recons", zero)])
    assert torch.equal(without_recons, cache["hook_sae_error"])


def test_5_the_error_term_is_read_at_every_call():
    sae, x = make_sae(use_error_term=False), x_of(4, 6)
    recons = sae(x)
    sae.cfg.use_error_term = True
    torch.testing.assert_close(sae(x), x)
    sae.cfg.use_error_term = False
    assert torch.equal(sae(x), recons)


def test_6_d_in_is_tried_before_heads():
    sae = make_sae(d_in=12, hook_name=Z)
    x = x_of(5, 3, 4)
    flat = x.reshape(5, 12)
    torch.testing.assert_close(sae(x), sae(flat).reshape(5, 3, 4))
    output, cache = sae.run_with_cache(flat[:, None])
    assert output.shape == (5, 1, 12)
    assert cache["hook_sae_acts_pre"].shape == (5, 1, 16)
    assert sae.run_with_cache(x)[1]["hook_sae_acts_pre"].shape == (5, 16)


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 2), (0,), (2, 0)])
def test_7_any_leading_dimensions(lead):
    for sae, token in ((make_sae(), (6,)), (make_sae(d_in=12, hook_name=Z), (3, 4))):
        output, cache = sae.run_with_cache(x_of(*lead, *token))
        assert output.shape == (*lead, *token)
        assert cache["hook_sae_acts_post"].shape == (*lead, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_8_float32_accepts_the_dtypes_that_it_can_hold(dtype):
    sae = make_sae()
    x = (x_of(4, 6) * 3).abs().to(dtype)
    _, cache = sae.run_with_cache(x)
    assert [tensor.dtype for tensor in cache.values()] == [dtype, *[torch.float32] * 5]
    torch.testing.assert_close(cache["hook_sae_output"], x.float())


@pytest.mark.parametrize(
    ("weights", "given"),
    [
        (torch.float32, torch.float64),
        (torch.float32, torch.bool),
        (torch.float32, torch.complex64),
        (torch.float16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.float16, torch.int64),
    ],
)
def test_8_other_dtypes_raise(weights, given):
    with pytest.raises(InputError, match=f"The input is {given}; this SAE is {weights}. Pass input.to"):
        make_sae(dtype=weights)(torch.ones(4, 6).to(given))


def test_8_half_precision_accepts_its_own_dtype():
    assert make_sae(dtype=torch.float16)(torch.ones(4, 6).half()).dtype == torch.float16


def test_9_nan_passes():
    x = x_of(4, 6)
    x[1, 2] = torch.nan
    _, cache = make_sae().run_with_cache(x)
    assert cache["hook_sae_acts_post"].isnan().any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("hook_name", "shape", "message"),
    [
        ("h", (4, 5), r"The input has shape \(4, 5\); this SAE takes \(\.\.\., 6\)\."),
        ("h", (4, 2, 3), r"shape \(4, 2, 3\); this SAE takes \(\.\.\., 6\)\."),
        ("h", (), r"shape \(\); this SAE takes"),
        (Z, (4, 2, 4), r"\(4, 2, 4\).*\(\.\.\., 6\) or \(\.\.\., n_heads, d_head\) with n_heads \* d_head = 6"),
    ],
)
def test_other_shapes_name_both(hook_name, shape, message):
    with pytest.raises(InputError, match=message):
        make_sae(hook_name=hook_name)(torch.ones(shape))


# From TransformerLens


@pytest.mark.parametrize(
    ("names_filter", "expected"),
    [
        (None, HOOKS),
        ("hook_sae_acts_post", ["hook_sae_acts_post"]),
        (["hook_sae_output", "hook_sae_input"], ["hook_sae_input", "hook_sae_output"]),
        (lambda name: "acts" in name, ["hook_sae_acts_pre", "hook_sae_acts_post"]),
        (["hook_mlp_out"], []),
    ],
)
def test_names_filter(names_filter, expected):
    _, cache = make_sae().run_with_cache(x_of(4, 6), names_filter=names_filter)
    assert list(cache) == expected


@pytest.mark.parametrize("names_filter", [("hook_sae_input",), {"hook_sae_input"}])
def test_names_filter_refuses_other_types(names_filter):
    with pytest.raises(ValueError):
        make_sae().run_with_cache(x_of(4, 6), names_filter=names_filter)


def test_hook_functions_get_the_hook_point_and_run_in_order():
    sae, x, calls = make_sae(), x_of(4, 6), []

    def first(tensor, hook):
        calls.append(hook)
        return tensor + 1

    def second(tensor, hook):
        calls.append(tensor)

    sae.run_with_hooks(x, fwd_hooks=[(lambda name: name.endswith("recons"), first), ("hook_sae_recons", second)])
    assert isinstance(calls[0], HookPoint)
    assert calls[0].name == "hook_sae_recons"
    assert torch.equal(calls[1], sae.run_with_cache(x)[1]["hook_sae_recons"] + 1)


def test_an_unknown_hook_name_raises():
    with pytest.raises(KeyError):
        make_sae().run_with_hooks(x_of(4, 6), fwd_hooks=[("hook_mlp_out", lambda t, hook: t)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_8_dtypes_are_converted_even_without_a_subtraction_that_promotes(dtype):
    sae = make_sae(apply_b_dec_to_input=False)
    x = (10 * x_of(4, 6)).to(dtype)
    assert torch.equal(sae(x), sae(x.float()))
