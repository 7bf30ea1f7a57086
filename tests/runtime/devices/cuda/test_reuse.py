"""What a call leaves for the next ones: bindings, neighbours in one piece of memory, the knowledge that all is done."""

import gc
import weakref

import numpy as np
import pytest

from runtime import SAEError, SAESession
from runtime.devices.cuda import binding, memory
from tests.support.samples import HOOKS, TINY, normal
from tests.support.simulated_cuda import LEGACY, DeviceArray, taken_by


@pytest.fixture
def bound(monkeypatch):
    """The sessions whose inputs and outputs were bound, in order."""
    sessions = []
    own = binding.bind
    monkeypatch.setattr(binding, "bind", lambda session, *rest: sessions.append(session) or own(session, *rest))
    return sessions


@pytest.fixture
def copies(machine, monkeypatch):
    """The numbers of bytes that were copied, in order."""
    card, sizes = machine.card(0), []
    own = card.copy
    monkeypatch.setattr(card, "copy", lambda target, source, nbytes, stream: sizes.append(nbytes) or
                        own(target, source, nbytes, stream))  # fmt: skip
    return sizes


def test_memory_that_is_used_again_is_not_bound_again(machine, expected, bound):
    with SAESession(TINY, "cuda") as sae:
        array = DeviceArray(machine, normal(3, 6))
        for seed in range(4):
            array.write(normal(3, 6, seed=seed))
            assert np.array_equal(sae(array).numpy(), expected(normal(3, 6, seed=seed)))
        assert len(bound) == 1
        assert np.array_equal(sae(DeviceArray(machine, normal(3, 6, seed=9))).numpy(), expected(normal(3, 6, seed=9)))
        assert len(bound) == 2


def test_a_binding_is_that_of_its_shape_and_its_number_of_features(machine, expected, bound):
    with SAESession(TINY, "cuda", arena=False) as sae:
        array = DeviceArray(machine, normal(4, 6))
        for k in (3, 3, 5):
            wanted = expected.top_features(normal(4, 6), k)
            assert np.array_equal(sae.top_features(array, k).indices, wanted.indices)
        k = np.array([3])
        feeds = {"input": array, "k": k}
        for count in (3, 2):
            k[0] = count
            found = sae.run_graph("features", feeds)
            assert np.array_equal(found["indices"], expected.top_features(normal(4, 6), count).indices)


def test_a_refused_k_does_not_spoil_the_next_one(machine, expected):
    array = DeviceArray(machine, normal(4, 6))
    with SAESession(TINY, "cuda") as sae:
        for dtype in (np.int64, np.uint64, np.int64):  # the same bytes
            feeds = {"input": array, "k": np.array([3], dtype)}
            if dtype == np.int64:
                wanted = expected.top_features(normal(4, 6), 3).indices
                assert np.array_equal(sae.run_graph("features", feeds)["indices"], wanted)
            else:
                with pytest.raises(SAEError, match="Unexpected input data type"):
                    sae.run_graph("features", feeds)
            gc.collect()  # the memory of the results


def test_a_binding_keeps_the_k_that_it_was_made_for(machine, expected, bound):
    array, k = DeviceArray(machine, normal(4, 6)), np.array([3])
    with SAESession(TINY, "cuda") as sae:
        sae.run_graph("features", {"input": array, "k": k})
        k[0] = 2
        found = sae.run_graph("features", {"input": array, "k": np.array([3])})
        assert np.array_equal(found["indices"], expected.top_features(normal(4, 6), 3).indices)
        assert len(bound) == 1


def test_few_bindings_are_kept(machine, monkeypatch):
    monkeypatch.setattr(binding, "KEPT_BINDINGS", 2)
    with SAESession(TINY, "cuda") as sae:
        arrays = [DeviceArray(machine, normal(3, 6)) for _ in range(5)]
        for array in arrays:
            sae(array)
        ((_, kept),) = sae._graphs.backend._bindings._kept.items()
        assert len(kept) == 2


def test_bindings_do_not_keep_a_graph(machine):
    with SAESession(TINY, "cuda") as sae:
        sae(DeviceArray(machine, normal(3, 6)))
        session = weakref.ref(sae._graphs.loaded["model"])
        machine.sessions.clear()
        sae.release("model")
        gc.collect()
        assert session() is None
        assert not sae._graphs.backend._bindings._kept


def test_a_replay_copies_neighbours_of_one_shape_at_once(machine, expected, copies):
    x = normal(4, 6)
    with SAESession(TINY, "cuda", cuda_graph=[4]) as sae:
        array = DeviceArray(machine, x)
        sae.compute(array, HOOKS)
        for names, count in ((HOOKS, 2), (HOOKS[1:2], 1), (["hook_sae_recons", "hook_sae_output"], 2)):
            copies.clear()
            cache = sae.compute(array, names)
            assert len(copies) == 1 + count  # the input, and the results
            for name, tensor in cache.items():
                assert np.array_equal(tensor.numpy(), expected.compute(x, [name])[name])


def test_a_replay_copies_its_results_to_the_host_itself(machine, expected, copies):
    x = normal(4, 6)
    with SAESession(TINY, "cuda", cuda_graph=[4]) as sae:
        sae.compute(x, HOOKS)
        copies.clear()
        cache = sae.compute(x, HOOKS)
        assert len(copies) == 1 + 5
        assert all(np.array_equal(cache[name], wanted) for name, wanted in expected.compute(x, HOOKS).items())


def test_a_batch_of_several_blocks_is_not_replayed(machine, expected):
    x = normal(6, 6)
    with SAESession(TINY, "cuda", cuda_graph=[2, 6], block_tokens=2) as sae:
        for given in (x, DeviceArray(machine, x)):
            for name, wanted in expected.compute(x, HOOKS).items():
                assert np.array_equal(np.asarray(sae.compute(given, HOOKS)[name]), wanted)
        assert machine.launches == []


@pytest.mark.parametrize(("largest", "pieces"), [(1 << 20, 2), (0, 5)])
def test_only_small_tensors_share_memory(machine, monkeypatch, largest, pieces):
    monkeypatch.setattr(memory, "LARGEST_SHARED", largest)
    with SAESession(TINY, "cuda") as sae:
        array = DeviceArray(machine, normal(4, 6))
        sae.compute(array, HOOKS[1:2])
        cache = sae.compute(array, HOOKS)
        assert len({id(tensor.owner) for name, tensor in cache.items() if name != HOOKS[0]}) == pieces


def test_a_complete_result_is_not_waited_for(machine, expected):
    theirs = machine.card(0).stream()
    with SAESession(TINY, "cuda") as sae:
        output = sae(DeviceArray(machine, normal(3, 6)))
        output.__dlpack__(stream=theirs)
        assert not machine.streams[theirs].queue
        sae._graphs.backend._memory.idle = False  # another call is running
        output.__dlpack__(stream=theirs)
        assert machine.streams[theirs].queue
        assert np.array_equal(output.numpy(), expected(normal(3, 6)))


def test_after_a_call_that_failed_the_stream_is_waited_for(machine, monkeypatch):
    theirs = machine.card(0).stream()

    def fail(stream):
        raise SAEError("error 700")

    with SAESession(TINY, "cuda") as sae:
        acts = sae.encode(DeviceArray(machine, normal(3, 6)))
        with monkeypatch.context() as patch, pytest.raises(SAEError, match="error 700"):
            patch.setattr(machine.card(0), "synchronize", fail)
            sae.decode(acts)
        acts.__dlpack__(stream=theirs)
        assert machine.streams[theirs].queue


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "dropped"])
@pytest.mark.parametrize("owns_stream", [True, False])
def test_the_stream_of_a_closed_session_is_not_used_any_more(machine, closes, owns_stream):
    mine, theirs = machine.card(0).stream(), machine.card(0).stream()
    sae = SAESession(TINY, "cuda", stream=None if owns_stream else mine)
    output = sae(DeviceArray(machine, normal(3, 6), mine))
    sae._graphs.backend._memory.idle = False  # as after a call that failed
    if closes:
        sae.close()
    del sae
    machine.sessions.clear()
    gc.collect()
    waits = machine.waits
    output.__dlpack__(stream=theirs)
    is_waited_for = not closes and not owns_stream  # nobody has waited for it yet
    assert (machine.waits, bool(machine.streams[theirs].queue)) == (waits, is_waited_for)


def test_an_input_that_is_passed_on_is_waited_for(machine):
    theirs, x = machine.card(0).stream(), normal(3, 6)
    with SAESession(TINY, "cuda") as sae:
        sae(DeviceArray(machine, x))
        late = DeviceArray(machine, np.zeros_like(x), LEGACY)
        machine.streams[LEGACY].run()
        late.write(x)
        cache = sae.compute(late, ["hook_sae_input"])  # nothing is run, and nothing waited for
        assert np.array_equal(taken_by(machine, cache["hook_sae_input"], theirs), x)
