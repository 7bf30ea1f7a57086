"""How long hypothesis tries: seconds in every run of the suite, minutes in a soak (`FUZZING=soak`)."""

import contextlib
import os
import signal

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("FUZZING", "ci")
LONGER = 40
"""How many times as many examples a soak tries."""

_ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=100, **_ALWAYS)
settings.register_profile("soak", max_examples=100 * LONGER, **_ALWAYS)
settings.load_profile(PROFILE)


def examples(count):
    """Return the settings of a test that tries `count` examples in CI, and as many times more in a soak as others."""
    return settings(max_examples=count * (LONGER if PROFILE == "soak" else 1), **_ALWAYS)


class TooLong(BaseException):
    """A block took too long. It is not an `Exception`, so that no reader takes it for a damaged file."""


@contextlib.contextmanager
def within(seconds):
    """Raise `TooLong` in a block that takes longer, also where it waits for a file."""

    def stop(number, frame):
        raise TooLong(f"not done after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
