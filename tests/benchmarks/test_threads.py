"""The measurement of bound threads compares threads that are bound with threads that are not."""

import os

import pytest

from benchmarks.costs import threads
from benchmarks.shared.machine import available_cores
from runtime.devices import start
from tests.support.samples import TINY


@pytest.fixture
def options_of(monkeypatch):
    """Opens a session in one of the ways, and returns the options of the ONNX Runtime session of its first call."""
    monkeypatch.setattr(start, "bound_cores", start.bound_cores)  # is put back after the test
    monkeypatch.setattr(threads, "K", 2)
    found, make = [], start.ort.InferenceSession

    def make_and_note(model, options, *args, **named):
        found.append(options)
        return make(model, options, *args, **named)

    monkeypatch.setattr(start.ort, "InferenceSession", make_and_note)

    def call(way):
        threads.open_session(TINY, way)
        times = threads.time_calls(rows=3, pause=0.0)
        threads.state.pop("session").close()
        assert min(times) > 0
        return found[-1]

    return call


def affinities(options):
    try:
        return options.get_session_config_entry("session.intra_op_thread_affinities")
    except Exception:  # ONNX Runtime raises one for an entry that was not set
        return None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or available_cores() < 2, reason="needs two cores")
def test_each_way_has_its_threads(options_of):
    found = {way: options_of(way) for way in threads.WAYS}
    numbers = {way: options.intra_op_num_threads for way, options in found.items()}
    assert numbers == {threads.BOUND: available_cores(), threads.NOT_BOUND: available_cores(), threads.ONE: 1}
    assert affinities(found[threads.BOUND])
    assert affinities(found[threads.NOT_BOUND]) is None


def test_the_table_has_both_ratios():
    line = {"d_in": 4, "d_sae": 8, "rows": 3, "pause": 0.005, "processes": 2, "ms": {"bound": 1.0},
            "over_bound": {"bound": [1, 1, 1], "not bound": [2, 1.5, 3], "one thread": [0.5, 0.25, 0.75]}}  # fmt: skip
    assert threads.table([line]).splitlines()[-1] == (
        "| 4 x 8 | 2 | 5 | 3 | 1.00 | 2.00 (1.50-3.00) | 0.50 (0.25-0.75) |"
    )
