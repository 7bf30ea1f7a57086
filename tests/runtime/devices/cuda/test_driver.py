"""The NVIDIA driver through its C functions, with a fake library that has contexts, streams, events and memory."""

import ctypes
import subprocess
import sys
import threading

import numpy as np
import pytest

from runtime import ProviderError, SAEError
from runtime.devices.cuda import driver
from runtime.devices.cuda.driver import FUNCTIONS, Driver

CONTEXT = 0xC0
KERNEL, COPY, HOST = 0, 1, 3  # CUgraphNodeType of cuda.h
FROM_HOST, FROM_DEVICE, FROM_ANYWHERE = 1, 2, 4  # CUmemorytype
CREATED = {"cuStreamEndCapture": "cuGraphDestroy", "cuGraphInstantiateWithFlags": "cuGraphExecDestroy"}
ANYWHERE = ("cuInit", "cuDriver", "cuGetErrorString", "cuDevice", "cuCtx")  # functions that need no current context


class Copy(ctypes.Structure):
    """The beginning of a CUDA_MEMCPY3D of cuda.h, and its size."""

    _fields_ = (
        ("source_x_y_z_lod", ctypes.c_size_t * 4), ("source_type", ctypes.c_uint), ("padding", ctypes.c_uint),
        ("source_addresses_pitch_height", ctypes.c_size_t * 6), ("target", ctypes.c_size_t * 11),
        ("width_height_depth", ctypes.c_size_t * 3),
    )  # fmt: skip


class Function:
    """A function of the fake library."""

    def __init__(self, library, name):
        self.library, self.name = library, name

    def __call__(self, *arguments):
        converted = [
            kind(argument).value if isinstance(argument, int) else argument
            for argument, kind in zip(arguments, self.argtypes, strict=True)
        ]
        self.library.calls.append((self.name, [getattr(value, "value", value) for value in converted]))
        if self.name == "cuStreamEndCapture":  # it ends the capture, whatever it returns
            self.library.capturing.remove(arguments[0])
        if self.name == "cuGetErrorString":
            arguments[1]._obj.value = b"out of memory"
            return 0
        if self.name in self.library.failing:
            return self.library.failing[self.name]
        if not self.name.startswith(ANYWHERE) and self.library.contexts[-1:] != [CONTEXT]:
            return 201  # CUDA_ERROR_INVALID_CONTEXT
        self.library.perform(self.name, arguments)
        return 0


class Library:
    """Replaces libcuda.so.1.

    Attributes:
        contexts: The stack of current contexts, the last one on top.
        live: Streams, events and memory that were created and not freed, by their handle.
        recorded: The stream that each event was recorded on, by the event.
        waits: Pairs of a stream and the stream that it waits for.
        nodes: Kinds of the nodes of every captured graph.
        copy: What its copies copy.
        capturing: The streams that capture.
    """

    def __init__(self, failing=()):
        self.calls, self.failing, self.handles = [], dict(failing), iter(range(1 << 40, 1 << 60, 0x1000))
        self.contexts, self.live, self.recorded, self.waits = [], {}, {}, []
        self.buffers, self.nodes, self.capturing = [], [KERNEL, COPY], []
        self.copy = Copy(source_type=FROM_DEVICE, padding=0xFFFFFFFF)
        for name in FUNCTIONS:
            setattr(self, name, Function(self, name))

    def perform(self, name, arguments):
        if name == "cuDriverGetVersion":
            arguments[0]._obj.value = 13020
        elif name == "cuDeviceGetCount":
            arguments[0]._obj.value = 2
        elif name == "cuDeviceGet":
            arguments[0]._obj.value = arguments[1]
        elif name == "cuDeviceGetName":
            arguments[0].value = b"NVIDIA H100"
        elif name == "cuDeviceTotalMem_v2":
            arguments[0]._obj.value = 80 << 30
        elif name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = {75: 9, 76: 0}[arguments[1]]
        elif name == "cuMemAllocHost_v2":
            self.buffers.append(np.zeros(arguments[1], np.uint8))
            arguments[0]._obj.value = self.buffers[-1].ctypes.data
            self.live[self.buffers[-1].ctypes.data] = name
        elif name == "cuDevicePrimaryCtxRetain":
            arguments[0]._obj.value = CONTEXT
        elif name == "cuCtxPushCurrent_v2":
            self.contexts.append(arguments[0].value)
        elif name == "cuCtxPopCurrent_v2":
            arguments[0]._obj.value = self.contexts.pop()
        elif name in ("cuStreamCreate", "cuEventCreate", "cuMemAlloc_v2"):
            arguments[0]._obj.value = next(self.handles)
            self.live[arguments[0]._obj.value] = (name, arguments[1])
        elif name in ("cuStreamDestroy_v2", "cuMemFree_v2", "cuMemFreeHost"):
            del self.live[arguments[0]]
        elif name == "cuEventRecord":
            self.recorded[arguments[0]] = arguments[1]
        elif name == "cuStreamWaitEvent":
            self.waits.append((arguments[0], self.recorded[arguments[1]]))
        elif name == "cuStreamGetFlags":
            arguments[1]._obj.value = self.live[arguments[0]][1]
        elif name == "cuStreamBeginCapture_v2":
            self.capturing.append(arguments[0])
        elif name in CREATED:
            created = arguments[1] if name == "cuStreamEndCapture" else arguments[0]
            created._obj.value = next(self.handles)
            self.live[created._obj.value] = name
        elif name in CREATED.values():
            created = self.live.pop(getattr(arguments[0], "value", arguments[0]))
            assert CREATED[created] == name
        elif name == "cuGraphGetNodes":
            arguments[2]._obj.value = len(self.nodes)
            if arguments[1] is not None:
                arguments[1][:] = range(1, len(self.nodes) + 1)
        elif name == "cuGraphNodeGetType":
            arguments[1]._obj.value = self.nodes[arguments[0] - 1]
        elif name == "cuGraphMemcpyNodeGetParams":
            assert self.nodes[arguments[0] - 1] == COPY
            assert ctypes.sizeof(arguments[1]._obj) == ctypes.sizeof(Copy)
            ctypes.memmove(arguments[1]._obj, ctypes.byref(self.copy), ctypes.sizeof(Copy))

    def names(self):
        """Return the names of the functions that were called since the last time, without those of contexts."""
        names = [name for name, _ in self.calls if not name.startswith("cuCtx")]
        self.calls.clear()
        return names


@pytest.fixture
def library():
    return Library()


@pytest.fixture
def card(library):
    card = Driver(library).card(0)
    library.calls.clear()
    return card


def test_the_driver_lists_its_version_and_the_gpus(library):
    found = Driver(library)
    assert found.version == "13.2"
    assert found.gpus()[1] == driver.GPU(1, "NVIDIA H100", (9, 0), 80 << 30)
    assert len(found.gpus()) == 2


@pytest.mark.parametrize("current", [[], [0xBAD]], ids=["no context", "that of another library"])
def test_every_method_works_in_the_cards_context_and_restores_the_current_one(library, card, current):
    library.contexts = list(current)
    with card.exclusive():
        stream, other = card.stream(), card.stream()
        pointer, array = card.allocate(8), card.pinned(8)
        card.copy(pointer, array.ctypes.data, 8, stream)
        card.order(stream, other)
        with card.exclusive():
            card.synchronize(stream)
        card.synchronize_all()
        card.free(pointer)
        card.destroy_stream(stream)
        card.destroy_stream(other)
        del array
        assert "cuMemFreeHost" not in library.names()
    assert library.contexts == current
    assert [name for name, _ in library.live.values()] == ["cuEventCreate"]  # the card's own, for the whole process


def test_streams_do_not_wait_for_the_default_stream(library, card):
    with card.exclusive():
        stream = card.stream()
        assert library.live == {stream: ("cuStreamCreate", 1)}  # CU_STREAM_NON_BLOCKING of cuda.h
        assert card.is_non_blocking(stream)
        library.live[0x20] = ("cuStreamCreate", 0)
        assert not card.is_non_blocking(0x20)
        del library.live[0x20]
        card.destroy_stream(stream)
    assert library.live == {}


def test_order_makes_one_stream_wait_for_the_other(library, card):
    with card.exclusive():
        card.order(0x10, 0x20)
        assert library.waits == [(0x20, 0x10)]
        card.order(0x10, 0x10)  # a stream does not wait for itself
        assert library.waits == [(0x20, 0x10)]
        card.order(0x30, 0x10)
    assert library.waits == [(0x20, 0x10), (0x10, 0x30)]
    assert list(library.live.values()) == [("cuEventCreate", 2)]  # CU_EVENT_DISABLE_TIMING; one for all of them


def test_addresses_have_64_bits(library, card):
    far = (1 << 47) + 5
    library.live[far] = "memory"
    with card.exclusive():
        card.copy(far, far + 1, 1 << 33, far + 2)
        assert dict(library.calls)["cuMemcpyAsync"] == [far, far + 1, 1 << 33, far + 2]
        card.free(far)
        assert dict(library.calls)["cuMemFree_v2"] == [far]
        library.calls.clear()
        card.copy(far, far + 1, 0, far + 2)
    assert library.names() == []


def test_pinned_memory_is_an_array_and_freed_with_its_last_view(library, card):
    with card.exclusive():
        array = card.pinned(16)
    view = array.view(np.float32)[1:]
    view[:] = 1
    assert (array.shape, array.dtype, array.ctypes.data) == ((16,), np.uint8, library.buffers[0].ctypes.data)
    del array
    assert library.names() == ["cuMemAllocHost_v2"]
    del view
    assert library.names() == ["cuMemFreeHost"]


STREAM = (1 << 47) + 0x10


def test_captured_work_is_launched_and_destroyed(card, library):
    def queue():
        assert library.capturing == [STREAM]
        card.copy(0x20, 0x30, 8, STREAM)

    with card.exclusive():
        graph = card.capture(STREAM, queue)
        assert list(library.live) == [graph]
        assert dict(library.calls)["cuStreamBeginCapture_v2"] == [STREAM, 1]  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        assert dict(library.calls)["cuGraphInstantiateWithFlags"][2] == 0
        assert library.names().count("cuMemcpyAsync") == 1
        card.launch(graph, STREAM + 1)
        assert library.calls == [("cuGraphLaunch", [graph, STREAM + 1])]
        card.destroy_graph(graph)
    assert library.live == {}
    assert library.capturing == []


@pytest.mark.parametrize(
    ("failing", "nodes", "source", "message"),
    [
        ({"cuMemcpyAsync": 900}, [KERNEL], FROM_DEVICE, "cuMemcpyAsync of the NVIDIA driver: error 900"),
        ({"cuMemcpyAsync": 900, "cuStreamEndCapture": 901}, [KERNEL], FROM_DEVICE, "cuMemcpyAsync .* error 900"),
        ({"cuStreamEndCapture": 901}, [KERNEL], FROM_DEVICE, "cuStreamEndCapture of the NVIDIA driver: error 901"),
        ({"cuGraphInstantiateWithFlags": 2}, [KERNEL], FROM_DEVICE, "cuGraphInstantiateWithFlags .* error 2"),
        ({}, [KERNEL, HOST, COPY], FROM_DEVICE, "The host takes part in the work"),
        ({}, [KERNEL, COPY, KERNEL], FROM_HOST, "The host takes part in the work"),
        ({}, [COPY], FROM_ANYWHERE, "The host takes part in the work"),
    ],
)
def test_a_capture_that_fails_ends_and_leaves_no_graph(card, library, failing, nodes, source, message):
    library.nodes, library.copy.source_type = nodes, source
    library.failing.update(failing)
    with card.exclusive(), pytest.raises(SAEError, match=message):
        card.capture(STREAM, lambda: card.copy(0x20, 0x30, 8, STREAM))
    assert library.capturing == []
    assert library.live == {}


def test_ctrl_c_ends_a_capture(card, library):
    def interrupted():
        raise KeyboardInterrupt

    with card.exclusive(), pytest.raises(KeyboardInterrupt):
        card.capture(STREAM, interrupted)
    assert library.capturing == []
    assert library.live == {}


def test_a_capture_that_does_not_begin_is_not_ended(card, library):
    """The stream may be that of a capture of the caller's own."""
    library.failing["cuStreamBeginCapture_v2"] = 401
    with card.exclusive(), pytest.raises(SAEError, match="cuStreamBeginCapture_v2 of the NVIDIA driver: error 401"):
        card.capture(STREAM, lambda: None)
    assert "cuStreamEndCapture" not in library.names()


def test_an_error_quotes_the_driver_and_restores_the_current_context(card, library):
    library.failing["cuMemAlloc_v2"] = 2
    with pytest.raises(SAEError, match="cuMemAlloc_v2 of the NVIDIA driver: error 2, out of memory"), card.exclusive():
        card.allocate(1 << 40)
    assert library.contexts == []


def test_a_driver_that_has_ended_does_not_keep_other_threads_out(card, library):
    """Finalizers run when a process ends, after the driver. Their work is dropped, and nothing is raised."""
    library.failing["cuCtxPushCurrent_v2"] = 4
    card.defer(lambda: card.free(0x1000))
    with pytest.raises(SAEError, match="cuCtxPushCurrent_v2 of the NVIDIA driver: error 4"), card.exclusive():
        pass
    entered = []
    thread = threading.Thread(target=lambda: entered.append(card._lock.acquire(timeout=5)))
    thread.start()
    thread.join()
    assert entered == [True]


class WatchedLock:
    """A lock that calls a function before it is released for the n-th time."""

    def __init__(self, lock, n, work):
        self.lock, self.left, self.work = lock, n, work
        self.acquire = lock.acquire

    def release(self):
        self.left -= 1
        if self.left == 0:
            self.work()
        self.lock.release()


def enter(card):
    with card.exclusive():
        pass


@pytest.mark.parametrize(("use", "release"), [
    (enter, 1), (lambda card: card.defer(lambda: None), 1), (lambda card: card.defer(lambda: None), 2),
], ids=["the end of a block", "the end of deferred work", "after deferred work"])  # fmt: skip
@pytest.mark.parametrize("in_thread", [True, False], ids=["another thread", "a finalizer in this thread"])
def test_work_that_is_deferred_while_the_lock_is_given_back_runs(card, library, use, release, in_thread):
    """It comes after somebody has looked for deferred work, and before another thread gets the lock."""
    done = []

    def defer():
        if in_thread:
            thread = threading.Thread(target=card.defer, args=(lambda: done.append(True),))
            thread.start()
            thread.join()
        else:
            card.defer(lambda: done.append(True))

    card._lock = WatchedLock(card._lock, release, defer)
    use(card)
    assert card._lock.left <= 0
    assert done == [True]
    assert library.contexts == []


AT_THE_END = """
import builtins
from runtime.devices.cuda import driver
from tests.runtime.devices.cuda.test_driver import Library

card = driver.Driver(Library()).card(0)
with card.exclusive():
    array = card.pinned(16)
    driver.freed_with_the_module = card.pinned(16)
    builtins.freed_after_every_module = card.pinned(16)
"""


def test_a_process_may_end_while_pinned_memory_is_in_use():
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_much_deferred_work_runs_at_the_end_of_the_outermost_block(card, library):
    done = []

    def work():
        with card.exclusive():
            done.append(len(library.contexts))

    with card.exclusive():
        for _ in range(3000):
            card.defer(work)
        with card.exclusive():
            pass
        assert done == []
    assert done == [1] * 3000
    card.defer(work)
    assert len(done) == 3001
    assert library.contexts == []


@pytest.fixture
def no_cache():
    driver.driver.cache_clear()
    yield
    driver.driver.cache_clear()


def test_no_driver(no_cache, monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(ProviderError, match=r"no NVIDIA driver \(libcuda.so.1 is missing; install it, or start"):
        driver.driver()


def test_a_driver_without_a_gpu(no_cache, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library({"cuInit": 100}))
    with pytest.raises(ProviderError, match="the NVIDIA driver does not start: cuInit .* error 100"):
        driver.driver()


def test_a_library_that_is_too_old(no_cache, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with pytest.raises(ProviderError, match="the NVIDIA driver does not start"):
        driver.driver()


def test_the_driver_is_started_once(no_cache, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert driver.driver() is driver.driver()
