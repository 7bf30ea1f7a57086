"""A limit on the time of a block, also where it waits for a file."""

import contextlib
import signal


class TooLong(BaseException):
    """A block took too long. It is not an `Exception`, so that no reader takes it for a damaged file."""


@contextlib.contextmanager
def within(seconds):
    """Raise `TooLong` in a block that takes longer."""

    def stop(number, frame):
        raise TooLong(f"not done after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
