"""Every graph of an artifact is judged by its own rule: a program in NumPy whose graphs are spoiled one at a time."""

from types import SimpleNamespace

import numpy as np
import pytest

from runtime.artifact.contracts import CONTRACTS
from runtime.artifact.names import FEATURE_IDS, FEATURE_SCALE, FEATURE_SHIFT, INDICES, L0, TARGET, VALUES, K
from runtime.errors import ProviderError, SAEError
from runtime.parity.proof import judge_graphs
from runtime.parity.report import Report
from tests.support.references import ERROR, INPUT, OUTPUT, POST, PRE, RECONS, decoded, make_reference, make_steered

ACTS_PRE = [[1.0, 3.0, -2.0, 2.0], [-1.0, -2.0, -3.0, -4.0], [5.0, -1.0, 4.0, 3.0]]
INPUTS = {
    "model": ["input"], "encode": ["input"], "acts": ["input"], "features": ["input", K],
    "activate": [PRE], "decode": [POST], "steer": ["input", FEATURE_IDS, FEATURE_SCALE, FEATURE_SHIFT],
}  # fmt: skip
OUTPUTS = {
    "model": [INPUT, PRE, POST, RECONS, ERROR, OUTPUT], "encode": [PRE, POST], "acts": [POST],
    "features": [INDICES, VALUES, L0], "activate": [POST], "decode": [RECONS],
    "steer": [INPUT, PRE, POST, RECONS, ERROR, OUTPUT],
}  # fmt: skip
GRAPHS = list(INPUTS)


class Program:
    """An SAE whose decoder adds up its activations. `spoil(graph, outputs, feeds)` changes the outputs of a graph."""

    def __init__(self, clean=None, spoil=None, variants=(), **sae):
        self.clean = make_reference(ACTS_PRE, budget=1e-6) if clean is None else clean
        self.steered = make_steered(self.clean, [0, 1], [[0.0, 1.0]], [[2.0, 0.5]])
        self.spoil, self.calls = spoil, []

        def tensors(names):
            return [SimpleNamespace(name=name) for name in names]

        graphs = [*INPUTS, *variants]
        self.manifest = SimpleNamespace(
            sae=SimpleNamespace(**{"dtype": self.clean.dtype, "d_sae": self.clean.truth[PRE].shape[1], **sae}),
            graphs={graph: SimpleNamespace(inputs=tensors(INPUTS[graph.partition(".")[0]]),
                                           outputs=tensors(OUTPUTS[graph.partition(".")[0]])) for graph in graphs},
        )  # fmt: skip

    def __call__(self, graph, feeds, tokens):
        feeds = {name: np.asarray(value) for name, value in feeds.items()}
        self.calls.append((graph, feeds, tokens))
        kind, pre = graph.partition(".")[0], self.clean.original[PRE]
        if kind == "activate":
            outputs = {POST: self.activate(feeds[PRE])}
        elif kind == "decode":
            outputs = {RECONS: decoded(feeds[POST])}
        else:
            acts, x = self.activate(pre), feeds["input"]
            clean = decoded(acts)
            if kind == "steer":
                acts = acts.copy()
                ids = feeds[FEATURE_IDS]
                acts[:, ids] = acts[:, ids] * feeds[FEATURE_SCALE] + feeds[FEATURE_SHIFT]
            error, recons = x - clean, decoded(acts)
            hooks = {INPUT: x, PRE: pre, POST: acts, RECONS: recons, ERROR: error, OUTPUT: recons + error}
            order = np.argsort(-np.abs(acts), axis=1, kind="stable")[:, : int(feeds.get(K, [0])[0])]
            values = np.take_along_axis(acts, order, axis=1)
            hooks |= {INDICES: np.where(values != 0, order, -1), VALUES: values, L0: (acts != 0).sum(axis=1)}
            outputs = {name: hooks[name].copy() for name in OUTPUTS[kind]}
        if self.spoil:
            self.spoil(graph, outputs, feeds)
        return outputs

    def activate(self, pre):
        return np.maximum(pre, 0)

    def judged(self, *graphs):
        """Return the report of some graphs."""
        report = Report("title")
        judge_graphs(graphs or GRAPHS, self.manifest, self.steered, self, report)
        return report


def spoiling(graph, change):
    """Return a function that changes the outputs of one graph in place."""

    def spoil(name, outputs, feeds):
        if name == graph:
            change(outputs, feeds)

    return spoil


def names_of_failures(report):
    return {verdict.hook for verdict in report.verdicts if verdict.failures}


def test_a_correct_program_passes_with_a_verdict_for_each_output():
    program = Program()
    report = program.judged()
    assert report.failures == []
    expected = {graph: [POST, L0, VALUES] if graph == "features" else OUTPUTS[graph] for graph in GRAPHS}
    assert [(v.graph, v.hook) for v in report.verdicts] == [(g, name) for g in GRAPHS for name in expected[g]]
    assert {tokens for _, _, tokens in program.calls} == {3}


def test_features_are_asked_for_more_than_are_on_and_for_fewer():
    for width, on, ks in (
        (4, 3, [4, 1]), (40, 4, [16, 1, 2]), (40, 0, [8, 1]), (640, 9, [26, 1, 4]), (200, 9, [26, 1, 3, 4])
    ):  # fmt: skip
        pre = -np.ones((3, width), np.float32)
        pre[:2, :on] = 1
        program = Program(make_reference(pre))
        assert program.judged("features").failures == []
        assert [feeds[K].tolist() for graph, feeds, _ in program.calls if graph == "features"] == [[k] for k in ks]


def test_the_target_is_an_input():
    program = Program(make_reference(ACTS_PRE, target=np.float32([[1, 2], [3, 4], [5, 6]]), budget=9.0))
    program.manifest.graphs["acts"].inputs.append(SimpleNamespace(name=TARGET))
    program.judged("acts")
    assert program.calls[0][1][TARGET].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_steering_is_judged_without_an_edit_as_well():
    def wrong_unless_edited(outputs, feeds):
        if (feeds[FEATURE_SCALE] == 1).all():
            assert (feeds[FEATURE_SHIFT] == 0).all()
            assert feeds[FEATURE_SCALE].shape == feeds[FEATURE_SHIFT].shape == (1, 2)
            outputs[PRE][0, 0] += 1

    report = Program(spoil=spoiling("steer", wrong_unless_edited)).judged("steer")
    wrong = [(v.graph, v.hook) for v in report.verdicts if v.failures]
    assert wrong == [("steer, without an edit", PRE)]
    assert len(report.verdicts) == 7  # the others without an edit are right, and not listed

    def always_wrong(outputs, feeds):
        outputs[PRE][0, 0] += 1

    report = Program(spoil=spoiling("steer", always_wrong)).judged("steer")
    assert {v.graph for v in report.verdicts} == {"steer"}


@pytest.mark.parametrize("value", [None, np.nan])
def test_steering_that_cannot_be_followed_fails(value):
    def spoil(outputs, feeds):
        if value is None:
            outputs[POST] = outputs[POST][:, :2]
        else:
            outputs[POST][1, 2] = value

    assert POST in names_of_failures(Program(spoil=spoiling("steer", spoil)).judged("steer"))


def spoil_acts_pre(outputs):
    if PRE in outputs:
        outputs[PRE][0, 0] = np.nan
    else:
        outputs[POST][0, 0] = np.nan


@pytest.mark.parametrize("graph", ["model", "encode", "acts", "activate"])
@pytest.mark.parametrize("spoil", [
    lambda outputs: outputs.update({POST: outputs[POST][:2]}),
    lambda outputs: outputs.update({POST: outputs[POST][..., None]}),
    lambda outputs: outputs.pop(POST),
    lambda outputs: outputs[POST].__setitem__((0, 0), np.inf),
    lambda outputs: outputs[POST].fill(np.nan),
    spoil_acts_pre,
], ids=["tokens", "shape", "missing", "infinite", "nan", "acts_pre"])  # fmt: skip
def test_activations_that_cannot_be_followed_fail_and_the_proof_goes_on(graph, spoil):
    report = Program(spoil=spoiling(graph, lambda outputs, feeds: spoil(outputs))).judged(graph, "decode")
    assert report.problems == []
    assert {PRE, POST} & names_of_failures(report)
    assert report.verdicts[-1].graph == "decode"


# What features returns


def change(name, index, value, k=4):
    """Return a function that changes what `features` returns for one `k`."""

    def spoil(outputs, feeds):
        if feeds[K].tolist() == [k]:
            outputs[name][index] = value

    return spoil


def swap(outputs, feeds):
    """Swap the last two features of the last token."""
    if feeds[K].tolist() == [4]:
        for name in (INDICES, VALUES):
            outputs[name][2, 1:3] = outputs[name][2, 2:0:-1].copy()


def name_the_second(outputs, feeds):
    """Return the second largest feature of the first token with its own activation."""
    if feeds[K].tolist() == [1]:
        outputs[INDICES][0, 0], outputs[VALUES][0, 0] = 3, 2.0


OTHER = "with k = 1, token {} gets other features or another l0 than with k = 4."


@pytest.mark.parametrize(("spoil", "message"), [
    (change(INDICES, (0, 1), 1), "indices name a feature twice for token 0."),
    (change(INDICES, ([0, 2], [1, 1]), [1, 0]), "indices name a feature twice for token 0 (and 1 more like it)."),
    (change(INDICES, (2, 3), 0), "indices are not -1 exactly where values are 0 for token 2."),
    (change(INDICES, (1, 0), 2), "indices are not -1 exactly where values are 0 for token 1."),
    (change(INDICES, (1, 0), 2, k=1), OTHER.format(1)),
    (change(L0, 2, 2), "l0 is not the number of features on for token 2."),
    (change(L0, 1, 7), "l0 is not the number of features on for token 1."),
    (swap, "values are not in descending order for token 2."),
    (name_the_second, OTHER.format(0)),
    (change(VALUES, (2, 0), 4.0, k=1), OTHER.format(2)),
    (change(INDICES, (2, 0), 3, k=1), OTHER.format(2)),
    (change(INDICES, (2, 0), 9, k=1), OTHER.format(2)),
    (change(L0, 0, 2, k=1), OTHER.format(0)),
    (change(INDICES, (2, 2), 4), f"{INDICES}: The indices range from 0 to 4, but d_sae is 4."),
])  # fmt: skip
def test_a_wrong_list_of_features_is_seen(spoil, message):
    failures = Program(spoil=spoiling("features", spoil)).judged("features").failures
    assert f"features: {message}" in failures
    assert not [failure for failure in failures if "with k = 4, " in failure]  # it is not compared with itself


@pytest.mark.parametrize(("name", "index", "value"), [
    (INDICES, (0, 1), 0),  # the first feature again, whose activation is the same
    (INDICES, (0, 1), 2), (INDICES, (0, 1), -1), (INDICES, (1, 1), 2), (VALUES, (2, 1), 4.5), (L0, 0, 3),
])  # fmt: skip
def test_a_wrong_list_of_some_of_the_features_is_seen(name, index, value):
    reference = make_reference([[5.0, 5.0, 2.0, 1.0], [3.0, -1.0, -1.0, -1.0], [5.0, 4.0, 1.0, 2.0]])
    assert Program(reference).judged("features").failures == []
    failures = Program(reference, spoiling("features", change(name, index, value, k=2))).judged("features").failures
    (failure,) = failures
    token = index if isinstance(index, int) else index[0]
    assert failure == f"features: with k = 2, token {token} gets other features or another l0 than with k = 4."


def test_equal_features_may_be_in_another_order():
    def the_other(outputs, feeds):
        if feeds[K].tolist() == [1]:
            outputs[INDICES][0, 0] = 1

    pre = [[5.0, 5.0, -1.0, -1.0], [3.0, -1.0, -1.0, -1.0], [5.0, 4.0, 1.0, 2.0]]
    assert Program(make_reference(pre), spoiling("features", the_other)).judged("features").failures == []


def test_features_of_equal_size_and_other_sign_may_be_in_another_order():
    def the_other(outputs, feeds):
        if feeds[K].tolist() == [1]:
            outputs[INDICES][0, 0], outputs[VALUES][0, 0] = 1, -5.0

    pre = np.float32([[5.0, -5.0, 1.0, 1.0], [3.0, -1.0, -1.0, -1.0], [5.0, 4.0, 1.0, 2.0]])
    program = Program(make_reference(pre, pre), spoiling("features", the_other))
    program.activate = lambda pre: pre
    assert program.judged("features").failures == []


@pytest.mark.parametrize("name", [INDICES, VALUES, L0])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_features_of_another_shape_are_reported(name, k):
    def shorter(outputs, feeds):
        if feeds[K].tolist() == [k]:
            outputs[name] = outputs[name][:2]

    reference = make_reference([[5.0, 5.0, 2.0, 1.0], [3.0, -1.0, -1.0, -1.0], [5.0, 4.0, 1.0, 2.0]])
    (verdict,) = Program(reference, spoiling("features", shorter)).judged("features").verdicts
    expected = (3,) if name == L0 else (3, k)
    found = (2, *expected[1:])
    assert verdict.failures == (f"features: {name} is {found} for k = {k}, not {expected}.",)


def test_a_place_without_a_feature_is_no_feature():
    assert (
        Program(make_reference([[5.0, -1, -1, -1], [-1, 5, -1, -1], [-1, 2, -1, 5]])).judged("features").failures == []
    )


def test_negative_activations_are_ordered_by_size():
    program = Program(make_reference(ACTS_PRE, ACTS_PRE))
    program.activate = lambda pre: pre
    assert program.judged("features").failures == []
    assert program.judged("acts").failures == []


# Stages


class AtAThreshold(Program):
    """A program whose features are on above 1, and whose graph `model` has another acts_pre for one of them."""

    def __init__(self, spoil=None, variants=(), **more):
        pre = [[2.0, 3.0, -2.0, 2.0], [0.99, -2.0, -3.0, 2.0], [5.0, -1.0, 4.0, 3.0]]
        super().__init__(make_reference(pre, np.multiply(pre, np.array(pre) > 1), budget=0.05, **more), spoil, variants)

    def activate(self, pre):
        return np.where(pre > 1, pre, 0)

    def __call__(self, graph, feeds, tokens):
        outputs = super().__call__(graph, feeds, tokens)
        if graph.startswith(("model", "steer")):
            outputs[PRE][1, 0] = outputs[POST][1, 0] = 1.01
            outputs[RECONS] = decoded(outputs[POST])
            outputs[ERROR] = outputs[INPUT] - outputs[RECONS]
            outputs[OUTPUT] = outputs[RECONS] + outputs[ERROR]
        return outputs


@pytest.mark.parametrize("variants", [(), ("model.sparse", "decode.sparse")], ids=["portable", "sparse"])
def test_a_graph_is_held_to_the_stages_of_its_own_family(variants):
    """The family has a decoder of its own and no activate, so that it is held to the portable one."""
    program = AtAThreshold(variants=variants)
    graph = variants[0] if variants else "model"
    assert names_of_failures(program.judged(graph)) == set()
    assert [name for name, _, _ in program.calls] == [graph, "activate", variants[1] if variants else "decode"]
    _, feeds, tokens = program.calls[-1]
    assert (tokens, feeds[POST].tolist()) == (1, np.float32([[1.01, 0, 0, 2]]).tolist())


def test_an_edit_follows_the_decision_about_a_feature_that_is_not_edited():
    pre = [[2.0, 3.0, -2.0, 2.0], [-3.0, -2.0, 0.99, 2.0], [5.0, -1.0, 4.0, 3.0]]

    def decide(outputs, feeds):
        outputs[PRE][1, 2] = outputs[POST][1, 2] = 1.01
        outputs[RECONS] = decoded(outputs[POST])
        outputs[ERROR][1] -= np.float32(1.01)
        outputs[OUTPUT] = outputs[RECONS] + outputs[ERROR]

    clean = make_reference(pre, np.multiply(pre, np.array(pre) > 1), budget=0.05)
    program = Program(clean, spoiling("steer", decide))
    program.activate = lambda pre: np.where(pre > 1, pre, 0)
    report = program.judged("steer")
    assert report.failures == []
    assert {verdict.note for verdict in report.verdicts if verdict.hook == POST} == {
        "(1 decision differing from the original)"
    }


def test_an_edit_that_cannot_be_followed_is_judged_as_it_is():
    def shorter(outputs, feeds):
        if not (feeds[FEATURE_SCALE] == 1).all():
            outputs[POST] = outputs[POST][:2]

    program = AtAThreshold()
    program.judged("steer")
    assert program.calls[-1][0] == "decode"
    short = AtAThreshold()
    call = short.__call__
    report = Report("title")

    def run(graph, feeds, tokens):
        outputs = call(graph, feeds, tokens)
        if graph == "steer":
            shorter(outputs, feeds)
        return outputs

    judge_graphs(["steer"], short.manifest, short.steered, run, report)
    assert f"steer: {POST}: it is (2, 4) float32, the original (3, 4) float32." in report.failures


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda outputs: outputs.update({RECONS: outputs[RECONS][:, :1]}),
     f"decode must return {RECONS} of shape (1, 2), and returned {{'{RECONS}': (1, 1)}}."),
    (lambda outputs: outputs.pop(RECONS), f"decode must return {RECONS} of shape (1, 2), and returned {{}}."),
    (lambda outputs: outputs[RECONS].__setitem__((0, 1), np.nan), f"decode gave a {RECONS} that is not finite."),
])  # fmt: skip
def test_a_stage_that_cannot_be_used_is_a_problem_of_the_graph(spoil, message):
    report = AtAThreshold(spoiling("decode", lambda outputs, feeds: spoil(outputs))).judged("model", "acts")
    assert report.problems == [f"model: {message}"]
    assert {verdict.graph for verdict in report.verdicts} == {"acts"}


def test_a_stage_that_reads_the_input_gets_that_of_its_tokens():
    program = AtAThreshold(x=[[1, 2], [3, 4], [5, 6]])
    program.manifest.graphs["decode"].inputs.append(SimpleNamespace(name="input"))
    program.judged("model")
    assert program.calls[-1][1]["input"].tolist() == [[3, 4]]


def test_a_tie_is_adopted_by_activate():
    uncertain = np.array([[True, True, False]])
    clean = make_reference([[3.0, 3.0, 1.0]], [[3, 0, 0]], uncertain=uncertain)
    program = Program(clean)
    program.activate = lambda pre: np.where([[False, True, False]], pre, 0)
    assert program.judged("activate").failures == []
    program.activate = lambda pre: np.where([[False, False, True]], pre, 0)
    assert names_of_failures(program.judged("activate")) == {POST}


# Columns


@pytest.mark.parametrize(("graph", "hook"), [("encode", PRE), ("model", PRE), ("decode", RECONS), ("steer", PRE)])
def test_columns_are_judged_of_what_the_original_computed_from_the_same_values(graph, hook):
    pre = np.where(np.arange(4) < 2, 1.0, -1.0) * np.ones((32, 1))
    clean = make_reference(pre, budget=9.0, dtype="float16")

    def spoil(outputs, feeds):
        outputs[hook][:, 1] += 0.5

    program = Program(clean, spoiling(graph, spoil), dtype="float32")
    found = [f for f in program.judged(graph).failures if "over all tokens, the error of" in f]
    assert len(found) == 1
    assert hook in found[0]


def test_the_reconstruction_of_a_whole_graph_has_no_columns():
    clean = make_reference(np.ones((32, 4)), budget=9.0, dtype="float16")

    def spoil(outputs, feeds):
        outputs[RECONS][:, 1] += 0.5

    program = Program(clean, spoiling("model", spoil), dtype="float32")
    assert not [f for f in program.judged("model").failures if "over all tokens" in f]


# Errors


def test_an_error_of_a_graph_is_a_problem_and_one_of_a_device_is_raised():
    def fail(error):
        def spoil(graph, outputs, feeds):
            if graph == "encode":
                raise error

        return Program(spoil=spoil)

    report = fail(SAEError("no memory")).judged("encode", "acts")
    assert report.problems == ["encode: no memory"]
    assert [verdict.graph for verdict in report.verdicts] == ["acts"]
    with pytest.raises(ProviderError, match="gone"):
        fail(ProviderError("gone")).judged("encode")


def test_the_graphs_here_are_those_of_an_artifact():
    assert {graph for graph in CONTRACTS if "." not in graph} == set(INPUTS)
