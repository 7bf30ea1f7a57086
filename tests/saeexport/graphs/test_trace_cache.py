"""The cache of traces, which the whole test suite uses, never returns the trace of another SAE."""

import pytest
import torch

from saeexport import HookedSAE, export
from saeexport.graphs import write
from saeexport.original.exportable import config_of
from tests.support.samples import contents, make_sae, normal
from tests.support.tracing import TRACE, key_of
from tests.support.zoo import D_IN, sae_of, target_of

EXPORTS = [
    ("standard", {"normalize_activations": "layer_norm", "use_error_term": True}, {}),
    ("jumprelu_skip_transcoder", {"use_error_term": True}, {}),
    ("topk", {}, {"dtype": "float16"}),
    ("gated", {}, {"dtype": "bfloat16"}),
    ("standard", {}, {"weights": "int8"}),
]


class Own(HookedSAE):
    pass


def key(sae):
    return key_of(sae, config_of(sae, None))


@pytest.mark.parametrize(("architecture", "more", "options"), EXPORTS)
@pytest.mark.slow
def test_an_export_with_the_cache_gives_the_same_bytes(
    tmp_path, monkeypatch, cached_trace, architecture, more, options
):
    def exported(name, seed=0):
        sae = sae_of(architecture, **more, seed=seed)
        return contents(export(sae, tmp_path / name, normal(60, D_IN), targets=target_of(sae, 60), **options).path)

    exported("first", seed=1)  # with other weights
    reused = cached_trace.reused
    again = exported("again")
    assert cached_trace.reused == reused + 1
    monkeypatch.setattr(write, "trace", TRACE)
    assert exported("fresh") == again


def test_the_parameters_are_those_of_the_sae_that_is_exported(cached_trace):
    for _ in range(2):
        sae = make_sae()
        model = cached_trace(sae, config_of(sae, None))
        with torch.no_grad():  # of the first SAE, after its trace is in the cache
            sae.b_enc += 1
        assert model.graph.initializers["b_enc"].const_value.raw.data_ptr() == sae.b_enc.data_ptr()


def test_a_rewrite_does_not_reach_the_cache(cached_trace):
    sae = make_sae()
    config = config_of(sae, None)
    first = cached_trace(sae, config)
    operators = [node.op_type for node in first.graph]
    for node in first.graph:
        node.op_type = "Abs"
    assert [node.op_type for node in cached_trace(sae, config).graph] == operators


def test_the_fixture_traces_anew(cached_trace, fresh_trace):
    assert write.trace is TRACE


def test_what_has_to_be_traced_has_no_key(monkeypatch):
    own, hooked, changed = Own(make_sae().cfg), make_sae(), make_sae()
    hooked.add_hook("hook_sae_acts_post", lambda tensor, hook: tensor)
    changed.decode = lambda acts_post, x=None: acts_post
    assert [key(sae) for sae in (own, hooked, changed)] == [None] * 3


@pytest.mark.parametrize(
    "more",
    [{"use_error_term": False}, {"d_sae": 17}, {"dtype": torch.float16}, {"apply_b_dec_to_input": False}],
)
def test_another_sae_has_another_key(more):
    assert key(make_sae(**more)) != key(make_sae())


def test_other_weights_have_the_same_key():
    assert key(make_sae()) == key(make_sae(seed=1))


def test_weights_that_the_optimizer_merges_have_another_key(cached_trace):
    """Parameters that equal each other, or a constant in the graph, become one initializer."""

    def jumprelu(change):
        sae = sae_of("jumprelu")
        with torch.no_grad():
            change(sae)
        return sae, {*cached_trace(sae, config_of(sae, None)).graph.initializers}

    plain, separate = jumprelu(lambda sae: None)
    merged, together = jumprelu(lambda sae: sae.b_enc.copy_(sae.threshold))
    assert {"b_enc", "threshold"} <= separate
    assert not {"b_enc", "threshold"} <= together
    zeros, _ = jumprelu(lambda sae: sae.b_enc.zero_())
    ones, _ = jumprelu(lambda sae: sae.b_enc.fill_(1))
    assert len({key(sae) for sae in (plain, merged, zeros, ones)}) == 4


def test_another_function_has_another_key(monkeypatch):
    before, sae = key(make_sae()), make_sae()
    monkeypatch.setattr(HookedSAE, "activation", lambda self, acts_pre, x: acts_pre)
    assert key(sae) != before
