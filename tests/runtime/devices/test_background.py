"""Functions in threads of their own, and what the CPU backend runs in them."""

import signal
import threading

import pytest

from runtime import SAESession
from runtime.artifact.held import HeldFolder
from runtime.devices import background, cpu
from runtime.devices.background import at_the_same_time, in_background, repeatedly
from tests.support.life import python
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


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_result_can_be_waited_for_after_an_interrupt():
    go = threading.Event()
    result = in_background(lambda: go.wait(SECONDS))
    earlier = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            result()
    finally:
        signal.signal(signal.SIGALRM, earlier)
    threading.Timer(0.05, go.set).start()
    assert result() is True


def test_functions_run_at_the_same_time():
    both = threading.Barrier(2, timeout=SECONDS)
    assert sorted(at_the_same_time([both.wait, both.wait])) == [0, 1]


@pytest.mark.parametrize("first", [True, False])
def test_the_other_functions_have_ended_when_one_has_failed(first):
    failed, ended = threading.Event(), []

    def fail():
        failed.set()
        raise KeyError("no such thing")

    def go_on():
        assert failed.wait(SECONDS)
        assert not threading.Event().wait(0.05)
        ended.append(True)

    with pytest.raises(KeyError, match="no such thing"):
        at_the_same_time([fail, go_on] if first else [go_on, fail])
    assert ended


def test_an_interrupt_while_the_thread_starts_leaves_none_behind(monkeypatch):
    calls, start = [], background.in_background

    def start_and_interrupt(function):
        start(function)
        raise KeyboardInterrupt

    monkeypatch.setattr(background, "in_background", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt), repeatedly(lambda: calls.append(0), 0.001):
        pass
    assert not threading.Event().wait(0.02)
    count = len(calls)
    assert not threading.Event().wait(0.02)
    assert len(calls) == count


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


def test_no_stage_is_being_started_any_more_when_the_start_of_another_has_failed(before_start):
    """It may have failed because memory is short, and a second attempt would start that stage twice at once."""
    failed, starts, waited, lock = threading.Event(), [], [], threading.Lock()

    def fail_once():
        with lock:
            starts.append(0)
            is_first = len(starts) == 1
        if is_first:
            failed.set()
            raise MemoryError
        assert failed.wait(SECONDS)
        assert not threading.Event().wait(0.05)
        waited.append(0)

    before_start.append(fail_once)
    with SAESession(MINILM, "cpu") as session:
        x = normal(1, session.cfg.d_in)
        with pytest.raises(MemoryError):
            session(x)
        assert waited == [0]
        assert session(x).shape == x.shape


def test_a_process_that_is_interrupted_while_stages_start_ends_like_any_other(tmp_path):
    ended = python(
        f"""
        import _thread, signal, threading
        import numpy as np
        from runtime import SAESession
        from runtime.devices import cpu

        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
        start = cpu.start_session

        def interrupt_and_start(*args, **options):
            _thread.interrupt_main()
            for _ in range(20):  # so that ONNX Runtime is busy when Python ends
                session = start(*args, **options)
            return session

        cpu.start_session = interrupt_and_start
        session = SAESession({str(MINILM)!r}, "cpu")
        session(np.zeros((1, session.cfg.d_in), np.float32))
        """,
        tmp_path,
    )
    assert ended.stderr.endswith("KeyboardInterrupt\n")
    assert ended.returncode != -signal.SIGABRT


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
