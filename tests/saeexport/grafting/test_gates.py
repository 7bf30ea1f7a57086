"""Every gate of the proof closes: what it is there to notice is done, and the graft is refused."""

import functools
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import pytest

from runtime import HostSession, verify
from runtime.errors import GraftError, ParityError
from saeexport.grafting import expected, prove
from saeexport.grafting.graft import graft
from saeexport.grafting.insert import Inserted
from saeexport.grafting.running import Graph, Reconstruction
from tests.support.tiny_hosts import D_MODEL, TinyHost, value_at

HOOK, NEXT = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
HOST = TinyHost()


def reference(folder, host=HOST, hooks=(HOOK, NEXT), outputs=True):
    """Write what the model computes in NumPy as a reference, and return the file."""
    feeds = host.feeds()
    computed = host.run(feeds)
    arrays = feeds | {f"hooks/{hook}": computed[hook].astype(np.float32) for hook in hooks}
    if outputs:
        arrays["outputs/logits"] = computed["logits"].astype(np.float32)
    path = folder / "reference.npz"
    np.savez(path, **arrays)
    return path


def test_a_sound_graft_passes_and_says_how_its_value_was_found(tmp_path, graft_into):
    folder = graft_into(HOST, HOOK, NEXT, force=False, reference=reference(tmp_path))
    for sae in folder.manifest.saes:
        assert sae.value == value_at(HOST, sae.hook)
        assert sae.evidence.method == "golden"
        assert sae.evidence.error < 1e-6 < sae.evidence.runner_up_error
    assert folder.manifest.golden.source == "reference"
    record = folder.manifest.parity
    assert record.reference == "stages"
    assert 0 < record.splice["logits"].own < record.splice["logits"].budget < 1e-5
    assert record.moved["logits"] > 0.1


def test_a_neighbouring_value_is_refused(tmp_path, sae_at):
    path = HOST.write(tmp_path / "host.onnx")
    for wrong in ("blocks/0/hook_mlp_out", "blocks/0/hook_resid_mid", "blocks/2/hook_resid_pre"):
        with pytest.raises(GraftError, match=f"{wrong} was asked for, but blocks/1/hook_resid_pre is the tensor"):
            graft(path, {f"{HOOK}@{wrong}": sae_at(HOST, HOOK)}, tmp_path / "out", reference=reference(tmp_path))


def test_an_sae_of_another_layer_is_refused(tmp_path, sae_at):
    path = HOST.write(tmp_path / "host.onnx")
    with pytest.raises(GraftError, match=rf"{HOOK}: the SAE .* was trained at {NEXT}"):
        graft(path, {HOOK: sae_at(HOST, NEXT)}, tmp_path / "out", reference=reference(tmp_path))


def test_a_host_of_other_weights_is_refused(tmp_path, sae_at):
    other = TinyHost(seed=1)
    path = other.write(tmp_path / "host.onnx")
    with pytest.raises(GraftError, match="no value of the host .* is the tensor at the hook"):
        graft(path, [sae_at(HOST, HOOK)], tmp_path / "out", reference=reference(tmp_path))
    other = TinyHost()  # the weights behind the hook are other ones
    other.weights["W_U"] = other.weights["W_U"] * 1.01
    path = other.write(tmp_path / "host.onnx")
    with pytest.raises(GraftError, match="computes something else than the outputs in the file: logits is off by 1"):
        graft(path, [sae_at(HOST, HOOK)], tmp_path / "out", reference=reference(tmp_path))
    assert not (tmp_path / "out").exists()


def does_nothing(self):
    """Add the inputs of a splice, and let the host go on from its own value."""
    self._flag("attach", True)
    self._flag("use_error_term", True)
    return self._x


def test_a_splice_that_does_nothing_is_refused(graft_into, monkeypatch):
    monkeypatch.setattr(Inserted, "splice", does_nothing)
    with pytest.raises(ParityError, match="attaching the SAE at .* moves the outputs by 0.0 budgets"):
        graft_into(HOST, HOOK)


def test_a_splice_that_does_nothing_is_refused_if_the_reference_does_nothing_either(graft_into, monkeypatch):
    def identity(graft, sae, x, intervention=None, target=None):
        return Reconstruction(x, sound(graft, sae, x, intervention).acts_post)

    sound = expected.reconstruct
    monkeypatch.setattr(Inserted, "splice", does_nothing)
    monkeypatch.setattr(expected, "reconstruct", identity)
    with pytest.raises(ParityError) as caught:
        graft_into(HOST, HOOK)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "attaching the SAE" in lines[1]
    assert "editing features" in lines[2]


def without_input(name):
    """Return `Inserted._flag` with an input that has no effect, because the graph reads a constant."""
    sound = Inserted._flag

    def flag(self, key, default):
        value = sound(self, key, default)
        if key != name:
            return value
        return self._initializer(f"{self._graft.hook}.constant", ir.tensor(np.array(default)))

    return flag


@pytest.mark.parametrize("name", ["attach", "use_error_term"])
def test_an_input_that_does_nothing_is_refused(name, graft_into, monkeypatch):
    monkeypatch.setattr(Inserted, "_flag", without_input(name))
    with pytest.raises(ParityError, match="no SAE attached" if name == "attach" else "splice, error terms"):
        graft_into(HOST, HOOK)


def test_an_edit_that_does_nothing_is_refused(graft_into, monkeypatch):
    def unread(self, value):
        sound(self, value)
        default = {"feature_ids": np.zeros(0, np.int64), "feature_scale": np.ones((1, 0), np.float32)}
        array = default.get(value.name, np.zeros((1, 0), np.float32))
        return self._initializer(f"constant.{value.name}", ir.tensor(array))

    sound = Inserted._intervention_input
    monkeypatch.setattr(Inserted, "_intervention_input", unread)
    with pytest.raises(ParityError, match="features edited: (.|\n)*editing features at .* moves the outputs by 0.0"):
        graft_into(HOST, HOOK)


def test_swapped_saes_are_refused(tmp_path, sae_at):
    path = HOST.write(tmp_path / "host.onnx")
    saes = {HOOK: sae_at(HOST, NEXT, seed=0), NEXT: sae_at(HOST, HOOK, seed=1)}
    with pytest.raises(GraftError, match="was trained at"):
        graft(path, saes, tmp_path / "out", reference=reference(tmp_path))


def test_two_saes_in_the_wrong_order_are_refused(graft_into, monkeypatch):
    """The second SAE at one value reads the value itself, and not what the first one made of it."""
    sound = Inserted.splice

    def splice(self):
        sound(self)
        return self._x

    monkeypatch.setattr(Inserted, "splice", splice)
    with pytest.raises(ParityError, match="splice, features edited: logits: the error is"):
        graft_into(HOST, HOOK, "blocks.1.hook_resid_pre")


def test_saes_at_one_value_are_in_the_order_in_which_their_hooks_fire(graft_into):
    before = "blocks.1.hook_resid_pre"
    assert graft_into(HOST, before, HOOK).manifest.hooks == (HOOK, before)


def test_an_encoder_is_told_from_a_decoder_by_a_last_token_that_is_the_first_one(tmp_path, graft_into):
    feeds = {name: array[:1] for name, array in HOST.feeds().items()}
    feeds["input_ids"][0, [0, -1]] = 1
    for causal, kind in ((False, "encoder"), (True, "decoder")):
        np.savez(tmp_path / "feeds.npz", **feeds)
        out = graft_into(TinyHost(causal=causal), HOOK, out=kind, reference=tmp_path / "feeds.npz")
        assert out.manifest.host.kind == kind


def test_feeds_may_be_padded_on_the_left(tmp_path, graft_into):
    host = TinyHost(cache=True)
    feeds = host.feeds()
    ids, mask = (feeds[name][:, ::-1] for name in ("input_ids", "attention_mask"))
    feeds |= {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
    np.savez(tmp_path / "feeds.npz", **feeds)
    folder = graft_into(host, HOOK, reference=tmp_path / "feeds.npz")
    assert folder.manifest.parity.decoded["logits"].error <= folder.manifest.parity.decoded["logits"].budget


def test_feeds_may_have_tokens_in_the_cache(tmp_path, graft_into):
    host, earlier = TinyHost(cache=True), 2
    feeds, seen = host.feeds(), host.run(host.feeds())
    tokens = ("input_ids", "position_ids")
    first = {name: feeds[name][:, :earlier] for name in (*tokens, "attention_mask")}
    outputs = Graph(host.write(tmp_path / "first.onnx"))(feeds | first)
    feeds |= {name: feeds[name][:, earlier:] for name in tokens}
    feeds |= {name: outputs[name.replace("past_key_values", "present")] for name in feeds if name.startswith("past")}
    activations = {f"hooks/{HOOK}": seen[HOOK][:, earlier:].astype(np.float32)}
    np.savez(tmp_path / "feeds.npz", **feeds, **activations, **{"outputs/logits": seen["logits"][:, earlier:]})
    manifest = graft_into(host, HOOK, force=False, reference=tmp_path / "feeds.npz").manifest
    assert manifest.saes[0].value == value_at(host, HOOK)
    assert manifest.saes[0].evidence.tokens == manifest.golden.tokens == 9  # 15, of which 6 are in the cache
    assert manifest.parity.decoded["logits"].error <= manifest.parity.decoded["logits"].budget
    assert verify(tmp_path / "out", "cpu").failures == []


def changed_host(path, host, take_away, inputs, nodes, constants=()):
    """Write a host that takes other inputs, and return its file.

    Args:
        path: File to write.
        host: The host.
        take_away: Name of an input, and output of a node, that goes.
        inputs: Inputs that are added.
        nodes: Nodes that are added at the beginning.
        constants: Initializers by name.
    """
    model = onnx.load(host.write(path))
    graph = model.graph
    for part in (graph.input, graph.node):
        for one in list(part):
            if (one.name if part is graph.input else one.output[0]) in take_away:
                part.remove(one)
    graph.input.extend(inputs)
    graph.initializer.extend(onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants)
    for node in reversed(nodes):
        graph.node.insert(0, node)
    onnx.save(model, path)
    return path


def test_feeds_may_be_padded_on_the_left_of_a_host_that_counts_positions_itself(tmp_path, sae_at):
    """Without the padding its tokens would have other positions, so that the proof keeps the padding step by step."""
    host, node = TinyHost(cache=True), onnx.helper.make_node
    nodes = [
        node("Shape", ["past_key_values.0.key"], ["p.shape"]), node("Shape", ["input_ids"], ["p.ids"]),
        node("Gather", ["p.shape", "p.two"], ["p.past"]), node("Gather", ["p.ids", "p.one"], ["p.new"]),
        node("Add", ["p.past", "p.new"], ["p.total"]), node("Range", ["p.past", "p.total", "p.one"], ["p.row"]),
        node("Expand", ["p.row", "p.ids"], ["position_ids"]),
    ]  # fmt: skip
    path = changed_host(tmp_path / "host.onnx", host, {"position_ids"}, [], nodes, [("p.one", 1), ("p.two", 2)])
    feeds = host.feeds()
    del feeds["position_ids"]
    feeds |= {name: feeds[name][:, ::-1] for name in ("input_ids", "attention_mask")}
    np.savez(tmp_path / "feeds.npz", **feeds)
    saes = {f"{HOOK}@{value_at(host, HOOK)}": sae_at(host, HOOK)}
    folder = graft(path, saes, tmp_path / "out", force=True, reference=tmp_path / "feeds.npz")
    assert folder.manifest.parity.decoded["logits"].error <= folder.manifest.parity.decoded["logits"].budget
    assert verify(folder.folder, "cpu").failures == []


def test_a_host_with_a_cache_may_take_embeddings(tmp_path, sae_at):
    host = TinyHost(cache=True)
    embeddings = onnx.helper.make_tensor_value_info("inputs_embeds", onnx.TensorProto.FLOAT, ["batch", "seq", D_MODEL])
    nodes = [onnx.helper.make_node("Identity", ["inputs_embeds"], [name]) for name in ("W_E.of.input_ids", "input_ids")]
    taken = {"input_ids", "W_E.of.input_ids"}
    path = changed_host(tmp_path / "host.onnx", host, taken, [embeddings], nodes)
    feeds = host.feeds()
    feeds["inputs_embeds"] = host.weights["W_E"][feeds.pop("input_ids")]
    np.savez(tmp_path / "feeds.npz", **feeds)
    saes = {f"{HOOK}@{value_at(host, HOOK)}": sae_at(host, HOOK)}
    folder = graft(path, saes, tmp_path / "out", force=True, reference=tmp_path / "feeds.npz")
    assert folder.manifest.host.kind == "decoder"
    assert folder.manifest.parity.decoded
    assert verify(folder.folder, "cpu").failures == []


def test_a_decision_at_its_threshold_leaves_out_a_sequence_and_no_more(graft_into, monkeypatch):
    folder = graft_into(HOST, HOOK, out="whole")
    monkeypatch.setattr(
        prove._Proving, "sequences_with_equal_decisions", lambda self: np.array([True, False, True, True])
    )
    fewer = graft_into(HOST, HOOK, out="fewer")
    assert fewer.manifest.parity.tokens < folder.manifest.parity.tokens
    monkeypatch.setattr(prove._Proving, "sequences_with_equal_decisions", lambda self: np.arange(4) < 1)
    with pytest.raises(ParityError, match="on 3 of 4 sequences the splice decides about other features"):
        graft_into(HOST, HOOK, out="none")


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1.9e-6), ("float16", 1.55e-2), ("bfloat16", 0.124)])
def test_a_feature_that_is_on_by_rounding_alone_leaves_out_no_sequence(dtype, rounding):
    """A ReLU lets the feature through with an activation that is no larger than the rounding of the largest one, 8."""
    own = np.zeros((3, 1, 2), np.float32)
    own[:, 0] = [[8, rounding], [8, 1.1 * rounding], [8, 0]]
    expected = np.array([[[8, 0]]] * 3, np.float32)
    proving = SimpleNamespace(
        mask=np.ones((3, 1), bool), graphs={"splice"}, feeds={}, without_error={},
        grafts=[SimpleNamespace(hook="h", sae=SimpleNamespace(dtype=dtype))],
        expected=SimpleNamespace(staged=lambda edits, acts: acts.update(h=expected)),
        graph=lambda name: lambda feeds: {"h.hook_sae_acts_post": own},
    )  # fmt: skip
    assert prove._Proving.sequences_with_equal_decisions(proving).tolist() == [True, False, True]


def test_decoding_that_ignores_the_cache_is_refused(graft_into, monkeypatch):
    sound = prove._Proving.decode

    def forgets(self, graph, found, noise):
        return sound(
            self, lambda feeds: graph(feeds | {name: self.feeds[name] for name, _ in self.host.cache}), found, noise
        )

    monkeypatch.setattr(prove._Proving, "decode", forgets)
    with pytest.raises((ParityError, GraftError), match="token by token|cannot run"):
        graft_into(TinyHost(cache=True), HOOK)


@pytest.mark.parametrize("dtype", ["float", "bfloat16"])
def test_a_host_may_take_and_give_scalars(tmp_path, sae_at, dtype):
    host = TinyHost(dtype=dtype)
    model = onnx.load(host.write(tmp_path / "host.onnx"))
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "scale")
    model.graph.initializer.remove(scale)
    scalar = functools.partial(onnx.helper.make_tensor_value_info, elem_type=scale.data_type, shape=[])
    model.graph.input.append(scalar("scale"))
    model.graph.output.append(scalar("square"))
    model.graph.node.insert(0, onnx.helper.make_node("Mul", ["scale", "scale"], ["square"]))
    onnx.save(model, tmp_path / "host.onnx")
    feeds = {**host.feeds(), "scale": onnx.numpy_helper.to_array(scale).astype(np.float32)}
    np.savez(tmp_path / "feeds.npz", **feeds)
    saes = {f"{HOOK}@{value_at(host, HOOK)}": sae_at(host, HOOK)}
    folder = graft(tmp_path / "host.onnx", saes, tmp_path / "out", force=True, reference=tmp_path / "feeds.npz")
    assert verify(folder.folder, "cpu").failures == []
    with HostSession(folder.folder, "cpu") as session:
        assert session(feeds)["square"].shape == ()
