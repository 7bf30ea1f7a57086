"""Graphs that are loaded in two forms: which form runs, what it computes, and the memory that it takes."""

import multiprocessing
import shutil
import threading

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.shared.machine import process_memory
from runtime import Ablate, IntegrityError, SAESession
from runtime.artifact.names import FEATURE_HOOKS, HOOK_ACTS_POST, HOOK_ACTS_PRE
from runtime.devices import loading, staged
from runtime.devices.forms import TwoForms
from runtime.devices.staged import StagedSession
from saeexport import export
from tests.support.close import HOOK_ATOL
from tests.support.samples import MINILM, normal
from tests.support.zoo import CASES, D_IN, sae_of, target_of

MATRICES = 100
"""Smallest number of elements of a large parameter here: more than a bias of a small SAE has."""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(staged, "SMALLEST_SHARED", MATRICES)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(MINILM, tmp_path / "sae")


def forms(session, graph):
    return session._graphs.loaded[graph]._forms


@pytest.mark.parametrize(("architecture", "more"), CASES, ids=str)
def test_one_token_has_the_hooks_of_the_pytorch_original(tmp_path, small, architecture, more):
    sae = sae_of(architecture, **more)
    path, x, target = export(sae, tmp_path / "sae").path, normal(7, D_IN), target_of(sae, 7)
    options = [{} if target is None else {"target": target[i : i + 1]} for i in range(7)]
    with SAESession(path, "cpu", shared_stages=False) as whole, SAESession(path, "cpu") as session:
        _, expected = whole.run_with_cache(x, **({} if target is None else {"target": target}))
        for i, more_options in enumerate(options):
            one = x[i : i + 1]
            _, hooks = session.run_with_cache(one, **more_options)
            _, edited = session.steer(one, {3: Ablate()}, **more_options)
            found = {**hooks, "steered": edited[HOOK_ACTS_POST], "encode": session.encode(one)}
            found["decode"] = session.decode(found["encode"], one)
            ablated = expected[HOOK_ACTS_POST][i : i + 1].copy()
            ablated[:, 3] = 0
            wanted = {name: values[i : i + 1] for name, values in expected.items()}
            wanted |= {"steered": ablated, "encode": wanted[HOOK_ACTS_POST], "decode": wanted["hook_sae_recons"]}
            for name, values in wanted.items():
                np.testing.assert_allclose(found[name], values, rtol=0, atol=HOOK_ATOL, err_msg=name)
            strongest, all_of_them = session.top_features(one, 5), whole.top_features(x, 5)
            np.testing.assert_array_equal(strongest.indices[0], all_of_them.indices[i])
        assert all(set(forms(session, graph)) == {True} for graph in session._graphs.loaded if "." in graph)


def test_each_form_is_loaded_when_a_batch_needs_it():
    with SAESession(MINILM, "cpu") as session:
        for rows, loaded in ((1, {True}), (3, {True, False})):
            session(normal(rows, session.cfg.d_in))
            assert set(forms(session, "model.sparse")) == loaded
        assert isinstance(forms(session, "model.sparse")[True], onnxruntime.InferenceSession)
        assert isinstance(forms(session, "model.sparse")[False], StagedSession)
        session.encode(normal(2, session.cfg.d_in))
        assert set(forms(session, "acts")) == {False}
        session.encode(np.empty((0, session.cfg.d_in), np.float32))
        assert set(forms(session, "acts")) == {True, False}


def test_a_batch_in_blocks_of_one_token_runs_as_stored():
    with SAESession(MINILM, "cpu", block_tokens=1) as session:
        session(normal(1, session.cfg.d_in))
        session(normal(3, session.cfg.d_in))
        assert set(forms(session, "model.sparse")) == {True}


def test_threads_load_a_form_once(monkeypatch):
    loads, load = [], TwoForms.__init__
    with SAESession(MINILM, "cpu") as session:

        def counting(self, load_form, tokens):
            load(self, lambda one: loads.append(one) or load_form(one), tokens)

        monkeypatch.setattr(TwoForms, "__init__", counting)
        x, barrier = normal(3, session.cfg.d_in), threading.Barrier(6)

        def work(i):
            barrier.wait()
            session(x[: 1 + i % 2])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(loads) == [False, True]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_one_form(tmp_path, small, dtype):
    """ONNX Runtime would convert all weights in each session."""
    path = export(sae_of("standard").to(getattr(torch, dtype)), tmp_path / "sae").path
    with SAESession(path, "cpu") as session:
        session(normal(1, D_IN).astype(dtype))
        assert not any(isinstance(loaded, TwoForms) for loaded in session._graphs.loaded.values())


def test_a_small_sae_has_one_form(tmp_path):
    with SAESession(export(sae_of("standard"), tmp_path / "sae").path, "cpu") as session:
        session(normal(1, D_IN))
        assert isinstance(session._graphs.loaded["model.sparse"], onnxruntime.InferenceSession)


def linked(path):
    """Replace the weights by a link to a file of another name, as in the cache of the Hugging Face Hub."""
    (path.parent / "blobs").mkdir()
    (path / "weights.safetensors").rename(path.parent / "blobs" / "1234")
    (path / "weights.safetensors").symlink_to("../blobs/1234")


def test_weights_behind_a_link_are_used_in_place(copy, monkeypatch):
    linked(copy)
    copied = []
    start = loading.start_in_place
    monkeypatch.setattr(
        "runtime.devices.cpu.start_in_place", lambda *args: copied.append(found := start(*args)) or found
    )
    with SAESession(copy, "cpu") as session, SAESession(MINILM, "cpu") as other:
        x = normal(1, session.cfg.d_in)
        np.testing.assert_array_equal(session(x), other(x))
    assert len(copied) == 2
    assert None not in copied


def test_an_artifact_that_is_gone_runs_in_the_form_that_shares_its_copies(copy):
    with SAESession(copy, "cpu") as session, SAESession(MINILM, "cpu") as other:
        shutil.rmtree(copy)
        x = normal(1, session.cfg.d_in)
        np.testing.assert_allclose(session(x), other(x), rtol=0, atol=HOOK_ATOL)
        assert isinstance(forms(session, "model.sparse")[True], StagedSession)


def test_weights_that_were_changed_do_not_load_in_the_other_form(copy):
    with SAESession(copy, "cpu") as session:
        session(normal(1, session.cfg.d_in))
        with (copy / "weights.safetensors").open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\1\1\1\1")
        with pytest.raises(IntegrityError, match="changed while it was in use"):
            session(normal(2, session.cfg.d_in))


def test_a_closed_session_does_not_load_another_form(copy):
    session = SAESession(copy, "cpu")
    session(normal(1, session.cfg.d_in))
    graph = session._graphs.loaded["model.sparse"]
    session.close()
    with pytest.raises(Exception, match="is closed"):
        graph.of(2)


def memory_of_one_token(rows):
    """Return the anonymous memory that every kind of call together adds to this process, over the weights."""
    with SAESession(MINILM, "cpu") as session:
        x = normal(rows, session.cfg.d_in)
        session.watch([0])(x)  # so that ONNX Runtime itself has started
        before = process_memory("self", "RssAnon")
        session.encode(x)
        session(x)
        session.top_features(x, 3)
        session.steer(x, {1: Ablate()})
        session.run_with_hooks(x, [(hook, lambda acts, hook: acts) for hook in FEATURE_HOOKS])
        session.run_with_cache(x, HOOK_ACTS_PRE, return_output=False)
        weights = session.artifact.manifest.files["weights.safetensors"].bytes
        return (process_memory("self", "RssAnon") - before) / weights


@pytest.mark.skipif(not process_memory("self", "RssAnon"), reason="reads the memory of the process from /proc")
def test_calls_of_one_token_hold_no_copy_of_the_weights():
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        one, two = pool.map(memory_of_one_token, [1, 2], chunksize=1)
    assert one < 0.8  # what ONNX Runtime needs for six sessions; a copy of one matrix would be half of the weights
    assert two > 1
