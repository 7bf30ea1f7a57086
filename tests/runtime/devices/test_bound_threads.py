"""As many threads as cores are bound to the cores; fewer or more threads run wherever the process may."""

import os
from pathlib import Path

import pytest

from runtime import SAESession
from runtime.devices import start, threads
from runtime.devices.threads import bound_cores
from tests.support.samples import TINY, normal

TASKS = Path("/proc/self/task")
cores_of = getattr(os, "sched_getaffinity", None)  # the tests replace it in `os`


@pytest.fixture
def cores_are(monkeypatch):
    """Sets the cores of the machine and those that the process may use."""

    def set_cores(allowed, machine=16):
        monkeypatch.setattr(threads.os, "cpu_count", lambda: machine)
        monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(allowed), raising=False)

    return set_cores


@pytest.fixture
def limit_is(monkeypatch):
    """Sets the number of threads that suits the machine."""
    return lambda limit: monkeypatch.setattr(start, "thread_limit", lambda: limit)


@pytest.mark.parametrize(
    ("allowed", "number", "expected"),
    [
        (range(2), 2, "2"),
        (range(4), 4, "2;3;4"),
        ({9, 4, 7}, 3, "8;10"),
        (range(4), 1, None),
        (range(4), 3, None),
        (range(4), 5, None),
        ({5}, 1, None),
        ({5}, 2, None),
    ],
)
def test_each_thread_but_the_callers_gets_a_core_if_there_are_as_many(cores_are, allowed, number, expected):
    cores_are(allowed)
    assert bound_cores(number) == expected


def test_a_system_that_binds_no_threads_is_not_asked_to(monkeypatch):
    monkeypatch.delattr(threads.os, "sched_getaffinity", raising=False)
    assert bound_cores(os.cpu_count() or 1) is None


@pytest.fixture
def cores_of_threads():
    """Calls a function and returns the cores that each thread may use that has been started meanwhile."""
    if cores_of is None or not TASKS.is_dir():
        pytest.skip("This system does not tell which cores a thread may use.")

    def call(function):
        before = {*os.listdir(TASKS)}
        with function() as session:
            session(normal(3, 6))
            started = {*os.listdir(TASKS)} - before
            return [cores_of(int(thread)) for thread in started]

    return call


@pytest.fixture
def two_cores(cores_of_threads):
    """Two of the cores that this process may use."""
    cores = sorted(cores_of(0))
    if len(cores) < 2:
        pytest.skip("This process may use one core only.")
    return cores[:2]


def test_onnx_runtime_binds_the_threads_as_it_is_asked_to(cores_of_threads, cores_are, two_cores):
    first, second = two_cores
    cores_are((first, second))
    found = cores_of_threads(lambda: SAESession(TINY, "cpu", threads=2))
    assert found, "no thread has been started"
    assert all(cores == {second} for cores in found)


@pytest.mark.parametrize("number", [2, 4])
def test_other_numbers_of_threads_are_not_bound(cores_of_threads, cores_are, number):
    mine = cores_of(0)
    cores_are(range(3))
    found = cores_of_threads(lambda: SAESession(TINY, "cpu", threads=number))
    assert len(found) >= number - 1
    assert all(cores == mine for cores in found)


def test_a_process_with_some_of_the_cores_binds_its_threads_to_them(cores_of_threads, cores_are, limit_is, two_cores):
    first, second = two_cores
    cores_are((first, second))
    limit_is(2)  # what `thread_limit` returns for two of many cores
    found = cores_of_threads(lambda: SAESession(TINY, "cpu"))
    assert found, "no thread has been started"
    assert all(cores == {second} for cores in found)


def test_a_quota_of_some_cores_binds_no_thread(cores_of_threads, cores_are, limit_is):
    mine = cores_of(0)
    cores_are(range(3))
    limit_is(2)  # what `thread_limit` returns for a quota of two cores
    found = cores_of_threads(lambda: SAESession(TINY, "cpu"))
    assert found, "no thread has been started"
    assert all(cores == mine for cores in found)
