"""Runs functions in threads of their own, while ONNX Runtime or a checksum keeps this one busy."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


def in_background(function: Callable[[], Result], *, daemon: bool = True) -> Callable[[], Result]:
    """Start a function in its own thread, and return a function that waits for its result or raises its exception.

    Args:
        function: The function.
        daemon: Whether the process may end meanwhile. Not while ONNX Runtime starts a session: Python would end the
            thread inside of C++ code, which aborts the process.
    """
    results: list[Result] = []
    raised: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # raised again in the thread that asks for the result
            raised.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, daemon=daemon)
    thread.start()

    def result() -> Result:
        ended.wait()  # Python takes a thread for ended when an interrupt arrives while another one joins it
        thread.join()
        if raised:
            raise raised[0]
        return results[0]

    return result


def at_the_same_time(functions: Iterable[Callable[[], Result]]) -> list[Result]:
    """Run functions, each in its own thread, and return their results in order, or raise the first exception.

    When this returns or raises, all of them have ended, so that a second attempt finds what the first one has done. The
    process does not end before they do.
    """
    started: list[Callable[[], Result]] = []
    try:
        for function in functions:
            started.append(in_background(function, daemon=False))
        return [result() for result in started]
    finally:
        for result in started:
            with contextlib.suppress(Exception):  # one of them is being raised
                result()


@contextlib.contextmanager
def repeatedly(function: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call a function in a thread of its own again and again, after every `seconds`, and once at the end."""
    done = threading.Event()
    wait: Callable[[], None] | None = None

    def run() -> None:
        while not done.wait(seconds):
            function()

    try:
        wait = in_background(run)  # an interrupt may arrive when the thread runs and this has not returned
        yield
    finally:
        done.set()
        if wait is not None:
            wait()
        function()
