"""Graphs that run as a chain of sessions: what is shared, what it computes, and the memory that it takes."""

import multiprocessing

import numpy as np
import pytest
import torch
from onnx import helper

import runtime
from benchmarks.shared.machine import process_memory
from runtime import Ablate, Add, SAESession
from runtime.artifact.contracts import whole_variant
from runtime.artifact.names import FEATURE_HOOKS, HOOK_ACTS_POST, HOOK_ACTS_PRE, INTERVENTION
from runtime.artifact.stages import rest_of, split
from runtime.devices import cpu, staged
from runtime.devices.staged import StagedSession
from saeexport import export
from tests.support.breaking import edit_graph, rewrite
from tests.support.samples import MINILM, normal
from tests.support.zoo import D_IN, sae_of, target_of

NEVER, MATRICES = 1 << 40, 100
"""Smallest numbers of elements of a shared parameter: more than any has, and more than a bias of a small SAE has."""

LARGE = 100_000
"""The same for the larger SAE in `models/`."""

CASES = {
    "standard": ("standard", {"use_error_term": True}, "float32"),
    "without-error": ("standard", {}, "float32"),
    "normalized": ("standard", {"normalize_activations": "layer_norm", "use_error_term": True}, "float32"),
    "gated": ("gated", {"use_error_term": True}, "float32"),
    "topk": ("topk", {}, "float32"),
    "abstopk": ("abstopk", {"use_error_term": True}, "float32"),
    "transcoder": ("skip_transcoder", {"use_error_term": True}, "float32"),
    "float16": ("jumprelu", {"use_error_term": True}, "float16"),
    "bfloat16": ("standard", {"use_error_term": True}, "bfloat16"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """An artifact, an input and a target."""
    architecture, more, dtype = CASES[request.param]
    sae = sae_of(architecture, **more).to(getattr(torch, dtype))
    path = tmp_path_factory.mktemp("staged") / "sae"
    export(sae, path)
    target = target_of(sae, 11)
    return path, normal(11, D_IN).astype(dtype), None if target is None else target.astype(dtype)


def use(session, x, target):
    """Return the results of every kind of call and of every graph, by name."""
    options = {} if target is None else {"target": target}
    output, hooks = session.run_with_cache(x, **options)
    _, pre = session.run_with_cache(x, HOOK_ACTS_PRE, return_output=False, **options)
    steered, edited = session.steer(x, {3: Ablate(), 5: Add(2.0)}, **options)
    found = {"output": output, **hooks, "pre": pre[HOOK_ACTS_PRE], "encode": session.encode(x), "steered": steered}
    found |= {f"edited {name}": value for name, value in edited.items()}
    found |= {f"{name} alone": y for name, y in session.compute(x, FEATURE_HOOKS).items()}  # without a target
    found |= dict(zip(("indices", "values", "l0"), session.top_features(x, 5), strict=True))
    for name, edit in (("halved", lambda acts, hook: acts / 2), ("negative", lambda acts, hook: acts - acts.max())):
        found[name] = session.run_with_hooks(x, [(HOOK_ACTS_POST, edit)], **options)
        both = [(HOOK_ACTS_PRE, lambda acts, hook: acts + acts), (HOOK_ACTS_POST, edit)]
        found[f"both {name}"] = session.run_with_hooks(x, both, **options)
    found["decode"] = session.decode(found["encode"], x)
    sources = {"input": x, "target": target, "k": np.array([4]), **hooks, HOOK_ACTS_PRE: 2 * found["pre"]}
    sources |= dict(zip(INTERVENTION, (np.array([1, 7]), *np.full((2, 1, 2), 2, x.dtype)), strict=True))
    cpu_variants = [graph for graph in session.artifact.manifest.graphs if whole_variant(graph)]
    for graph, spec in ((graph, session.artifact.manifest.graphs[graph]) for graph in cpu_variants):
        outputs = session.run_graph(graph, {tensor.name: sources[tensor.name] for tensor in spec.inputs})
        found |= {f"{graph} {name}": value for name, value in outputs.items()}
    return found


@pytest.mark.parametrize(("block_tokens", "bound"), [(None, NEVER), (None, 0), (4, NEVER)])
def test_a_chain_computes_the_same_bits_as_the_whole_graph(case, block_tokens, bound, monkeypatch):
    path, x, target = case
    results = []
    monkeypatch.setattr(staged, "SEARCHED_TOKENS", 3)
    for smallest in (NEVER, MATRICES):
        monkeypatch.setattr(staged, "SMALLEST_SHARED", smallest)
        monkeypatch.setattr(cpu, "SMALLEST_BOUND", bound if smallest == MATRICES else NEVER)
        with SAESession(path, "cpu", block_tokens=block_tokens) as session:
            results.append(use(session, x, target))
            in_stages = {name for name, loaded in session._graphs.loaded.items() if isinstance(loaded, StagedSession)}
            cpu_variants = {session._graphs.variant(graph) for graph in ("model", "steer", "features")}
        assert in_stages >= cpu_variants if smallest == MATRICES else not in_stages
        assert all(whole_variant(graph) for graph in in_stages)
    for name, expected in results[0].items():
        np.testing.assert_array_equal(*(np.asarray(value).astype(np.float64) for value in (results[1][name], expected)),
                                      err_msg=name)  # fmt: skip


def called_function(model):
    """Make the ReLU a function of the model."""
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    body = [helper.make_node("Relu", ["x"], ["y"])]
    opsets = [helper.make_opsetid("", model.opset_import[0].version)]
    model.functions.append(helper.make_function("own", "Rectify", ["x"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    relu.op_type, relu.domain = "Rectify", "own"


def computed_twice(model):
    """Compute the activations a second time, for one of their two readers."""
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    at = list(model.graph.node).index(relu)
    model.graph.node.insert(at + 1, helper.make_node("Relu", relu.input, ["again"]))
    reader = next(node for node in reversed(model.graph.node) if relu.output[0] in node.input)
    reader.input[list(reader.input).index(relu.output[0])] = "again"


@pytest.mark.parametrize("change", [called_function, computed_twice])
def test_a_graph_whose_stages_are_not_certain_is_loaded_whole(tmp_path, monkeypatch, change):
    monkeypatch.setattr(staged, "SMALLEST_SHARED", MATRICES)
    path = export(sae_of("standard"), tmp_path / "sae").path
    rewrite(path, "features.sparse.onnx", edit_graph(change))
    with SAESession(path, "cpu") as session, SAESession(path, "cpu", shared_stages=False) as whole:
        for found, expected in zip(session.top_features(normal(9, D_IN), 3), whole.top_features(normal(9, D_IN), 3),
                                   strict=True):  # fmt: skip
            np.testing.assert_array_equal(found, expected)
        assert not isinstance(session._graphs.loaded["features.sparse"], StagedSession)


@pytest.mark.parametrize("graph", ["model", "steer", "features"])
def test_a_verification_runs_the_graphs_that_other_engines_load(tmp_path, monkeypatch, graph):
    """The chain would not run an operator that none of the outputs needs."""
    monkeypatch.setattr(staged, "SMALLEST_SHARED", MATRICES)
    path = export(sae_of("standard"), tmp_path / "sae").path
    rewrite(path, f"{graph}.sparse.onnx", edit_graph(
        lambda model: model.graph.node.append(helper.make_node("NoSuchOperator", ["input"], ["unused"]))))  # fmt: skip
    with SAESession(path, "cpu") as session:
        session(normal(3, D_IN))
    assert any(f"{graph}.sparse" in problem for problem in runtime.verify(path, "cpu").failures)


def test_graphs_are_loaded_whole_if_stages_are_not_to_be_shared():
    with SAESession(MINILM, "cpu", shared_stages=False) as session:
        x = normal(3, session.cfg.d_in)
        session(x)
        session.encode(x)
        assert session.explain([HOOK_ACTS_PRE]).graph == "encode"
        assert not any(isinstance(loaded, StagedSession) for loaded in session._graphs.loaded.values())


def sessions_of(session, graph):
    return {id(step.session) for step in session._graphs.loaded[graph]._steps}


def test_graphs_share_their_stages_until_the_last_is_released():
    with SAESession(MINILM, "cpu") as session:
        x = normal(3, session.cfg.d_in)
        session.encode(x)
        (encoder,) = sessions_of(session, "acts")
        session(x)
        session.top_features(x, 3)
        session.steer(x, {1: Ablate()})
        session.run_with_hooks(x, [(HOOK_ACTS_POST, lambda acts, hook: acts / 2)])
        session.run_with_cache(x, HOOK_ACTS_PRE, return_output=False)
        assert set(session._graphs.loaded) == {"acts", "model.sparse", "features.sparse", "steer.sparse"}
        stages = sessions_of(session, "model.sparse")
        assert encoder in stages
        assert stages < sessions_of(session, "steer.sparse")
        assert encoder in sessions_of(session, "features.sparse")
        shared = session._graphs.backend._stages._sessions
        assert len(shared) == 2
        for graph in ("model.sparse", "steer.sparse"):
            session.release(graph)
        assert [id(one) for one in shared.values()] == [encoder]
        session.release("features.sparse")
        session.release("acts")
        assert not shared


def test_a_hook_of_the_encoder_needs_no_other_graph(monkeypatch):
    for smallest, graph in ((LARGE, "model.sparse"), (NEVER, "encode")):
        monkeypatch.setattr(staged, "SMALLEST_SHARED", smallest)
        with SAESession(MINILM, "cpu") as session:
            assert session.explain([HOOK_ACTS_PRE]).graph == graph
            session.run_with_cache(normal(1, session.cfg.d_in), HOOK_ACTS_PRE, return_output=False)
            assert set(session._graphs.loaded) == {graph}


def test_edited_activations_are_decoded_by_the_decoder_that_is_loaded_unless_one_is_negative():
    with SAESession(MINILM, "cpu") as session:
        x = normal(3, session.cfg.d_in)
        acts = session.encode(x)
        session(x)
        clean = session.decode(acts)
        assert set(session._graphs.loaded) == {"acts", "model.sparse"}
        for bad in (-1.0, np.nan):
            session.release("decode.sparse")
            session.decode(np.full_like(acts, bad))
            assert "decode.sparse" in session._graphs.loaded
        np.testing.assert_array_equal(
            session.run_graph("decode.sparse", {HOOK_ACTS_POST: acts})["hook_sae_recons"], clean
        )


def test_only_the_steps_that_are_needed_run():
    with SAESession(MINILM, "cpu") as session:
        session(normal(1, session.cfg.d_in))
        model = session._graphs.loaded["model.sparse"]
        given = frozenset(["input"])
        assert [len(model.chain([name], given)) for name in (HOOK_ACTS_PRE, HOOK_ACTS_POST, "hook_sae_recons")] == \
            [1, 1, 2]  # fmt: skip
        assert len(model.chain(["hook_sae_recons"], given | {HOOK_ACTS_POST})) == 1


@pytest.mark.parametrize(("graph", "found"), [
    ("model.sparse", True), ("acts", True), ("steer.sparse", True), ("features.sparse", True),
    ("decode.sparse", False),  # it also reads negative activations
    ("activate", False),  # it is given what the encoder computes
])  # fmt: skip
def test_a_stage_is_shared_by_the_graphs_that_compute_it(graph, found):
    stages = split((MINILM / "model.sparse.onnx").read_bytes(), LARGE)
    assert (rest_of((MINILM / f"{graph}.onnx").read_bytes(), stages, LARGE) is not None) == found


def test_a_graph_that_is_given_a_hook_does_not_use_the_stage_that_computes_it():
    stages = split((MINILM / "model.onnx").read_bytes(), LARGE)  # whose encoder `activate` follows
    for smallest in (1, LARGE):  # a threshold of each feature is a parameter, too
        assert rest_of((MINILM / "activate.onnx").read_bytes(), stages, smallest) is None


@pytest.mark.parametrize(("old", "new"), [(b"Relu", b"Tanh"), (b"hook_sae_acts_pre", b"hook_sae_acts_prf")])
def test_a_graph_with_another_operator_keeps_its_own_and_names_do_not_matter(old, new):
    graph = (MINILM / "features.sparse.onnx").read_bytes()
    assert old in graph
    stages = split((MINILM / "model.sparse.onnx").read_bytes(), LARGE)
    hooks = rest_of(graph.replace(old, new), stages, LARGE).hooks
    expected = {HOOK_ACTS_PRE} if new == b"Tanh" else {*FEATURE_HOOKS}
    assert set(hooks.values()) == expected


@pytest.mark.parametrize("place", [b"offset", b"length"])
def test_a_graph_with_other_parameters_keeps_its_own(place):
    graph = (MINILM / "acts.onnx").read_bytes()
    stages = split((MINILM / "model.sparse.onnx").read_bytes(), LARGE)
    assert rest_of(graph, stages, LARGE) is not None
    start = graph.rindex(place) + len(place) + 2  # the number is a string after its tag and its length
    other = graph[:start] + bytes([graph[start] ^ 1]) + graph[start + 1 :]
    assert rest_of(other, stages, LARGE) is None


@pytest.mark.parametrize("content", [b"", b"no model", b"\xff" * 40])
def test_what_is_not_a_graph_is_left_to_onnx_runtime(content):
    stages = split((MINILM / "model.sparse.onnx").read_bytes(), LARGE)
    assert split(content, LARGE) is None
    assert rest_of(content, stages, LARGE) is None


def use_once(session, x):
    """Make a call of each kind."""
    session.encode(x)
    session(x)
    session.run_with_cache(x)
    session.top_features(x, 3)
    session.steer(x, {1: Ablate()})
    session.run_with_hooks(x, [(HOOK_ACTS_PRE, lambda acts, hook: acts), (HOOK_ACTS_POST, lambda acts, hook: acts)])
    session.run_with_cache(x, HOOK_ACTS_PRE, return_output=False)


def memory_after_every_call(smallest):
    """Return the anonymous memory that every kind of call together adds to this process, over the weights."""
    staged.SMALLEST_SHARED = smallest
    with SAESession(MINILM, "cpu") as session:
        x = normal(1, session.cfg.d_in)
        session.watch([0])(x)  # so that ONNX Runtime itself has started
        before = process_memory("self", "RssAnon")
        use_once(session, x)
        return (process_memory("self", "RssAnon") - before) / session.artifact.manifest.files[
            "weights.safetensors"
        ].bytes


@pytest.mark.skipif(not process_memory("self", "RssAnon"), reason="reads the memory of the process from /proc")
def test_all_calls_together_hold_each_matrix_once():
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        shared, copied = pool.map(memory_after_every_call, [staged.SMALLEST_SHARED, NEVER], chunksize=1)
    assert shared < 1.6  # one copy of each matrix, and half of that again for ONNX Runtime
    assert copied > 2.6


def memory_of_a_batch(bound):
    """Return the growth of the anonymous memory in tensors of all features, after every call and after later ones."""
    cpu.SMALLEST_BOUND, rows = bound, 4000
    with SAESession(MINILM, "cpu") as session:
        x, tensor = normal(rows, session.cfg.d_in), rows * session.cfg.d_sae * 4
        use_once(session, x[:1])
        before = process_memory("self", "RssAnon")
        use_once(session, x)
        after = process_memory("self", "RssAnon")
        for _ in range(cpu.KEPT_CALLS + 1):
            session.encode(x[:1])
        return (after - before) / tensor, (process_memory("self", "RssAnon") - before) / tensor


@pytest.mark.skipif(not process_memory("self", "RssAnon"), reason="reads the memory of the process from /proc")
def test_sessions_share_the_memory_of_a_batch_and_give_it_back():
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        (shared, later), (own, kept) = pool.map(memory_of_a_batch, [cpu.SMALLEST_BOUND, NEVER], chunksize=1)
    assert shared < 5  # the activations before and after ReLU and after an edit, and what the search takes
    assert later < 2
    assert own > 6
    assert kept > 6
