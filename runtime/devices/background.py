"""Runs functions in threads of their own, while ONNX Runtime or a checksum keeps this one busy."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


def in_background(function: Callable[[], Result]) -> Callable[[], Result]:
    """Start a function in its own thread, and return a function that waits for its result or raises its exception."""
    results: list[Result] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # raised again in the thread that asks for the result
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)  # an interrupted load does not keep the process alive
    thread.start()

    def result() -> Result:
        thread.join()
        if raised:
            raise raised[0]
        return results[0]

    return result


@contextlib.contextmanager
def repeatedly(function: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call a function in a thread of its own again and again, after every `seconds`, and once at the end."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(seconds):
            function()

    wait = in_background(run)
    try:
        yield
    finally:
        done.set()
        wait()
        function()
