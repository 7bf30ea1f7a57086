"""The value at a hook: what identifies it, and every reason to refuse."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch

import saeexport
from runtime.artifact.folder import read_artifact
from runtime.errors import GraftError
from saeexport import export
from saeexport.grafting import candidates, locate, probe
from saeexport.grafting.candidates import Reference, rank, variance_explained
from saeexport.grafting.host import load_host
from saeexport.grafting.locate import find
from tests.support.explaining import explaining_sae
from tests.support.tiny_hosts import D_MODEL, TinyHost

HOOK = "blocks.1.hook_resid_post"
VALUE = "blocks/2/hook_resid_pre"
"""Its value in a tiny host: the output of a block is the input of the next one."""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Return a function that exports an SAE and returns its artifact; it keeps what it made."""
    made = {}

    def artifact(hook=HOOK, d_in=D_MODEL, **options):
        key = (hook, d_in, *options.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("sae") / "sae"
            made[key] = read_artifact(export(explaining_sae(d_in, hook, 1.0, **options), folder).path)
        return made[key]

    return artifact


@pytest.fixture
def tiny(tmp_path):
    """Return a function: (options of the host) -> (host, reference with all hooks of the model in NumPy)."""

    def make(**options):
        model = TinyHost(**options)
        feeds = model.feeds()
        return load_host(model.write(tmp_path / "host.onnx")), Reference(feeds, model.run(feeds))

    return make


HOOKS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")


@pytest.mark.parametrize(
    "options", [{}, {"cache": True}, {"dtype": "float16"}, {"fused": True}, {"opset": 14}], ids=str
)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_found_by_its_activation(tiny, artifacts, options, hook):
    host, reference = tiny(**options)
    found = find(host, f"blocks.1.{hook}", artifacts(f"blocks.1.{hook}"), reference)
    evidence = found.evidence
    assert evidence.method == "reference"
    assert evidence.error <= (5e-3 if options.get("dtype") else 1e-6)
    assert evidence.runner_up_error > 4 * evidence.error
    assert evidence.tokens == 15
    assert evidence.variance_explained > 0.99
    (array,) = (array for _, array in read(host, found.value, reference))
    expected = reference.activations[f"blocks.1.{hook}"]
    mask = reference.mask()
    np.testing.assert_allclose(
        array.reshape(expected.shape)[mask], expected[mask], atol=2e-2 if options.get("dtype") else 1e-5
    )


def read(host, name, reference):
    positions = reference.feeds["input_ids"].size
    return probe.read(host.model, host.path.parent, [host.values()[name]], reference.feeds, positions * D_MODEL)


def test_a_file_with_activations_is_recorded_as_such(tiny, artifacts):
    host, reference = tiny()
    reference = dataclasses.replace(reference, method="golden")
    assert find(host, HOOK, artifacts(), reference).evidence.method == "golden"


def test_what_masked_positions_hold_does_not_matter(tiny, artifacts):
    host, reference = tiny()
    changed = reference.activations[HOOK].copy()
    changed[~reference.mask()] = np.nan
    found = find(host, HOOK, artifacts(), dataclasses.replace(reference, activations={HOOK: changed}))
    assert found.value == find(host, HOOK, artifacts(), reference).value


def test_feeds_without_a_token_are_refused(tiny, artifacts):
    host, reference = tiny()
    nothing = dict(reference.feeds) | {"attention_mask": np.zeros_like(reference.feeds["attention_mask"])}
    with pytest.raises(GraftError, match="do not have a token that is not masked"):
        find(host, HOOK, artifacts(), dataclasses.replace(reference, feeds=nothing))


def test_a_host_of_other_weights_is_refused(tiny, artifacts):
    host, reference = tiny()
    other = TinyHost(seed=1)
    wrong = dataclasses.replace(reference, activations=other.run(reference.feeds))
    with pytest.raises(GraftError, match="no value of the host .* is the tensor at the hook. The nearest one is"):
        find(host, HOOK, artifacts(), wrong)


def test_an_activation_of_another_width_is_refused(tiny, artifacts):
    host, reference = tiny()
    with pytest.raises(GraftError, match=r"has shape \(3, 7, 16\), but the SAE has one 24 wide there"):
        find(host, HOOK, artifacts(d_in=24), reference)


def test_an_sae_of_a_width_that_the_host_does_not_have_is_refused(tiny, artifacts):
    host, reference = tiny()
    with pytest.raises(GraftError, match="No value of the host .* is a tensor of floats 23 wide"):
        find(host, HOOK, artifacts(d_in=23), Reference(reference.feeds))


def test_an_sae_that_was_trained_at_another_hook_is_refused(tiny, artifacts):
    host, reference = tiny()
    with pytest.raises(GraftError, match=r"was trained at blocks\.0\.hook_resid_post. Graft it there"):
        find(host, HOOK, artifacts("blocks.0.hook_resid_post"), reference)


@pytest.mark.parametrize("name", ["", "layers.1", "blocks.1.hook_out"])
def test_other_names_of_a_hook_do_not_stand_in_the_way(tiny, artifacts, name):
    host, reference = tiny()
    assert find(host, HOOK, artifacts(name), reference).evidence.error < 1e-6


def test_an_sae_that_explains_less_than_nothing_is_refused(tiny, artifacts):
    host, reference = tiny()
    with pytest.raises(GraftError, match="explains -.*%, less than nothing|of its variance, less than nothing"):
        find(host, HOOK, artifacts(center=torch.full((D_MODEL,), 50.0), seed=3, apply_b_dec_to_input=False), reference)


def test_a_value_that_the_caller_names_is_confirmed(tiny, artifacts):
    host, reference = tiny()
    found = find(host, HOOK, artifacts(), reference)
    assert find(host, HOOK, artifacts(), reference, found.value) == found
    wrong = "blocks/1/hook_resid_pre"
    with pytest.raises(GraftError, match=f"{wrong} was asked for, but {found.value} is the tensor at the hook"):
        find(host, HOOK, artifacts(), reference, wrong)


def test_a_forced_value_is_recorded_with_its_error(tiny, artifacts):
    host, reference = tiny()
    wrong = "blocks/1/hook_resid_pre"
    forced = find(host, HOOK, artifacts(), reference, wrong, force=True)
    assert forced.value == wrong
    assert forced.evidence.method == "forced"
    assert forced.evidence.error > 0.1
    with pytest.raises(GraftError, match="can only be forced by its name"):
        find(host, HOOK, artifacts(), reference, force=True)


def with_node(host, *nodes):
    """Return the host with further nodes at the end of its file."""
    model = onnx.load(host.path)
    model.graph.node.extend(nodes)
    onnx.save(model, host.path)
    return load_host(host.path)


def test_views_of_a_value_are_cut_at_the_first_one(tiny, artifacts):
    host, reference = tiny()
    host = with_node(
        host,
        onnx.helper.make_node("Identity", [VALUE], ["copy"]),
        onnx.helper.make_node("Cast", ["copy"], ["cast"], to=onnx.TensorProto.DOUBLE),
        onnx.helper.make_node("Cast", ["cast"], ["again"], to=onnx.TensorProto.FLOAT),
    )
    assert find(host, HOOK, artifacts(), reference).value == VALUE
    views = {candidate.value: candidate.alias_of for candidate in rank(host, HOOK, artifacts(), reference)}
    assert views["copy"] == views["again"] == VALUE
    assert views[VALUE] is None


def test_the_same_numbers_computed_apart_are_refused(tiny, artifacts):
    host, reference = tiny()
    parts = next(node for node in onnx.load(host.path).graph.node if VALUE in node.output)
    host = with_node(host, onnx.helper.make_node(parts.op_type, list(parts.input), ["twin"]))
    with pytest.raises(GraftError, match=f"{VALUE} and twin have the same numbers, but are computed apart"):
        find(host, HOOK, artifacts(), reference)


def test_a_host_that_cannot_be_run_is_refused(tiny, artifacts):
    host, reference = tiny()
    feeds = {name: feed for name, feed in reference.feeds.items() if name != "position_ids"}
    with pytest.raises(GraftError, match="takes position_ids, for which there are no values"):
        find(host, HOOK, artifacts(), dataclasses.replace(reference, feeds=feeds))


def test_values_are_read_in_parts_that_fit_the_memory(tiny, artifacts, monkeypatch):
    host, reference = tiny()
    whole = rank(host, HOOK, artifacts(), reference)
    monkeypatch.setattr(probe, "PROBE_BYTES", 4 * reference.feeds["input_ids"].size * D_MODEL * 3)
    assert rank(host, HOOK, artifacts(), reference) == whole


# --- without an activation: the variance that the SAE explains, and the names in the graph


def test_variance_explained_is_that_of_the_median_token():
    x = np.random.default_rng(0).standard_normal((101, 8)).astype(np.float32)
    assert variance_explained(x, x) == 1
    assert abs(variance_explained(x, np.tile(np.median(x, axis=0), (101, 1)))) < 1e-6
    huge = x.copy()
    huge[0] *= 1e4
    assert variance_explained(huge, np.concatenate([huge[:1] * 3, x[1:]])) > 0.99


def test_an_activation_is_asked_for_if_the_graph_does_not_name_its_modules(tiny, artifacts):
    host, reference = tiny()
    with pytest.raises(GraftError, match="the graph does not have the scopes of its modules. Pass the folder"):
        find(host, HOOK, artifacts(), Reference(reference.feeds))


def test_an_sae_that_explains_little_does_not_identify_its_tensor(tiny, artifacts, monkeypatch):
    host, reference = tiny()
    monkeypatch.setattr(locate, "MIN_EXPLAINED", 1.1)
    with pytest.raises(GraftError, match="and less of every other value; 110% are needed"):
        find(host, HOOK, artifacts(), Reference(reference.feeds))


def test_an_sae_that_explains_another_tensor_better_is_refused(tiny, artifacts, monkeypatch):
    host, reference = tiny()
    worse = {VALUE: 0.7, "blocks/1/hook_resid_pre": 0.9}
    real = locate.rank

    def measured(*args, **kwargs):
        return [
            dataclasses.replace(candidate, variance_explained=worse.get(candidate.value, 0.1))
            for candidate in real(*args, **kwargs)
        ]

    monkeypatch.setattr(locate, "rank", measured)
    with pytest.raises(GraftError, match=r"explains 70.0%, but it explains 90.0% of blocks/1/hook_resid_pre"):
        find(host, HOOK, artifacts(), reference)
    worse["blocks/1/hook_resid_pre"] = 0.74
    assert find(host, HOOK, artifacts(), reference).value == VALUE


# --- the command


def test_the_command_prints_the_candidates_and_the_value(tiny, artifacts, tmp_path, capsys):
    from saeexport.cli import main

    host, reference = tiny()
    file = tmp_path / "reference.npz"
    np.savez(file, **reference.feeds, **{f"hooks/{HOOK}": reference.activations[HOOK]})
    arguments = ["locate", str(host.path), "--reference", str(file), "--sae"]
    assert main([*arguments, str(artifacts().path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:3] == ["value", "operator", "shape"]
    assert out[1].split()[0] == VALUE
    assert out[1].endswith("<- the hook")
    assert out[-1] == f"{HOOK} is {VALUE} (by golden, 15 tokens)"
    assert main([*arguments, f"blocks.0.hook_resid_post={artifacts().path}"]) == 2
    captured = capsys.readouterr()
    assert "blocks.1.hook_resid_post. Graft it there" in captured.err
    assert "value" in captured.out


def test_locate_returns_the_candidates_and_the_refusal(tiny, artifacts, tmp_path):
    host, reference = tiny()
    file = tmp_path / "reference.npz"
    np.savez(file, **reference.feeds, **{f"hooks/{HOOK}": reference.activations[HOOK]})
    search = saeexport.locate(host.path, artifacts().path, reference=file)
    assert search.located.value == search.candidates[0].value == VALUE
    assert search.refusal is None
    refused = saeexport.locate(host.path, artifacts().path)
    assert refused.located is None
    assert "Pass the folder of the same model" in refused.refusal
    with pytest.raises(GraftError, match="does not say at which hook it was trained"):
        saeexport.locate(host.path, artifacts("").path)


def test_a_host_that_onnx_runtime_cannot_run_is_refused(tiny, artifacts):
    host, reference = tiny()
    feeds = dict(reference.feeds) | {"attention_mask": reference.feeds["attention_mask"][:, :-2]}
    with pytest.raises(GraftError, match="ONNX Runtime cannot run the host on the CPU"):
        rank(host, HOOK, artifacts(), dataclasses.replace(reference, feeds=feeds))


def test_a_costly_sae_is_run_on_the_values_near_the_activation_only(tiny, artifacts, monkeypatch):
    host, reference = tiny()
    everywhere = [candidate.variance_explained is not None for candidate in rank(host, HOOK, artifacts(), reference)]
    assert all(everywhere)
    monkeypatch.setattr(candidates, "MEASURED_FLOPS", 0)
    near = rank(host, HOOK, artifacts(), reference)
    assert [candidate.value for candidate in near if candidate.variance_explained is not None] == [VALUE]
    assert find(host, HOOK, artifacts(), reference).value == VALUE


def test_a_transcoder_needs_an_activation(tiny, artifacts, monkeypatch):
    host, reference = tiny()
    monkeypatch.setattr(candidates._Explainer, "__call__", lambda self, rows: None)
    with pytest.raises(GraftError, match="no value is reconstructed by the SAE, so that none can be confirmed"):
        find(host, HOOK, artifacts(), Reference(reference.feeds))
    assert find(host, HOOK, artifacts(), reference).evidence.variance_explained is None
