"""SAESession behaves as the PyTorch original does, without PyTorch."""

import re
import threading

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime import ArtifactError, InputError, SAEError, SAESession, read_artifact
from saeexport import load
from tests.support.samples import HOOKS, TINY, normal

ACTS = "hook_sae_acts_post"


def close(actual, expected, scale=1.0):
    """Compare within the rounding errors of values of size `scale`; test_parity.py tests parity itself."""
    assert actual.shape == tuple(expected.shape)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-6 * scale)


def test_config_names_and_device(exported):
    sae, path = exported
    with SAESession(path, "cpu") as session:
        for key in ("d_in", "d_sae", "hook_name", "use_error_term", "seed"):
            assert getattr(session.cfg, key) == getattr(sae.cfg, key)
        assert session.cfg.dtype == "float32"
        assert session.hook_names == tuple(HOOKS) == tuple(sae.hook_dict)
        assert session.device == "cpu"
        assert "6 -> 16" in repr(session)


def test_cache_has_the_keys_order_shapes_and_values_of_the_original(exported):
    sae, path = exported
    x = normal(4, 5, 6)
    with torch.no_grad():
        expected, expected_cache = sae.run_with_cache(torch.from_numpy(x))
    with SAESession(path, "cpu") as session:
        output, cache = session.run_with_cache(x)
        assert list(cache) == list(expected_cache) == list(session.cfg.fired_hooks)
        for name in cache:
            close(cache[name], expected_cache[name])
        close(output, expected)
        close(session(x), expected)
        close(session.encode(x), expected_cache[ACTS])
        close(session.decode(cache[ACTS]), expected_cache["hook_sae_recons"])


def test_takes_an_artifact_for_a_path():
    assert SAESession(read_artifact(TINY), "cpu")(normal(6)).shape == (6,)


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 2), (0,), (2, 0)])
@pytest.mark.parametrize("token", [(12,), (3, 4), (1, 12)])
def test_leading_dimensions_and_heads_as_in_the_original(exported_z, lead, token):
    sae, path = exported_z
    x = normal(*lead, *token)
    with torch.no_grad():
        expected, expected_cache = sae.run_with_cache(torch.from_numpy(x))
    with SAESession(path, "cpu") as session:
        output, cache = session.run_with_cache(x)
    close(output, expected)
    for name in expected_cache:
        close(cache[name], expected_cache[name])


def test_decode_gives_the_shape_of_the_graphs(exported_z):
    _, path = exported_z
    with SAESession(path, "cpu") as session:
        assert session.decode(normal(2, 5, 16)).shape == (2, 5, *session.cfg.input_shape)


@given(
    hnp.arrays(
        np.float32,
        st.sampled_from([(6,), (3, 6), (2, 3), (4, 2, 3), (2, 2, 6)]),
        elements=st.floats(-1e4, 1e4, width=32),
    )
)
@settings(max_examples=60, deadline=None)
def test_any_finite_input_within_rounding_of_the_original(x):
    sae, session = TINY_SAE, TINY_SESSION
    with torch.no_grad():
        _, expected = sae.run_with_cache(torch.from_numpy(x))
    _, cache = session.run_with_cache(x)
    for name in HOOKS:
        close(cache[name], expected[name], scale=1 + np.abs(x).max())


TINY_SAE, TINY_SESSION = load(TINY).cpu(), SAESession(TINY, "cpu")


# names_filter


@pytest.mark.parametrize(
    "names_filter",
    [None, ACTS, ["hook_sae_output", ACTS], ["hook_mlp_out"], [], lambda name: "acts" in name, "hook_sae_error"],
)
def test_names_filter_as_in_the_original(exported, names_filter):
    sae, path = exported
    x = normal(4, 6)
    expected, expected_cache = sae.run_with_cache(torch.from_numpy(x), names_filter=names_filter)
    with SAESession(path, "cpu") as session:
        output, cache = session.run_with_cache(x, names_filter=names_filter)
    assert list(cache) == list(expected_cache)
    close(output, expected.detach())


@pytest.mark.parametrize("names_filter", [(ACTS,), {ACTS}, 3])
def test_names_filter_refuses_what_the_original_refuses(session, names_filter):
    with pytest.raises(ValueError, match="None, a string, a list of strings, or a function"):
        session.run_with_cache(normal(4, 6), names_filter=names_filter)


def graphs_that_run(session, monkeypatch):
    seen, run = [], session._graphs.run
    monkeypatch.setattr(session._graphs, "run", lambda graph, *args: seen.append(graph) or run(graph, *args))
    return seen


def test_only_the_graph_that_is_needed_is_loaded_and_run(session, monkeypatch):
    ran, x = graphs_that_run(session, monkeypatch), normal(4, 6)
    output, cache = session.run_with_cache(x, names_filter=ACTS, return_output=False)
    assert output is None
    assert list(cache) == [ACTS]
    session.encode(x)
    assert session.compute(x, ["hook_sae_input"])["hook_sae_input"] is not None
    assert ran == ["acts", "acts"]
    assert set(session._graphs.loaded) == {"acts"}
    session(x)
    assert ran[-1] == "model.sparse"


def test_compute_has_the_error_even_where_it_does_not_fire(exported):
    _, path = exported
    x = normal(4, 6)
    with SAESession(path, "cpu") as session:
        hooks = session.compute(x, ["hook_sae_error", "hook_sae_recons"])
    assert list(hooks) == ["hook_sae_error", "hook_sae_recons"]
    np.testing.assert_array_equal(hooks["hook_sae_error"], x - hooks["hook_sae_recons"])


def test_compute_names_unknown_hooks(session):
    with pytest.raises(InputError, match=re.escape(f"hook_mlp_out: no such hook. There are {', '.join(HOOKS)}.")):
        session.compute(normal(4, 6), ["hook_mlp_out"])


# dtypes and layouts


@pytest.mark.parametrize("dtype", ["float16", "int64", "int32", "uint8"])
def test_takes_the_dtypes_that_the_original_takes(session, dtype):
    x = np.abs(normal(4, 6) * 3).astype(dtype)
    with torch.no_grad():
        _, expected = TINY_SAE.run_with_cache(torch.from_numpy(x))
    _, cache = session.run_with_cache(x)
    assert cache["hook_sae_input"].dtype == dtype
    np.testing.assert_array_equal(cache["hook_sae_input"], x)
    for name in HOOKS[1:]:
        close(cache[name], expected[name], scale=10)


def test_takes_bfloat16_of_ml_dtypes(session):
    x = normal(4, 6).astype(ml_dtypes.bfloat16)
    close(session(x), session(x.astype(np.float32)))


def test_takes_arrays_that_are_not_contiguous(session):
    x = normal(6, 8)
    for view in (x.T, x.T[::2], np.asfortranarray(x.T), np.broadcast_to(x[:, 0], (3, 6)), x.T[:, ::-1]):
        np.testing.assert_array_equal(session(view), session(np.ascontiguousarray(view)))


def test_takes_a_tensor_of_the_cpu(session):
    x = normal(4, 6)
    np.testing.assert_array_equal(session(torch.from_numpy(x)), session(x))


def test_the_input_in_the_cache_is_the_input(session):
    x = normal(4, 2, 3)
    assert np.shares_memory(session.run_with_cache(x)[1]["hook_sae_input"], x)


def test_nan_and_infinity_pass(session):
    x = normal(4, 6)
    x[1, 2], x[2, 0] = np.nan, np.inf
    with torch.no_grad():
        expected = TINY_SAE.encode(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(np.isnan(session.encode(x)), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(session.encode(x)), np.isinf(expected))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (normal(4, 5), r"The input has shape \(4, 5\); this SAE takes \(\.\.\., 6\) or \(\.\.\., n_heads, d_head\)"),
        (normal(4, 2, 4), r"The input has shape \(4, 2, 4\); .* n_heads \* d_head = 6"),
        (np.float32(3), r"The input has shape \(\); this SAE takes"),
        (np.ones((4, 6)), r'x is \(4, 6\) float64; this SAE is float32. Pass x.astype\("float32"\)'),
        (np.ones((4, 6), bool), r'x is \(4, 6\) bool; this SAE is float32. Pass x.astype\("float32"\)'),
        (np.ones((4, 6), ">f4"), r"x is \(4, 6\) >f4, big-endian. Pass x.astype\(x.dtype.newbyteorder"),
        (np.ones((4, 6), ">i2"), "big-endian"),
        (np.full((4, 6), None), r"x is \(4, 6\) object; this SAE is float32. Pass an array of numbers"),
        (np.full((4, 6), "a"), "Pass an array of numbers"),
        (np.ones((4, 6), complex), r"x is \(4, 6\) complex128; this SAE is float32. Pass an array of numbers"),
    ],
)
def test_refuses_other_inputs(session, x, message):
    with pytest.raises(InputError, match=message):
        session(x)


def test_decode_refuses_other_inputs(session):
    with pytest.raises(InputError, match=r"acts_post has shape \(4, 6\); this SAE takes \(\.\.\., 16\)"):
        session.decode(normal(4, 6))
    with pytest.raises(InputError, match=r"acts_post is \(4, 16\) float64"):
        session.decode(np.ones((4, 16)))


def test_input_errors_are_what_pytorch_code_catches():
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, RuntimeError)


# life


def test_threads_load_a_graph_once_and_get_right_results():
    loads, x = [], normal(64, 6)
    expected = TINY_SESSION.run_with_cache(x)[1]
    with SAESession(TINY, "cpu") as session:
        load_graph = session._graphs._load
        session._graphs._load = lambda graph: loads.append(graph) or load_graph(graph)
        barrier, wrong = threading.Barrier(8), []

        def work(i):
            barrier.wait()
            for _ in range(50):
                _, cache = session.run_with_cache(x[i : i + 8])
                if any((cache[name] != expected[name][i : i + 8]).any() for name in HOOKS[:3]):
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert loads == ["model.sparse"]
    assert not wrong


def test_a_closed_session_says_so():
    session = SAESession(TINY, "cpu")
    session(normal(6))
    session.close()
    session.close()
    with pytest.raises(SAEError, match="is closed"):
        session(normal(6))


def test_an_unknown_graph_is_an_error(session):
    with pytest.raises(ArtifactError, match="has no graph 'attend'; it has model, encode, "):
        session.run_graph("attend", {}, ["output"])


def test_what_onnx_runtime_says_of_a_run_is_passed_on(session):
    edit = {"feature_ids": np.array([99]), "feature_scale": normal(1, 1), "feature_shift": normal(1, 1)}
    message = r"cannot run .steer. on cpu with input \(4, 6\) float32, .*: .*99"
    with pytest.raises(SAEError, match=message) as caught:
        session.run_graph("steer", {"input": normal(4, 6), **edit})
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("x", [normal(4, 5), normal(6), normal(1, 4, 6), normal(4, 6).astype(">f4"), np.ones((4, 6))])
def test_a_graph_gets_only_what_the_manifest_describes(session, x):
    """ONNX Runtime would read the bytes of a big-endian array in the wrong order."""
    with pytest.raises(InputError, match=r"input is \(.*; 'model' takes \['tokens', 6\] float32"):
        session.run_graph("model", {"input": x})
    assert not session._graphs.loaded  # a graph is loaded after its inputs are checked


def test_threads_can_be_set():
    with SAESession(TINY, "cpu", threads=1) as session:
        np.testing.assert_allclose(session(normal(9, 6)), TINY_SESSION(normal(9, 6)), atol=1e-6)


def test_an_input_that_no_graph_takes_is_an_error(session):
    with pytest.raises(InputError, match=r"No graph takes inptu; 'model' takes \['input'\]"):
        session.run_graph("model", {"input": normal(4, 6), "inptu": normal(4, 6)})
    with pytest.raises(InputError, match="'decode' also needs hook_sae_acts_post"):
        session.run_graph("decode", {"input": normal(4, 6)})


def test_threads_do_not_spin_after_a_run(session):
    session(normal(6))
    (loaded,) = session._graphs.loaded.values()
    assert loaded.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_released_graph_is_loaded_again(session):
    before = session(normal(6))
    session.release("model.sparse")
    session.release("model.sparse")
    assert not session._graphs.loaded
    np.testing.assert_array_equal(session(normal(6)), before)


@pytest.mark.parametrize("names", ["output", 3])
def test_outputs_are_named_one_by_one_or_not_at_all(session, names):
    with pytest.raises(InputError, match="it must be a list of outputs, or None for all"):
        session.run_graph("encode", {"input": normal(6)}, names)
