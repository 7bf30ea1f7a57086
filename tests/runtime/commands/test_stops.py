"""Ctrl-C and SIGTERM end a command with their exit codes, whatever a library makes of the exception on its way."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime.commands.main import main
from tests.support.samples import TINY

SWALLOWS = """
import os, signal, sys
from runtime.commands import verify
from runtime.commands.main import main
{before}
def stopped(*args, **options):
    try:
        os.kill(os.getpid(), signal.{name})
    except BaseException:
        pass
    {after}
verify.verify = stopped
sys.exit(main(["verify", {path!r}]))
"""


def run(name, after, before=""):
    code = SWALLOWS.format(name=name, after=after, before=before, path=str(TINY))
    restored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **restored)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of this kind")
@pytest.mark.parametrize(("name", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])
@pytest.mark.parametrize(
    "after", ["raise AttributeError('half imported')", "from runtime import SAEError; raise SAEError('cannot trace')"]
)
def test_a_library_that_catches_the_exception_and_fails(name, code, word, after):
    done = run(name, after)
    assert (done.returncode, done.stderr.strip()) == (code, word)


def test_without_a_signal_the_error_is_what_is_reported():
    done = run("SIGTERM", "raise AttributeError('a bug')", before="os.kill = print")
    assert done.returncode == 1
    assert "AttributeError: a bug" in done.stderr


def test_a_job_in_the_background_goes_on_ignoring_ctrl_c():
    done = run("SIGINT", "raise AttributeError('a bug')", before="signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert done.returncode == 1
    assert "AttributeError: a bug" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of this kind")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_program_that_calls_a_command_keeps_its_own_handler(name):
    own = f"signal.signal(signal.{name}, lambda number, frame: sys.exit(7))"
    swallowed = run(name, "raise AttributeError('a bug')", before=own)
    assert swallowed.returncode == 1
    assert "AttributeError: a bug" in swallowed.stderr


def test_the_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["inspect", str(TINY)]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_thread_may_call_a_command():
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(main, ["inspect", str(TINY)]).result() == 0
