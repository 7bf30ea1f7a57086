"""The stages of a host compute the host, whatever is done with the tensors between them."""

import numpy as np
import pytest

from saeexport.grafting.build import build_stages
from saeexport.grafting.grafts import Graft
from saeexport.grafting.host import load_host
from saeexport.grafting.running import run_stages
from saeexport.grafting.write import move_weights, write_graph
from tests.support.tiny_hosts import TinyHost, value_at

CASES = {
    "one": (TinyHost(), ["blocks.1.hook_resid_mid"]),
    "three": (TinyHost(), ["blocks.0.hook_mlp_out", "blocks.0.hook_resid_post", "blocks.2.attn.hook_z"]),
    "one-value": (TinyHost(), ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]),
    "parallel": (TinyHost(), ["blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.hook_resid_mid"]),
    "cache": (TinyHost(cache=True), ["blocks.1.attn.hook_z"]),
    "fused": (TinyHost(fused=True), ["blocks.1.hook_resid_mid", "blocks.2.hook_resid_mid"]),
    "output": (TinyHost(output_hook=True), ["blocks.0.hook_resid_post"]),
    "last": (TinyHost(), ["blocks.2.hook_resid_post"]),
}


def written(host, hooks, folder):
    """Write the stages of a host, and return their specs."""
    loaded = load_host(host.write(folder / "host.onnx", external=True))
    move_weights(loaded.model, folder)
    grafts = [Graft(hook, None, "", value_at(host, hook)) for hook in hooks]
    return {
        name: write_graph(graph, loaded.model, folder / f"{name}.onnx", "")
        for name, graph in build_stages(loaded.model, grafts).items()
    }


@pytest.mark.parametrize("case", CASES)
def test_stages_compute_the_host_with_replaced_tensors(case, tmp_path):
    host, hooks = CASES[case]
    specs, feeds = written(host, hooks, tmp_path), host.feeds()
    mask = feeds["attention_mask"] != 0
    rng = np.random.default_rng(0)
    change = {hook: rng.standard_normal(host.run(feeds)[hook].shape[1:]).astype(np.float32) for hook in hooks}
    for replaced in ({}, change):
        expected = host.run(feeds, {hook: lambda x, add=add: 0.5 * x + add for hook, add in replaced.items()})
        seen = {}

        def replace(hook, x, replaced=replaced, seen=seen):
            seen[hook] = x
            return 0.5 * x + replaced[hook] if hook in replaced else x

        found = run_stages(tmp_path, specs, hooks, feeds, replace)
        np.testing.assert_allclose(found["logits"][mask], expected["logits"][mask], atol=1e-5)
        for hook in hooks:
            np.testing.assert_allclose(seen[hook].reshape(expected[hook].shape)[mask], expected[hook][mask], atol=1e-5)


def test_nothing_is_computed_between_two_saes_at_one_value(tmp_path):
    host, hooks = CASES["one-value"]
    specs = written(host, hooks, tmp_path)
    assert list(specs) == ["stage.0", "stage.2", "stage.3"]
    assert "blocks.1.hook_resid_pre" in [tensor.name for tensor in specs["stage.2"].inputs]


def test_an_output_at_a_hook_is_what_was_made_of_it(tmp_path):
    host, hooks = CASES["output"]
    specs, feeds = written(host, hooks, tmp_path), host.feeds()
    found = run_stages(tmp_path, specs, hooks, feeds, lambda hook, x: x + 1)
    np.testing.assert_allclose(found["blocks/1/hook_resid_pre"], host.run(feeds)[hooks[0]] + 1, atol=1e-5)
