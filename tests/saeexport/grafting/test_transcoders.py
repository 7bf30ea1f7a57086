"""A transcoder that is grafted replaces the activation that it predicts, computed from the one that it reads."""

import numpy as np
import onnx
import pytest
import torch

from runtime import Clamp, HostSession, InputError, SAEError, UnknownHookError, verify
from runtime.commands.main import main
from runtime.errors import GraftError, ParityError
from saeexport import export, graft, load
from saeexport.grafting import running
from saeexport.grafting.insert import Inserted
from saeexport.grafting.search import locate
from saeexport.original.architectures import ARCHITECTURES
from tests.support.language_models import WIDTH, save
from tests.support.samples import make_sae, normal
from tests.support.tiny_hosts import D_MODEL, TinyHost, value_at

READ, TARGET, POST = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"
BETWEEN, BEFORE = "blocks.1.mlp.hook_post", "blocks.1.hook_resid_mid"
HOST = TinyHost(cache=True)
FEEDS = {name: array for name, array in HOST.feeds().items() if not name.startswith("past")}
MASK = FEEDS["attention_mask"] != 0
SAE_HOOKS = [f"hook_sae_{name}" for name in ("input", "acts_pre", "acts_post", "recons", "error", "output")]
ATOL = 2e-5


def make_transcoder(architecture="skip_transcoder", use_error_term=True, d_in=D_MODEL, d_out=D_MODEL, seed=0, **more):
    """Return a transcoder with random weights and biases."""
    hooks = {"hook_name": READ, "hook_name_out": TARGET} | more
    config = {"d_in": d_in, "d_sae": 48, "d_out": d_out, "use_error_term": use_error_term, "seed": seed, **hooks}
    sae = ARCHITECTURES[architecture](config)
    with torch.no_grad():
        for bias in (sae.b_enc, sae.b_dec):
            bias.copy_(torch.from_numpy(normal(*bias.shape, seed=seed + 5)) * 0.3)
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(0.1)
    return sae


def export_transcoder(folder, host=HOST, **options):
    sae = make_transcoder(**options)
    seen = host.run(host.feeds())
    x, y = (seen[hook].reshape(-1, seen[hook].shape[-1]).astype(np.float32) for hook in (READ, TARGET))
    export(sae, folder, activations=x, targets=y if sae.cfg.use_error_term else None)
    return folder


def graft_with(folder, saes, host=HOST, out="out", **options):
    """Graft artifacts into a small host at the values that the test knows, by the names of their hooks."""
    named = {",".join(f"{hook}@{value_at(host, hook)}" for hook in key.split(",")): path for key, path in saes.items()}
    options.setdefault("force", True)
    return graft(host.write(folder / "host.onnx", external=True), named, folder / out, **options)


def in_numpy(folder, feeds, attached=True, use_error_term=False, edit=None, others=(), host=HOST):
    """Return the tensors of the model with the transcoder in it, and its features, in float64."""
    sae = load(folder / "saes" / READ).double()
    read, features = {}, {}

    def keep(x):
        read["x"] = torch.from_numpy(x)
        return x

    def predict(y):
        with torch.no_grad():
            acts = sae.encode(read["x"])
            clean = sae.decode(acts, read["x"])
            if edit is not None:
                acts = edit(acts.clone())
            features["acts"] = acts.numpy()
            recons = sae.decode(acts, read["x"]).numpy()
        return recons + ((y - clean.numpy()) if use_error_term else 0)

    replace = {READ: keep, TARGET: predict} if attached else {}
    for hook in others:
        other = load(folder / "saes" / hook).double()
        replace[hook] = lambda x, other=other: other.decode(other.encode(torch.from_numpy(x))).detach().numpy()
    return host.run(feeds, replace), features.get("acts")


def assert_near(found, expected):
    np.testing.assert_allclose(found[MASK], expected[MASK], rtol=0, atol=ATOL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transcoder")
    artifact = export_transcoder(folder / "sae")
    return graft_with(folder, {f"{READ},{TARGET}": artifact}).folder


@pytest.fixture(scope="module")
def session(folder):
    with HostSession(folder, "cpu") as host:
        yield host


@pytest.mark.parametrize("use_error_term", [False, True])
def test_an_attached_transcoder_replaces_its_target(session, folder, use_error_term):
    expected, _ = in_numpy(folder, FEEDS, use_error_term=use_error_term)
    assert_near(session.run_with_saes(FEEDS, READ, use_error_term).logits, expected["logits"])
    assert_near(session.run_with_hooks_with_saes(FEEDS, [], READ, use_error_term).logits, expected["logits"])
    clean = HOST.run(FEEDS)["logits"]
    assert_near(session(FEEDS).logits, clean)
    changed = np.abs(expected["logits"] - clean)[MASK].max()
    assert changed < ATOL if use_error_term else changed > 0.1


@pytest.mark.parametrize("use_error_term", [False, True])
def test_edits_move_the_output_by_what_they_move_the_prediction(session, folder, use_error_term):
    def edit(acts):
        acts[..., 3] = 2
        return acts

    expected, features = in_numpy(folder, FEEDS, True, use_error_term, edit)
    with session.steering({READ: {3: Clamp(2.0)}}, use_error_term):
        output, cache = session.run_with_cache(FEEDS)
        staged = session.run_with_hooks_with_saes(FEEDS)
    assert_near(output.logits, expected["logits"])
    assert_near(staged.logits, expected["logits"])
    assert_near(cache[f"{READ}.hook_sae_acts_post"], features)
    assert np.abs(output.logits - HOST.run(FEEDS)["logits"])[MASK].max() > 0.1


def test_the_hook_that_is_read_stays_in_the_cache_and_that_of_the_target_leaves_it(session, folder):
    seen = HOST.run(FEEDS)
    _, cache = session.run_with_cache(FEEDS)
    assert list(cache) == [READ, TARGET]
    for hook in (READ, TARGET):
        assert_near(cache[hook], seen[hook])
    _, cache = session.run_with_cache_with_saes(FEEDS, READ, use_error_term=True)
    assert list(cache) == [READ, *(f"{READ}.{name}" for name in SAE_HOOKS)]
    expected = in_numpy(folder, FEEDS, use_error_term=True)[0]
    assert_near(cache[f"{READ}.hook_sae_output"], expected[TARGET])
    assert_near(cache[f"{READ}.hook_sae_error"] + cache[f"{READ}.hook_sae_recons"], seen[TARGET])


def test_functions_are_called_at_both_hooks(session, folder):
    seen = []

    def halve(x, hook):
        seen.append(hook.name)
        return x / 2

    halved = session.run_with_hooks_with_saes(FEEDS, [(lambda name: True, halve)])
    assert seen == [READ, TARGET]
    expected = HOST.run(FEEDS, {READ: lambda x: x / 2, TARGET: lambda x: x / 2})
    assert_near(halved.logits, expected["logits"])
    seen.clear()
    fwd_hooks = [(READ, halve), (f"{READ}.hook_sae_recons", lambda recons, hook: 0 * recons)]
    cut = session.run_with_hooks_with_saes(FEEDS, fwd_hooks, READ, use_error_term=False)
    assert_near(cut.logits, HOST.run(FEEDS, {TARGET: lambda x: 0 * x})["logits"])
    with pytest.raises(UnknownHookError, match=f"'{TARGET}': no such hook fires"):
        session.run_with_hooks_with_saes(FEEDS, [(TARGET, halve)], READ)


def test_it_is_proved_and_generates(session, folder, capsys):
    report = verify(folder, "cpu")
    assert report.failures == []
    assert {f"{READ}.hook_sae_error", f"{READ}.target"} <= {verdict.hook for verdict in report.verdicts}
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "decoder host with 1 SAE\n" in said
    assert f"  {TARGET}" in said
    record = session.host.manifest
    assert record.cuts == (READ, TARGET)
    assert record.saes[0].target.value == value_at(HOST, TARGET)
    prompt = np.array([5, 11, 3])
    ids = prompt.tolist()
    for _ in range(5):
        feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64),
                 "position_ids": np.arange(len(ids))[None]}  # fmt: skip
        ids.append(int(in_numpy(folder, feeds)[0]["logits"][0, -1].argmax()))
    with session.saes(READ, False):
        assert session.generate(prompt, 5).tolist() == [ids]


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if "transcoder" in name])
def test_every_architecture_without_the_error_term(tmp_path, architecture):
    more = {"k": 8} if "topk" in architecture else {}
    artifact = export_transcoder(tmp_path / "sae", architecture=architecture, use_error_term=False, **more)
    folder = graft_with(tmp_path, {f"{READ},{TARGET}": artifact}).folder
    with HostSession(folder, "cpu") as session:
        assert_near(session.run_with_saes(FEEDS, READ).logits, in_numpy(folder, FEEDS)[0]["logits"])
        with pytest.raises(InputError, match="was exported without the error term"):
            session.run_with_saes(FEEDS, READ, use_error_term=True)
        with pytest.raises(SAEError, match=f"has no inputs {READ}.use_error_term"):
            session.run_graph("splice", {**HOST.feeds(), f"{READ}.use_error_term": np.array(True)})


@pytest.mark.parametrize("other", [BEFORE, POST])
def test_with_an_sae(tmp_path, other):
    """The transcoder reads the output of an SAE before it, and an SAE behind it reads the output of the transcoder."""
    transcoder = export_transcoder(tmp_path / "transcoder")
    sae = make_sae(d_in=D_MODEL, d_sae=24, hook_name=other)
    export(sae, tmp_path / "sae", activations=normal(64, D_MODEL))
    folder = graft_with(tmp_path, {f"{READ},{TARGET}": transcoder, other: tmp_path / "sae"}).folder
    with HostSession(folder, "cpu") as session:
        for saes in ([READ], [other], [READ, other]):
            expected, _ = in_numpy(folder, FEEDS, READ in saes, False, None, [hook for hook in saes if hook != READ])
            assert_near(session.run_with_saes(FEEDS, saes, False).logits, expected["logits"])
            staged = session.run_with_hooks_with_saes(FEEDS, [], saes, False)
            assert_near(staged.logits, expected["logits"])


def test_features_alone_do_not_need_the_target(tmp_path):
    for use_error_term in (True, False):
        artifact = export_transcoder(tmp_path / f"sae.{use_error_term}", use_error_term=use_error_term)
        out = f"out.{use_error_term}"
        folder = graft_with(tmp_path, {READ: artifact}, out=out, modes=["features"])
        assert folder.manifest.saes[0].target is None
        with HostSession(folder.folder, "cpu") as session:
            assert_near(session.encode(FEEDS)[READ], in_numpy(folder.folder, FEEDS)[1])


def test_the_graph_of_the_features_ends_at_what_is_read(folder):
    graph = running.Graph(folder / "features.onnx")
    assert graph.outputs == [f"{READ}.hook_sae_acts_post"]
    names = {node.name for node in onnx.load(folder / "features.onnx", load_external_data=False).graph.node}
    assert not any("graft" in name and "Identity" in name for name in names)


def test_the_values_are_found_by_their_activations(tmp_path):
    seen = HOST.run(HOST.feeds())
    arrays = HOST.feeds() | {f"hooks/{hook}": seen[hook].astype(np.float32) for hook in (READ, TARGET)}
    np.savez(tmp_path / "reference.npz", **arrays)
    artifact = export_transcoder(tmp_path / "sae")
    path = HOST.write(tmp_path / "host.onnx", external=True)
    (sae,) = graft(path, [artifact], tmp_path / "out", reference=tmp_path / "reference.npz").manifest.saes
    assert (sae.value, sae.target.value) == (value_at(HOST, READ), value_at(HOST, TARGET))
    assert sae.evidence.error < 1e-6 < sae.target.evidence.runner_up_error
    with pytest.raises(GraftError, match=f"predicts {TARGET}"):
        graft(path, {f"{READ},{POST}": artifact}, tmp_path / "wrong", reference=tmp_path / "reference.npz")
    for hook in (READ, TARGET):
        found = locate(path, artifact, hook=hook, reference=tmp_path / "reference.npz")
        assert found.located.value == value_at(HOST, hook)
    wrong = f"{READ},{TARGET}@{value_at(HOST, BEFORE)}"
    with pytest.raises(GraftError, match=f"was asked for, but {value_at(HOST, TARGET)} is the tensor at the hook"):
        graft(path, {wrong: artifact}, tmp_path / "wrong", reference=tmp_path / "reference.npz")


def test_what_cannot_be_replaced_is_refused(tmp_path):
    artifact = export_transcoder(tmp_path / "sae")
    for target, says in (
        (BETWEEN, "The value .* of the host .* is not a tensor of floats 16 wide, as the SAE .* predicts"),
        (BEFORE, f"which the transcoder at {READ} predicts, before"),
    ):
        with pytest.raises(GraftError, match=says):
            graft_with(tmp_path, {f"{READ},{target}": artifact})
    with pytest.raises(GraftError, match=f"Two SAEs are to be grafted at {TARGET}"):
        graft_with(tmp_path, {f"{READ},{TARGET}": artifact, TARGET: sae_at_target(tmp_path)})
    nameless = export_transcoder(tmp_path / "nameless", hook_name_out="")
    with pytest.raises(GraftError, match="does not say at which hook the activation is that it predicts"):
        graft_with(tmp_path, {READ: nameless})
    assert not (tmp_path / "out").exists()


def sae_at_target(folder):
    export(make_sae(d_in=D_MODEL, d_sae=24, hook_name=TARGET), folder / "at-target", activations=normal(64, D_MODEL))
    return folder / "at-target"


def test_a_transcoder_that_reads_its_target_is_refused(tmp_path, monkeypatch):
    """The gates of the proof close: the stages hold what the graph must compute."""
    sound = Inserted.__init__

    def wrong(self, graph, graft, x, name, target=None):
        sound(self, graph, graft, x if target is None else target, name, target)

    artifact = export_transcoder(tmp_path / "sae")
    monkeypatch.setattr(Inserted, "__init__", wrong)
    with pytest.raises(ParityError, match="the splice decides about other features than the SAEs in PyTorch"):
        graft_with(tmp_path, {f"{READ},{TARGET}": artifact})


def test_an_error_against_what_it_reads_is_refused(tmp_path, monkeypatch):
    def wrong(self, op_type, inputs, **attributes):
        value = sound(self, op_type, inputs, **attributes)
        if op_type == "Cast" or op_type != "Reshape" or self._replaced is self._x or inputs[0] is not self._replaced:
            return value
        return sound(self, "Mul", [value, value])

    sound = Inserted._node
    artifact = export_transcoder(tmp_path / "sae")
    monkeypatch.setattr(Inserted, "_node", wrong)
    with pytest.raises(ParityError, match="hook_sae_error"):
        graft_with(tmp_path, {f"{READ},{TARGET}": artifact})


@pytest.mark.slow
def test_it_is_proved_against_pytorch(tmp_path):
    save("llama", tmp_path / "model")
    export(make_transcoder(d_in=WIDTH, d_out=WIDTH), tmp_path / "sae", activations=normal(64, WIDTH),
           targets=normal(64, WIDTH, seed=2))  # fmt: skip
    grafted = graft(f"hf:{tmp_path / 'model'}", [tmp_path / "sae"], tmp_path / "out")
    assert grafted.manifest.parity.reference == "pytorch"
    assert grafted.manifest.saes[0].target.evidence.method == "reference"
    assert verify(grafted.folder, "cpu").failures == []


def test_reconstruct_gives_the_shape_of_the_target():
    sae = make_transcoder(d_out=24, use_error_term=False)

    class Graft:
        class sae:  # noqa: N801
            input_shape, d_in, dtype, takes_target = (D_MODEL,), D_MODEL, "float32", False

    made = running.reconstruct(Graft, sae, normal(2, 3, D_MODEL), None, normal(2, 3, 24))
    assert (made.recons.shape, made.acts_post.shape) == ((2, 3, 24), (2, 3, 48))
