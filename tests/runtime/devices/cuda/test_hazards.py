"""Mistakes that show only sometimes on a real GPU, and always on the simulated one."""

import contextlib
import ctypes
import gc
import threading

import numpy as np
import pytest
import torch

from runtime import InputError, SAEError, SAESession, Tensor
from runtime.arrays import dlpack
from runtime.devices.cuda.folding import FEWEST_TOKENS
from runtime.devices.start import ORT_ERRORS
from saeexport import export
from tests.support.samples import HOOKS, TINY, normal
from tests.support.simulated_cuda import LEGACY, DeviceArray, Parts, Session
from tests.support.zoo import sae_of


def zero_in_place(machine, tensor):
    """Do what `torch.from_dlpack(tensor).zero_()` does: queue the write on PyTorch's stream."""
    tensor.__dlpack__(stream=LEGACY)
    pointer, nbytes = tensor.pointer, tensor.nbytes
    machine.streams[LEGACY].queue.append(lambda: ctypes.memset(pointer, 0, nbytes))


@pytest.mark.parametrize("where", ["hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons", "hook_sae_error"])
def test_an_edit_in_place_on_another_stream_is_waited_for(machine, expected, where):
    x = normal(4, 6)
    wanted = expected.run_with_hooks(x, [(where, lambda tensor, hook: tensor.fill(0))])
    with SAESession(TINY, "cuda") as sae:
        output = sae.run_with_hooks(DeviceArray(machine, x), [(where, lambda t, hook: zero_in_place(machine, t))])
        assert np.array_equal(output.numpy(), wanted)


def test_an_edit_of_a_result_is_seen_by_its_next_reader(machine, expected):
    with SAESession(TINY, "cuda") as sae, SAESession(TINY, "cuda") as other:
        for decode in (sae.decode, other.decode):
            acts = sae.encode(DeviceArray(machine, normal(4, 6)))
            zero_in_place(machine, acts)
            assert np.array_equal(decode(acts).numpy(), expected.decode(np.zeros((4, 16), np.float32)))
        acts = sae.encode(DeviceArray(machine, normal(4, 6)))
        zero_in_place(machine, acts)
        assert not acts.numpy().any()


def test_a_closed_session_refuses_calls(machine):
    sae = SAESession(TINY, "cuda")
    array = DeviceArray(machine, normal(3, 6))
    sae(array)
    graphs = sae._graphs
    loaded, spec = graphs.loaded["model"], sae.artifact.manifest.graphs["model"]
    sae.close()
    sae.close()
    for call in (lambda: sae(array), lambda: sae(normal(3, 6)), lambda: sae.decode(DeviceArray(machine, normal(3, 16))),
                 lambda: graphs.backend.run(loaded, spec, {"input": normal(3, 6)}, HOOKS[-1:], [3])):  # fmt: skip
        with pytest.raises(SAEError, match="closed"):
            call()


def test_sessions_that_feed_each_other_do_not_wait_for_each_other(machine, expected):
    with SAESession(TINY, "cuda") as one, SAESession(TINY, "cuda") as other:
        x = normal(3, 6)
        results = {one: one(DeviceArray(machine, x)), other: other(DeviceArray(machine, x))}
        both, got = threading.Barrier(2, timeout=5), {}
        own = Tensor.__dlpack__

        def when_both_are_there(tensor, **how):
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait()
            return own(tensor, **how)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "__dlpack__", when_both_are_there)
            threads = [threading.Thread(target=lambda a=a, b=b: got.update({a: a(results[b])}), daemon=True)
                       for a, b in ((one, other), (other, one))]  # fmt: skip
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert len(got) == 2
        assert all(np.array_equal(y.numpy(), expected(expected(x))) for y in got.values())


def test_a_pinned_array_that_changes_after_the_call_has_been_read(machine, tmp_path):
    path = export(sae_of("transcoder", use_error_term=True), tmp_path / "sae").path
    stream = machine.card(0).stream()
    x, target = normal(4, 10), normal(4, 7, seed=9)
    with SAESession(path, "cpu", graphs="portable") as cpu, SAESession(path, "cuda", stream=stream) as sae:
        pinned = sae(x, target)  # its memory is pinned memory of the session
        wanted = cpu(x, pinned.copy())
        output = sae(DeviceArray(machine, x, stream), pinned)
        pinned[:] = 0
        assert np.array_equal(output.numpy(), wanted)
        for given in (
            (x, DeviceArray(machine, target)),
            (DeviceArray(machine, x), target),
        ):  # one on the host, one on the GPU
            assert np.array_equal(np.asarray(sae(*given)), cpu(x, target))


def test_a_destroyed_stream_is_not_an_error(machine, expected):
    mine, theirs = machine.card(0).stream(), machine.card(0).stream()
    with SAESession(TINY, "cuda", stream=mine) as sae:
        x = DeviceArray(machine, normal(3, 6), mine)
        sae(x).__dlpack__(stream=theirs)
        gc.collect()
        machine.card(0).destroy_stream(theirs)
        assert np.array_equal(sae(x).numpy(), expected(normal(3, 6)))


def test_a_result_outlives_its_session_and_the_stream(machine, expected):
    mine = machine.card(0).stream()
    sae = SAESession(TINY, "cuda", stream=mine)
    output = sae(DeviceArray(machine, normal(3, 6), mine))
    del sae  # without being closed
    machine.sessions.clear()
    gc.collect()
    machine.card(0).destroy_stream(mine)
    assert np.array_equal(output.numpy(), expected(normal(3, 6)))


class OnHost:
    """A bfloat16 array on the host. numpy refuses its dtype."""

    kept = np.zeros(1, np.uint16)

    def __dlpack_device__(self):
        return (dlpack.CPU, 0)

    def __dlpack__(self, **_):
        return dlpack.export_capsule(self.kept.ctypes.data, (1,), "bfloat16", (dlpack.CPU, 0), self.kept)


class Owner:
    def ready_for(self, stream):
        pass


@pytest.mark.parametrize("tensor", [OnHost(), Tensor(0x1000, (3,), "float32", "cuda:0", Owner())])
def test_a_refused_capsule_is_freed(tensor):
    held = len(dlpack._exported)
    for _ in range(3):
        with pytest.raises((SystemError, RuntimeError, BufferError)):
            np.from_dlpack(tensor)
    assert len(dlpack._exported) == held


def test_a_session_that_is_dropped_frees_its_memory(machine):
    left, streams = machine.left, len(machine.streams)
    sae = SAESession(TINY, "cuda", cuda_graph=[3])
    sae(normal(3, 6))
    sae.encode(normal(2, 6))
    del sae
    machine.sessions.clear()
    gc.collect()
    assert (left - machine.left, len(machine.streams)) == (0, streams)


def queue_work(machine, path):
    """Return a session that has queued work on a caller's stream, where calls return early, and the stream."""
    stream = machine.card(0).stream()
    sae = SAESession(path, "cuda", stream=stream, precision="tf32")
    for tokens in (FEWEST_TOKENS, 3):
        sae(DeviceArray(machine, normal(tokens, 10), stream))
    machine.sessions.clear()
    assert len(machine.streams[stream].queue) >= 2  # of the folded session and of the other
    return sae, stream


def release(sae):
    sae.release("model")


@pytest.mark.parametrize("end", [release, SAESession.close, lambda sae: None], ids=["release", "close", "drop"])
@pytest.mark.parametrize("card_is_taken", [False, True])
def test_a_session_of_onnx_runtime_outlives_what_it_has_queued(machine, artifact_of, end, card_is_taken):
    sae, stream = queue_work(machine, artifact_of("standard").path)
    with machine.card(0).exclusive() if card_is_taken else contextlib.nullcontext():
        end(sae)
        del sae
        gc.collect()
        assert machine.died_early == []
    assert machine.died_early == []
    assert not machine.streams[stream].queue


@pytest.mark.parametrize("end", [release, SAESession.close, lambda sae: None], ids=["release", "close", "drop"])
def test_it_does_also_when_a_later_block_fails(machine, monkeypatch, end):
    """On the session's own stream a call waits for its results, and if it fails for what it has queued until then."""
    real, runs = Session.run_with_iobinding, []

    def fail_at_the_second(session, binding, options):
        runs.append(session)
        if len(runs) == 2:
            raise ORT_ERRORS[0]("Failed to allocate memory")
        real(session, binding, options)

    sae = SAESession(TINY, "cuda", block_tokens=4)
    monkeypatch.setattr(Session, "run_with_iobinding", fail_at_the_second)
    with pytest.raises(SAEError, match="Failed to allocate memory"):
        sae(DeviceArray(machine, normal(8, 6)))
    runs.clear()
    machine.sessions.clear()
    end(sae)
    del sae
    gc.collect()
    assert machine.died_early == []


def test_it_does_also_while_another_thread_has_the_card(machine, artifact_of):
    sae, stream = queue_work(machine, artifact_of("standard").path)
    taken, dropped = threading.Event(), threading.Event()

    def take():
        with machine.card(0).exclusive():
            taken.set()
            dropped.wait(10)

    other = threading.Thread(target=take)
    other.start()
    taken.wait(10)
    del sae
    gc.collect()
    assert machine.died_early == []
    dropped.set()
    other.join()
    assert machine.died_early == []
    assert not machine.streams[stream].queue


def test_a_watch_outlives_what_it_has_queued(machine, artifact_of):
    stream = machine.card(0).stream()
    with SAESession(artifact_of("standard").path, "cuda", stream=stream) as sae:
        watched = sae.watch([1])
        watched(DeviceArray(machine, normal(3, 10), stream))
        machine.sessions.clear()
        assert machine.streams[stream].queue
        del watched
        gc.collect()
        assert not machine.streams[stream].queue
    assert machine.died_early == []


def test_a_session_outlives_its_work_on_a_stream_that_was_destroyed(machine, artifact_of, monkeypatch):
    sae, stream = queue_work(machine, artifact_of("standard").path)
    card, waited = machine.card(0), []

    def fail(stream):
        raise SAEError("cuStreamSynchronize of the NVIDIA driver: error 400, invalid resource handle.")

    monkeypatch.setattr(card, "synchronize", fail)
    monkeypatch.setattr(card, "synchronize_all", lambda: waited.append(machine.streams[stream].run()))
    sae.release("model")
    gc.collect()
    assert waited
    assert machine.died_early == []


class OwnedStream:
    """A stream that destroys itself, as CuPy's do."""

    def __init__(self, card):
        self.card, self.ptr = card, card.stream()

    def __del__(self):
        self.card.destroy_stream(self.ptr)


@pytest.mark.parametrize("card_is_taken", [False, True])
def test_a_stream_dies_after_the_session_of_onnx_runtime(machine, monkeypatch, card_is_taken):
    card, died = machine.card(0), []
    monkeypatch.setattr(Parts, "__del__", lambda parts: died.append("session"))
    monkeypatch.setattr(card, "destroy_stream", lambda stream: died.append("stream"))
    sae = SAESession(TINY, "cuda", stream=OwnedStream(card))
    sae(DeviceArray(machine, normal(3, 6)))
    machine.sessions.clear()
    gc.collect()
    died.clear()  # the session that looked whether the GPU can run the artifact
    with card.exclusive() if card_is_taken else contextlib.nullcontext():
        del sae
        gc.collect()
    assert died == ["session", "stream"]


def test_a_stream_that_dies_with_the_session_lives_until_its_work_is_done(machine, artifact_of, monkeypatch):
    card, unraisable = machine.card(0), []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)

    streams = set(machine.streams)
    sae = SAESession(artifact_of("standard").path, "cuda", stream=OwnedStream(card), precision="tf32")
    for tokens in (3, FEWEST_TOKENS):
        sae(DeviceArray(machine, normal(tokens, 10)))
    # A session that the backend itself holds dies after its options, which hold the stream.
    array = sae._graphs.backend.import_array(DeviceArray(machine, normal(3, 10)))
    sae._graphs.backend.add(array, array)
    machine.sessions.clear()
    del sae, array
    gc.collect()
    assert (unraisable, machine.died_early) == ([], [])
    assert set(machine.streams) == streams


def test_alternating_sizes_do_not_allocate_or_wait(machine):
    stream = machine.card(0).stream()
    with SAESession(TINY, "cuda", stream=stream) as sae:
        for i in range(12):
            sae(DeviceArray(machine, normal((8, 64, 3)[i % 3], 6), stream))
            if i == 5:
                before = (machine.allocations, machine.waits, len(machine.device))
        arrays = 6  # those of the test, which are not freed here
        assert (machine.allocations - arrays, machine.waits, len(machine.device) - arrays) == before


def test_memory_that_is_unused_for_long_is_freed(machine, monkeypatch):
    monkeypatch.setattr("runtime.devices.cuda.memory.KEPT_CALLS", 3)
    monkeypatch.setattr("runtime.devices.cuda.backend.KEPT_CALLS", 3)
    with SAESession(TINY, "cuda") as sae:
        sae(normal(5000, 6))
        kept = sae._graphs.backend._memory.kept
        for _ in range(6):
            sae(normal(2, 6))
        backend = sae._graphs.backend
        assert backend._memory.kept < kept / 100
        assert backend._pinned.kept + backend._staging.kept < 5000 * 6 * 4


def test_a_call_on_a_released_graph_is_not_captured(machine):
    with SAESession(TINY, "cuda", cuda_graph=[3]) as sae:
        x = normal(3, 6)
        sae(x)
        old, spec = sae._graphs.loaded["model"], sae.artifact.manifest.graphs["model"]
        sae.release("model")
        sae._graphs.backend.run(old, spec, {"input": x}, HOOKS[-1:], [3])
        assert not sae._graphs.backend._replays._replays
        sae(x)
        assert all(replay.session is not old for replay in sae._graphs.backend._replays._replays.values())


def test_the_per_thread_default_stream_is_refused(machine):
    with pytest.raises(InputError, match="cannot be the per-thread default stream"):
        SAESession(TINY, "cuda", stream=2)
    with SAESession(TINY, "cuda") as sae:
        output = sae(DeviceArray(machine, normal(3, 6)))
        with pytest.raises(BufferError, match="per-thread default stream"):
            output.__dlpack__(stream=2)


def test_an_array_that_its_library_refuses_to_export_is_an_input_error(machine):
    class Refusing(DeviceArray):
        def __dlpack__(self, *, stream=None):
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with SAESession(TINY, "cuda") as sae, pytest.raises(InputError, match="The Refusing cannot be read: .*gradient"):
        sae(Refusing(machine, normal(3, 6)))


def test_a_hook_function_does_not_move_the_result(machine, expected):
    x = normal(3, 6)
    wanted = expected.run_with_hooks(x, [("hook_sae_recons", lambda t, hook: 2 * t)])
    with SAESession(TINY, "cuda") as sae:
        stays = sae.run_with_hooks(DeviceArray(machine, x), [("hook_sae_recons", lambda t, hook: 2 * t.numpy())])
        host = sae.run_with_hooks(x, [("hook_sae_recons", lambda t, hook: DeviceArray(machine, 2 * t))])
    assert (type(stays), stays.device, type(host)) == (Tensor, "cuda:0", np.ndarray)
    assert np.array_equal(stays.numpy(), wanted)
    assert np.array_equal(host, wanted)


def test_memory_is_not_freed_during_a_capture(machine):
    """The garbage collector may run at any point, even during a capture."""
    with SAESession(TINY, "cuda", arena=False) as sae:
        results = [sae(normal(3, 6)), sae(DeviceArray(machine, normal(3, 6)))]
        card = machine.card(0)
        with card.exclusive():
            machine.capturing = True
            results.clear()
            gc.collect()
            machine.capturing = False


def test_torch_tensors_on_the_cpu_are_accepted(machine):
    with SAESession(TINY, "cuda") as sae:
        x = torch.from_numpy(normal(3, 6))
        assert np.array_equal(sae(x), sae(x.numpy()))
