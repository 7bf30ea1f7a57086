"""How graphs are run for a proof: in calls of many tokens and of few, and with few graphs loaded at once."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_dtypes import bfloat16

from runtime.devices.cuda.folding import FEWEST_TOKENS
from runtime.parity.running import KeptGraphs, SessionRunner, run_in_calls
from tests.support.samples import normal


class Session:
    """A session that notes the tokens of each call, and returns the number of the call for each of them."""

    def __init__(self, device="cpu"):
        self.calls, self.released, self.device = [], [], device
        self.cfg = SimpleNamespace(dtype="float32")
        tensor = SimpleNamespace(name="input", shape=("tokens", 2))
        graphs = dict.fromkeys(("model", "model.sparse"), SimpleNamespace(inputs=[tensor]))
        graphs["features"] = SimpleNamespace(inputs=[tensor, SimpleNamespace(name="k", shape=(1,))])
        self.artifact = SimpleNamespace(manifest=SimpleNamespace(graphs=graphs))

    def run_graph(self, graph, feeds):
        self.calls.append(feeds["input"][:, 0].tolist())
        return {"output": feeds["input"] + len(self.calls)}

    def release(self, graph):
        self.released.append(graph)


@pytest.mark.parametrize(("graph", "tokens", "calls"), [
    ("model", 21, [20, 1]), ("model", 2, [1, 1]), ("model", 1, [1]),
    ("model.sparse", 41, [20, 8, 8, 4, 1]), ("model.sparse", 40, [20, 8, 8, 3, 1]), ("model.sparse", 4, [2, 1, 1]),
    ("model.sparse", 16, [8, 7, 1]), ("model.sparse", 2, [1, 1]), ("model.sparse", 1, [1]),
])  # fmt: skip
def test_the_last_call_has_a_single_token_and_a_cpu_variant_runs_in_batches_of_eight(graph, tokens, calls):
    session = Session()
    x = np.arange(2.0 * tokens, dtype=np.float32).reshape(tokens, 2)
    outputs = SessionRunner(session)(graph, {"input": x}, tokens)
    assert [len(call) for call in session.calls] == calls
    assert [token for call in session.calls for token in call] == x[:, 0].tolist()
    assert (outputs["output"] == x + np.repeat(np.arange(len(calls)) + 1, calls)[:, None]).all()


@pytest.mark.parametrize(("tokens", "calls"), [
    (21, [FEWEST_TOKENS, 10, 1]), (3, [FEWEST_TOKENS, 1, 1]), (2, [FEWEST_TOKENS, 1]), (1, [1]),
    (2 * FEWEST_TOKENS + 2, [FEWEST_TOKENS + 1, FEWEST_TOKENS - 1, 1, 1]),
    (1024, [512, *[FEWEST_TOKENS - 1] * 4, 3, 1]),
])  # fmt: skip
def test_on_cuda_half_of_the_tokens_are_in_a_large_batch_and_the_others_in_none(tokens, calls):
    session = Session("cuda:0")
    x = np.arange(2.0 * tokens, dtype=np.float32).reshape(tokens, 2)
    outputs = SessionRunner(session)("model", {"input": x}, tokens)
    assert [len(call) for call in session.calls] == calls
    half = tokens // 2
    assert set(session.calls[0]) == set(x[: max(1, half), 0])
    lengths = [half, *calls[1:]] if half else calls
    assert (outputs["output"] == x + np.repeat(np.arange(len(lengths)) + 1, lengths)[:, None]).all()


def test_on_cuda_the_strongest_features_are_those_of_top_features():
    """For many tokens that is another graph; see `runtime/devices/cuda/search.py`."""
    session, asked = Session("cuda:0"), []

    def top_features(x, k):
        asked.append((len(x), k))
        return x[:, :1].astype(np.int64), x[:, :1], x[:, 0]

    session.top_features = top_features
    x = np.arange(42.0, dtype=np.float32).reshape(21, 2)
    outputs = SessionRunner(session)("features", {"input": x, "k": np.array([5])}, 21)
    assert asked == [(FEWEST_TOKENS, 5), (10, 5), (1, 5)]
    assert session.calls == []
    assert np.array_equal(outputs["indices"], x[:, :1])
    assert np.array_equal(outputs["values"], x[:, :1])
    assert np.array_equal(outputs["l0"], x[:, 0])


def test_on_a_cpu_they_are_those_of_the_graph():
    session = Session()
    outputs = SessionRunner(session)("features", {"input": np.zeros((3, 2), np.float32), "k": np.array([5])}, 3)
    assert [len(call) for call in session.calls] == [2, 1]
    assert outputs.keys() == {"output"}


def test_only_inputs_with_a_row_for_each_token_are_repeated():
    names = {"input": ("tokens", 2), "feature_ids": ("m",), "feature_scale": ("rows", "m"), "one": ("rows", "m")}
    spec = SimpleNamespace(inputs=[SimpleNamespace(name=name, shape=shape) for name, shape in names.items()])
    feeds = {"input": normal(8, 2), "feature_ids": np.arange(4), "feature_scale": normal(8, 4), "one": normal(1, 4)}
    shapes = []

    def run(given):
        shapes.append({name: array.shape for name, array in given.items()})
        return {"output": given["input"] * given["feature_scale"][:, :2]}

    outputs = run_in_calls(run, spec, feeds, 8, large=11)
    assert [shape["input"] for shape in shapes] == [(11, 2), (3, 2), (1, 2)]
    assert [shape["feature_scale"] for shape in shapes] == [(11, 4), (3, 4), (1, 4)]
    assert {(shape["feature_ids"], shape["one"]) for shape in shapes} == {((4,), (1, 4))}
    assert np.array_equal(outputs["output"], feeds["input"] * feeds["feature_scale"][:, :2])


def test_outputs_of_bfloat16_are_arrays_of_float32():
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    spec = SimpleNamespace(inputs=[SimpleNamespace(name="input", shape=("tokens", 2))])
    outputs = run_in_calls(lambda feeds: {"output": feeds["input"].astype(bfloat16)}, spec, {"input": x}, 3)
    assert outputs["output"].dtype == np.float32
    assert (outputs["output"] == x).all()


def test_the_last_graph_and_activate_stay_loaded():
    released = []
    kept = KeptGraphs(released.append)
    for graph, expected in (
        ("model", []), ("activate", []), ("decode", ["model"]), ("decode", []), ("activate.wide", ["activate"]),
        ("encode", ["decode"]), ("activate.wide", []), ("model", ["encode"]), ("activate", ["activate.wide"]),
    ):  # fmt: skip
        released.clear()
        kept.make_room(graph)
        assert released == expected


def test_a_runner_makes_room_before_it_runs():
    session = Session()
    run = SessionRunner(session)
    for graph in ("model", "model", "model.sparse"):
        run(graph, {"input": np.zeros((2, 2), np.float32)}, 2)
    assert session.released == ["model"]
    assert len(session.calls) == 6
