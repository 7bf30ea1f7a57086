"""The NVIDIA driver by its C functions: what is called with what, and what its errors become. A fake is the library."""

import ctypes

import numpy as np
import pytest

from runtime import ProviderError, SAEError
from runtime.devices.cuda import driver
from runtime.devices.cuda.driver import FUNCTIONS, Driver


class Function:
    """One of the driver's functions."""

    def __init__(self, library, name):
        self.library, self.name = library, name

    def __call__(self, *arguments):
        converted = [
            kind(argument).value if isinstance(argument, int) else argument
            for argument, kind in zip(arguments, self.argtypes, strict=True)
        ]
        self.library.calls.append((self.name, [getattr(value, "value", value) for value in converted]))
        if self.name == "cuGetErrorString":
            arguments[1]._obj.value = b"out of memory"
            return 0
        if self.name in self.library.failing:
            return self.library.failing[self.name]
        self.library.fill(self.name, arguments)
        return 0


class Library:
    """Stands for libcuda.so.1."""

    def __init__(self, failing=()):
        self.calls, self.failing, self.made = [], dict(failing), iter(range(0x1000, 1 << 60, 0x1000))
        self.buffers = []
        for name in FUNCTIONS:
            setattr(self, name, Function(self, name))

    def fill(self, name, arguments):
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
        elif name in ("cuStreamCreate", "cuEventCreate", "cuMemAlloc_v2", "cuDevicePrimaryCtxRetain"):
            arguments[0]._obj.value = next(self.made)

    def names(self, context=False):
        """Return which functions were called, since the last time."""
        names = [name for name, _ in self.calls if context or not name.startswith("cuCtx")]
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


def test_what_the_machine_has(library):
    found = Driver(library)
    assert found.version == "13.2"
    assert found.gpus()[1] == driver.GPU(1, "NVIDIA H100", (9, 0), 80 << 30)
    assert len(found.gpus()) == 2


def test_every_call_is_made_in_the_cards_context(library, card):
    card.synchronize(card.stream())
    pairs = library.names(context=True)
    assert pairs == ["cuCtxPushCurrent_v2", "cuStreamCreate", "cuCtxPopCurrent_v2",
                     "cuCtxPushCurrent_v2", "cuStreamSynchronize", "cuCtxPopCurrent_v2"]  # fmt: skip


def test_streams_do_not_wait_for_the_default_stream(library, card):
    stream = card.stream()
    assert [arguments[1] for name, arguments in library.calls if name == "cuStreamCreate"] == [driver.NON_BLOCKING]
    card.destroy_stream(stream)
    assert library.names() == ["cuStreamCreate", "cuStreamDestroy_v2"]


def test_order_is_an_event_between_two_streams(library, card):
    card.order(0x10, 0x20)
    calls = dict(library.calls)
    event = calls["cuEventRecord"][0]
    assert calls["cuEventRecord"] == [event, 0x10]
    assert calls["cuStreamWaitEvent"] == [0x20, event, 0]
    assert library.names() == ["cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "cuEventDestroy_v2"]
    card.order(0x10, 0x10)  # a stream is in order by itself
    assert library.names() == []


def test_addresses_have_64_bits(library, card):
    far = (1 << 47) + 5
    card.copy(far, far + 1, 1 << 33, far + 2)
    assert dict(library.calls)["cuMemcpyAsync"] == [far, far + 1, 1 << 33, far + 2]
    card.free(far)
    assert dict(library.calls)["cuMemFree_v2"] == [far]
    library.calls.clear()
    card.copy(far, far + 1, 0, far + 2)
    assert library.names() == []


def test_pinned_memory_is_an_array_and_freed_with_its_last_view(library, card):
    array = card.pinned(16)
    view = array.view(np.float32)[1:]
    view[:] = 1
    assert (array.shape, array.dtype, array.ctypes.data) == ((16,), np.uint8, library.buffers[0].ctypes.data)
    del array
    assert library.names() == ["cuMemAllocHost_v2"]
    del view
    assert library.names() == ["cuMemFreeHost"]


def test_an_error_has_the_drivers_words_and_leaves_the_context_as_it_was(card, library):
    library.failing["cuMemAlloc_v2"] = 2
    with pytest.raises(SAEError, match="cuMemAlloc_v2 of the NVIDIA driver: error 2, out of memory"):
        card.allocate(1 << 40)
    assert library.names(context=True)[-1] == "cuCtxPopCurrent_v2"


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


def test_a_driver_without_a_card(no_cache, monkeypatch):
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
