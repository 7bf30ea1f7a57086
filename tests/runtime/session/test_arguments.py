"""Functions of a session with arguments of the wrong type, shape or value: each is an error of `runtime.errors`."""

import numpy as np
import pytest

import runtime
from runtime import Ablate, Add, Clamp, Edit, InputError, Intervention, SAESession, Scale, TopFeatures
from saeexport import export
from tests.support.samples import TINY, normal
from tests.support.wrong import NOT_A_NUMBER, NOT_A_PATH, accepted, arrays_of
from tests.support.zoo import D_IN, D_OUT, sae_of

X = normal(3, 6)
POST, ACTS = "hook_sae_acts_post", normal(3, 16)

NOT_NAMES = [None, 3, POST, ["nothing"], [None], [3], [[POST]], [np.ones(2)], [POST.encode()]]
NOT_FUNCTIONS = [None, 3, "f", [print]]
OF_X = {
    "__call__": lambda s, x: s(x),
    "run_with_cache": lambda s, x: s.run_with_cache(x),
    "run_with_cache, a filter": lambda s, x: s.run_with_cache(x, POST, return_output=False),
    "run_with_hooks": lambda s, x: s.run_with_hooks(x, [(POST, lambda acts, hook: acts * 2)]),
    "steer": lambda s, x: s.steer(x, {3: Ablate()}),
    "encode": lambda s, x: s.encode(x),
    "compute": lambda s, x: s.compute(x, [POST]),
    "top_features": lambda s, x: s.top_features(x, 2),
    "compute_features": lambda s, x: s.compute_features(x, [1, 3]),
    "watch": lambda s, x: s.watch([1, 3])(x),
    "run_graph": lambda s, x: s.run_graph("model", {"input": x}),
}


@pytest.mark.parametrize("call", OF_X.values(), ids=OF_X)
def test_activations(session, call):
    assert not accepted(lambda x: call(session, x), arrays_of(6))


def test_activations_to_decode(session):
    assert not accepted(session.decode, arrays_of(16))


@pytest.fixture(scope="module")
def transcoder(tmp_path_factory):
    path = export(sae_of("transcoder", use_error_term=True), tmp_path_factory.mktemp("arguments") / "sae").path
    with SAESession(path, "cpu") as opened:
        yield opened


def test_targets(transcoder, session):
    x, wrong = normal(3, D_IN), arrays_of(D_OUT)
    assert transcoder(x, normal(3, D_OUT)).shape == (3, D_OUT)
    assert not accepted(lambda target: transcoder(x, target), wrong)
    del wrong["none"]  # which is no target
    assert not accepted(lambda target: session(X, target), wrong)
    assert not accepted(lambda target: transcoder.encode(x) if target is None else session(X, target), {"some": X})


def test_ids_of_features_to_watch(session):
    wrong = [None, 3, "3", [], [16], [-1], [2**70], [1.5], [True], [[1]], [[1], [2, 3]], np.ma.masked_array([1]), {1}]
    assert not accepted(session.watch, wrong)
    assert not accepted(lambda ids: session.compute_features(X, ids), wrong)


def test_numbers(session):
    assert not accepted(lambda k: session.top_features(X, k), [*NOT_A_NUMBER, 0, -1, 17, 10**30])
    assert not accepted(lambda n: session.explain(tokens=n), [*NOT_A_NUMBER, -1])
    assert not accepted(lambda n: session.top_features(X, 2).dense(n), [*NOT_A_NUMBER, -1, 1])
    assert not accepted(lambda n: session.add_hook(POST, print, level=n), NOT_A_NUMBER[1:])
    assert not accepted(lambda n: session.reset_hooks(level=n), NOT_A_NUMBER[1:])
    for kind in (np.int8, np.uint64, np.int32):
        assert session.top_features(X, kind(4)).indices.shape == (3, 4)
    assert session.top_features(X, np.array(4)).indices.shape == (3, 4)  # operator.index takes it


def test_names(session):
    assert not accepted(lambda names: session.compute(X, names), NOT_NAMES)
    assert not accepted(session.explain, NOT_NAMES[1:])
    assert not accepted(lambda f: session.run_with_cache(X, f), [3, {POST}, (POST,), object(), b"x"])
    assert not accepted(lambda names: session.run_graph("model", {"input": X}, names), NOT_NAMES[1:2] + NOT_NAMES[2:4])
    assert not accepted(lambda graph: session.run_graph(graph, {"input": X}), [None, 3, "nothing", ["model"], b"model"])
    assert not accepted(session.release, [None, 3, "nothing", ["model"]])
    assert not accepted(lambda feeds: session.run_graph("model", feeds), [None, 3, [X], {}, {3: X}, {"x": X}, "input"])
    assert session.run_graph("model", {"input": X}, []) == {}
    assert not session._graphs.loaded  # every argument is checked before a graph is loaded


def test_hook_functions(session):
    selectors = [None, 3, "hook_nothing", b"hook_sae_recons", [POST]]
    pairs = [3, None, "ab", [3], [(POST,)], [(POST, print, 1)], [None], {POST: print}, [POST],
             *([(where, print)] for where in selectors), *([(POST, f)] for f in NOT_FUNCTIONS)]  # fmt: skip
    assert not accepted(lambda hooks: session.run_with_hooks(X, hooks), pairs)
    assert not accepted(lambda where: session.add_hook(where, print), selectors)
    assert not accepted(lambda function: session.add_hook(POST, function), NOT_FUNCTIONS)
    assert not accepted(lambda way: session.add_hook(POST, print, way), [None, 3, "bwd", "sideways", ["fwd"]])
    assert not accepted(lambda way: session.reset_hooks(direction=way), [None, 3, "sideways", ["fwd"]])
    assert not accepted(lambda hooks: session.run_with_hooks(X, bwd_hooks=hooks), [None, 3, [(POST, print)], "a"])
    assert not session._hooks.active()


def test_what_hook_functions_return(session):
    wrong = arrays_of(16)
    del wrong["none"]  # keeps the tensor
    for name in ("hook_sae_acts_pre", POST):
        assert not accepted(lambda value, name=name: session.run_with_hooks(X, [(name, lambda t, hook: value)]), wrong)
    wrong = arrays_of(6)
    del wrong["none"]
    for name in ("hook_sae_recons", "hook_sae_error", "hook_sae_output"):
        assert not accepted(lambda value, name=name: session.run_with_hooks(X, [(name, lambda t, hook: value)]), wrong)


@pytest.mark.parametrize("function", [lambda: None, lambda tensor: tensor, lambda tensor, hook, more: tensor, dict.get])
def test_a_hook_function_with_another_signature(session, function):
    with pytest.raises(InputError, match=r"was called as function\(tensor, hook=point\)"):
        session.run_with_hooks(X, [(POST, function)])


class OwnError(Exception):
    pass


@pytest.mark.parametrize(
    "error", [OwnError("own"), TypeError("own"), KeyError("own"), KeyboardInterrupt(), SystemExit(3)]
)
def test_what_a_function_of_the_caller_raises_is_the_callers(session, error):
    def fail(*args, **kwargs):
        raise error

    for call in (
        lambda: session.run_with_hooks(X, [(POST, fail)]),
        lambda: session.run_with_hooks(X, [(fail, print)]),
        lambda: session.run_with_cache(X, fail),
    ):
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error


def test_edits(session):
    numbers = [None, "high", [1.0, [2.0]], object(), np.ma.masked_array([1.0], [True]), True, 1j, float("nan"),
               float("inf"), 1e39, normal(5), normal(3, 2), [], {}, b"1"]  # fmt: skip
    for kind in (Clamp, Scale, Add):
        assert not accepted(lambda value, kind=kind: session.steer(X, {3: kind(value)}), numbers)
    assert not accepted(lambda value: session.steer(X, {3: Edit(value, value)}), numbers)
    assert not accepted(
        lambda key: session.steer(X, {key: Ablate()}), [None, "3", 2.5, -1, 16, 2**70, (3,), b"3", True]
    )
    assert not accepted(lambda edits: session.steer(X, edits), [None, 3, "3", [Ablate()], {3: 1.0}, {3: Ablate}, [3]])
    masked = np.ma.masked_array([1], [True])
    ids = [None, 3, "3", [1.5], [1, [2]], [[1]], [1, 1], [-1], [2**70], [True], object(), masked]
    assert not accepted(lambda wrong: Intervention(wrong, 1.0, 0.0), ids)
    assert not accepted(lambda scale: Intervention([3], scale, 0.0), numbers[:9])
    intervention = Intervention([3, 9], 1.0, 0.0)
    assert not accepted(intervention, [None, 3, "a", normal(3, 4), np.ones((3, 16), int), np.ma.masked_array(ACTS)])
    with session.steering({3: Ablate()}):
        assert not accepted(lambda k: session.top_features(X, k), NOT_A_NUMBER)


OPTIONS = {
    "device": [None, 3, "gpu", "cuda:x", b"cpu", ["cpu"], "CPU", "cuda:99999999999999999999", "cuda:0"],
    "graphs": [None, 3, "dense", ["cpu"]],
    "precision": [None, 3, "float16", "tf32", ["float32"]],
    "threads": [*NOT_A_NUMBER[1:], 0, -1, 10**9, 2**70],
    "arena": [None, 1, "yes", []],
    "shared_stages": [None, 1, "yes", []],
    "memory_limit": [*NOT_A_NUMBER[1:], 0, -1, 100],
    "block_tokens": [*NOT_A_NUMBER[1:], 0, -1],
    "stream": [3, object(), "stream"],
    "cuda_graph": [None, 3, "18", [0], [2.5], [None], [True], [1]],
    "cache": [3, b"cache", ["a"], object()],
    "check_integrity": [None, 1, "yes", []],
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    wrong = OPTIONS[name]
    assert not accepted(lambda value: SAESession(TINY, **{"device": "cpu", name: value}).close(), wrong)


def test_numbers_of_numpy_are_options():
    SAESession(TINY, "cpu", threads=np.int64(1), block_tokens=np.uint8(5), memory_limit=np.int64(1 << 30)).close()


def test_paths():
    for function in (SAESession, runtime.read_artifact, runtime.verify, runtime.assert_parity):
        assert not accepted(function, [*NOT_A_PATH, "", "nothing", __file__])
    assert not accepted(lambda device: runtime.verify(TINY, device), OPTIONS["device"])
    assert not accepted(lambda precision: runtime.verify(TINY, "cpu", precision), OPTIONS["precision"])


def test_a_device_that_does_not_exist_is_named_whatever_the_weights_are(tmp_path):
    """With int8 weights it was said that they run on a CPU only, as if the name were that of a GPU."""
    path = export(sae_of("standard"), tmp_path / "sae", weights="int8").path
    with pytest.raises(runtime.ProviderError, match='device is \'foo\'; it must be "auto", "cpu", "cuda"'):
        SAESession(path, "foo")
    for device in ("cuda", "tensorrt"):
        with pytest.raises(
            runtime.ProviderError, match='int8 weights, which run on a CPU only. Open it with device="cpu"'
        ):
            SAESession(path, device)


def test_the_message_says_what_to_do(session):
    for name, message in (
        ("masked", r"A masked array was given, and its mask would be ignored. Pass x.filled\(value\)"),
        ("negative bit", r"has the bit of is_neg\(\): its memory holds other values. Pass x.resolve_neg\(\)"),
        ("conjugate", r"Pass x.resolve_conj\(\)"),
        ("more tokens than any memory", r"1099511627776 tokens would take .* GiB, and this machine has"),
        ("complex", r"x is \(3, 6\) complex64; this SAE is float32. Pass an array of numbers"),
        ("sparse", "cannot be read: .*layout"),
    ):
        with pytest.raises(InputError, match=message):
            session(arrays_of(6)[name])


def test_a_batch_without_end_is_not_a_list_of_blocks(session):
    blocks = session.explain(tokens=2**60).blocks
    assert (len(blocks), blocks.tokens) == (-(-(2**60) // session._graphs.block_tokens), 2**60)
    assert "1152921504606846976 tokens in " in str(session.explain(tokens=2**60))


def test_a_view_of_few_numbers_that_fits_is_computed_in_blocks():
    row = normal(6)
    with SAESession(TINY, "cpu", block_tokens=1000) as session:
        found = session.top_features(np.broadcast_to(row, (100_000, 6)), 1)
        assert (found.values == session.top_features(row, 1).values).all()


def test_top_features_by_hand():
    assert not accepted(
        lambda index: TopFeatures(np.array([[index]]), np.array([[1.0]]), np.array([1])).dense(4), [-1, 4, -5, 2**40]
    )


@pytest.mark.parametrize("d_sae", [10**15, 2**70])
@pytest.mark.parametrize("tokens", [0, 4])
def test_a_dense_array_that_does_not_fit_is_refused(d_sae, tokens):
    found = TopFeatures(np.zeros((tokens, 2), int), np.zeros((tokens, 2), np.float32), np.zeros(tokens, int))
    with pytest.raises(InputError, match="The dense array would take .* GiB, and this machine has"):
        found.dense(d_sae)


def test_edits_that_do_not_fit_are_refused():
    view = np.broadcast_to(np.float32(1), (2**40, 3))
    with pytest.raises(InputError, match="The scale of the intervention would take 24,576 GiB"):
        Intervention([1, 2, 3], view, 0.0)
