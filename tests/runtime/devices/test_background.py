"""Functions in threads of their own, and what the CPU backend runs in them."""

import threading

import pytest

from runtime import SAESession
from runtime.artifact.held import HeldFolder
from runtime.devices import cpu
from runtime.devices.background import in_background, repeatedly
from tests.support.samples import MINILM, normal

SECONDS = 30
"""Time after which something did not happen."""


def test_the_result_of_a_function_is_waited_for():
    go = threading.Event()
    result = in_background(lambda: go.wait(SECONDS))
    go.set()
    assert result() is True


def test_its_exception_is_raised_where_the_result_is_asked_for():
    def fail():
        raise KeyError("no such thing")

    result = in_background(fail)
    for _ in range(2):
        with pytest.raises(KeyError, match="no such thing"):
            result()


def test_a_function_is_called_again_and_again_and_at_the_end():
    calls, third = [], threading.Event()

    def call():
        calls.append(threading.current_thread())
        if len(calls) == 3:
            third.set()

    with repeatedly(call, 0.001):
        assert third.wait(SECONDS)
    assert calls[-1] is threading.current_thread()
    count = len(calls)
    assert not threading.Event().wait(0.02)
    assert len(calls) == count


def test_it_ends_with_an_exception_of_what_goes_on_meanwhile():
    calls = []
    with pytest.raises(KeyError), repeatedly(lambda: calls.append(0), SECONDS):
        raise KeyError
    assert calls == [0]


@pytest.fixture
def before_start(monkeypatch):
    """Return a list of functions that are called before each start of ONNX Runtime."""
    functions, start = [], cpu.start_session

    def call_and_start(*args, **options):
        for function in functions:
            function()
        return start(*args, **options)

    monkeypatch.setattr(cpu, "start_session", call_and_start)
    return functions


def test_the_encoder_and_the_decoder_start_at_the_same_time(before_start):
    both = threading.Barrier(2, timeout=SECONDS)
    before_start.append(both.wait)
    with SAESession(MINILM, "cpu") as session:
        session(normal(1, session.cfg.d_in))
    assert not both.broken


def test_the_pages_of_the_weights_go_back_while_a_session_starts(before_start, monkeypatch):
    forgotten, forget = threading.Event(), HeldFolder.forget_pages

    def forget_and_say(files):
        forget(files)
        forgotten.set()

    monkeypatch.setattr(HeldFolder, "forget_pages", forget_and_say)
    before_start.append(lambda: seen.append(forgotten.wait(SECONDS)))
    seen = []
    with SAESession(MINILM, "cpu") as session:
        session.encode(normal(1, session.cfg.d_in))
    assert seen == [True]
