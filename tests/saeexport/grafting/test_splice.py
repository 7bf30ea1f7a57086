"""A grafted host computes what the model computes with the SAEs in it, by an oracle in NumPy that shares no code."""

import numpy as np
import pytest
import torch

from runtime.artifact.names import HOOK_NAMES
from saeexport import load
from saeexport.grafting.running import Graph
from tests.saeexport.grafting.conftest import graft_in
from tests.support.tiny_hosts import TinyHost

POST, MID, MLP, Z = "hook_resid_post", "hook_resid_mid", "hook_mlp_out", "attn.hook_z"

HOSTS = {
    "decoder": (TinyHost(), [f"blocks.1.{POST}"]),
    "encoder": (TinyHost(causal=False), [f"blocks.1.{POST}"]),
    "several": (TinyHost(), [f"blocks.1.{MLP}", f"blocks.0.{POST}", f"blocks.1.{MID}"]),  # not in the host's order
    "one-tensor": (TinyHost(), [f"blocks.0.{POST}", "blocks.1.hook_resid_pre"]),
    "three-at-one": (TinyHost(), [f"blocks.0.{POST}", "blocks.1.hook_resid_pre", f"blocks.1.{MID}"]),
    "heads": (TinyHost(), [f"blocks.1.{Z}"]),
    "fused": (TinyHost(fused=True), [f"blocks.1.{MID}"]),
    "fused-heads": (TinyHost(fused=True), [f"blocks.1.{Z}"]),  # behind the fused operator, no dimension has a name
    "cache": (TinyHost(cache=True), [f"blocks.1.{POST}"]),
    "opset-14": (TinyHost(opset=14), [f"blocks.1.{POST}"]),
    "output": (TinyHost(output_hook=True), [f"blocks.0.{POST}"]),  # the value is an output of the host
    "float16": (TinyHost(dtype="float16"), [f"blocks.1.{POST}"]),
    "float16-fused-cache": (TinyHost(dtype="float16", fused=True, cache=True), [f"blocks.1.{MID}", f"blocks.1.{POST}"]),
}
TOLERANCE = {"float": 5e-6, "float16": 2e-2}


@pytest.fixture(scope="module", params=HOSTS)
def grafted(request, tmp_path_factory):
    """A host, and the same with SAEs in it; not to be changed."""
    host, hooks = HOSTS[request.param]
    return host, graft_in(tmp_path_factory.mktemp(request.param), host, *hooks)


def in_float64(folder, hooks, edits=None, use_error_term=False):
    """Return for each hook a function that gives the output of its SAE, computed by PyTorch in float64."""

    def replacing(hook):
        sae = load(folder / "saes" / hook).double()
        sae.cfg.use_error_term = use_error_term

        def edit(acts, hook):
            acts = acts.clone()
            for feature, (scale, shift) in (edits or {}).items():
                acts[..., feature] = acts[..., feature] * scale + shift
            return acts

        def replace(x):
            rows = torch.from_numpy(x.reshape(*x.shape[:2], -1))
            with torch.no_grad():
                return sae.run_with_hooks(rows, fwd_hooks=[("hook_sae_acts_post", edit)]).numpy().reshape(x.shape)

        return replace

    return {hook: replacing(hook) for hook in hooks}


def assert_same(found, expected, host, mask):
    difference = np.abs(found["logits"].astype(np.float64) - expected["logits"])[mask]
    assert difference.max() < TOLERANCE[host.dtype]


def test_splice_computes_the_model_with_its_saes(grafted):
    host, folder = grafted
    feeds, hooks = host.feeds(), folder.manifest.hooks
    mask, splice = feeds["attention_mask"] != 0, Graph(folder.folder / "splice.onnx")
    without_error = {f"{hook}.use_error_term": np.array(False) for hook in hooks}
    detached = {f"{hook}.attach": np.array(False) for hook in hooks}
    clean = host.run(feeds)

    spliced = splice(feeds | without_error)
    assert_same(spliced, host.run(feeds, in_float64(folder.folder, hooks)), host, mask)
    assert np.abs(spliced["logits"] - clean["logits"])[mask].max() > 0.1
    assert_same(splice(feeds | detached), clean, host, mask)
    for hook in hooks:
        alone = splice(feeds | without_error | detached | {f"{hook}.attach": np.array(True)})
        assert_same(alone, host.run(feeds, in_float64(folder.folder, [hook])), host, mask)
    edit = {
        f"{hooks[0]}.feature_ids": np.array([3, 7]),
        f"{hooks[0]}.feature_scale": np.array([[0, 2]], np.float32),
        f"{hooks[0]}.feature_shift": np.array([[8, 0]], np.float32),
    }
    replaced = in_float64(folder.folder, hooks) | in_float64(folder.folder, hooks[:1], {3: (0, 8), 7: (2, 0)})
    edited = splice(feeds | without_error | edit)
    assert_same(edited, host.run(feeds, replaced), host, mask)
    assert np.abs(edited["logits"] - spliced["logits"])[mask].max() > 0.05


def test_tap_is_the_host_with_hooks_of_the_clean_activations(grafted):
    host, folder = grafted
    feeds = host.feeds()
    mask, tap = feeds["attention_mask"] != 0, Graph(folder.folder / "tap.onnx")(feeds)
    clean = host.run(feeds)
    assert_same(tap, clean, host, mask)
    for hook in folder.manifest.hooks:
        x = clean[hook].reshape(*mask.shape, -1)
        _, cache = load(folder.folder / "saes" / hook).double().run_with_cache(torch.from_numpy(x))
        error = cache["hook_sae_input"] - cache["hook_sae_recons"]  # its hook does not fire without the error term
        for name in HOOK_NAMES:
            found = tap[f"{hook}.{name}"]
            expected = (error if name == "hook_sae_error" else cache[name]).detach().numpy()
            assert found.shape == expected.shape
            assert np.abs(found - expected)[mask].max() < 5 * TOLERANCE[host.dtype]


def test_features_are_those_of_the_tap_without_the_rest_of_the_host(grafted):
    host, folder = grafted
    feeds = host.feeds()
    mask = feeds["attention_mask"] != 0
    tap, graph = Graph(folder.folder / "tap.onnx")(feeds), Graph(folder.folder / "features.onnx")
    found = graph(feeds)
    assert list(found) == [f"{hook}.hook_sae_acts_post" for hook in folder.manifest.hooks]
    for name, acts in found.items():
        np.testing.assert_allclose(acts[mask], tap[name][mask], atol=TOLERANCE[host.dtype])
    assert "past_key_values.2.key" not in graph.inputs


def test_the_default_is_the_sae_with_its_own_error_term(graft_into):
    for use_error_term in (True, False):
        host, hook = TinyHost(), f"blocks.1.{POST}"
        folder = graft_into(host, hook, out=f"out.{use_error_term}")
        feeds = host.feeds()
        mask = feeds["attention_mask"] != 0
        splice = Graph(folder.folder / "splice.onnx")
        flag = {f"{hook}.use_error_term": np.array(use_error_term)}
        expected = host.run(feeds, in_float64(folder.folder, [hook], use_error_term=use_error_term))
        assert_same(splice(feeds | flag), expected, host, mask)
        own = load(folder.folder / "saes" / hook).cfg.use_error_term
        np.testing.assert_array_equal(
            splice(feeds)["logits"], splice(feeds | {f"{hook}.use_error_term": np.array(own)})["logits"]
        )


def test_the_output_hook_is_what_the_host_goes_on_from(graft_into):
    host, hook = TinyHost(output_hook=True), f"blocks.0.{POST}"
    folder = graft_into(host, hook)
    feeds = host.feeds()
    for flag in (True, False):
        found = Graph(folder.folder / "splice.onnx")(feeds | {f"{hook}.use_error_term": np.array(flag)})
        np.testing.assert_array_equal(found[f"{hook}.hook_sae_output"], found["blocks/1/hook_resid_pre"])


def test_hooks_can_be_fewer(graft_into):
    folder = graft_into(TinyHost(), f"blocks.1.{POST}", hooks=["hook_sae_recons"])
    for mode in ("tap", "splice"):
        names = [tensor.name.rpartition(".")[2] for tensor in folder.manifest.graphs[mode].outputs]
        assert names == ["logits", "hook_sae_input", "hook_sae_acts_post", "hook_sae_recons"]


def test_modes_can_be_fewer(graft_into):
    folder = graft_into(TinyHost(), f"blocks.1.{POST}", modes=["features"])
    assert set(folder.manifest.graphs) == {"features"}
    assert not (folder.folder / "tap.onnx").exists()
