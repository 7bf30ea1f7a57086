"""A forked process that carries out actions one after another, and is watched while it does.

The parent sees from outside whether an action hangs, whether the process dies, and whether it keeps descriptors,
threads or memory.
"""

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import random
import select
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from runtime.errors import SAEError
from tests.soak.outcomes import DONE, HUNG, LEAKED, REFUSED, WRONG, Leaked, Wrong

GROWTH = 32 << 20
"""Bytes that a process may grow from the first sample to the last: more than the allocator's own noise, and in ten
minutes less than 16 KB for each action."""

LEAST = 40
"""Number of samples from which memory is judged. After fewer, what is filled once, such as a cache, looks like a
leak."""

ALLOCATOR = "jemalloc_bg_thd"
"""Name of the thread of an allocator, which starts when there is something to give back to the system."""

M_ARENA_MAX = -8
"""Source: mallopt(3) of glibc."""

SETTLED = 0.5
"""Seconds in which threads that have been told to end have ended."""


class Memory:
    """Tells from samples of a process's memory whether it grows and grows."""

    def __init__(self):
        self.samples = []

    def leaked(self):
        """Return by how many bytes memory has grown in the second half of the samples if that is a leak, or else 0.

        The medians of four quarters are compared. What fills up, such as a cache or the pools of an allocator, grows in
        the first of them, and a single large allocation in one. A leak goes on growing in the last two.
        """
        count = len(self.samples)
        if count < LEAST:
            return 0
        quarters = (self.samples[i * count // 4 : (i + 1) * count // 4] for i in range(4))
        _, second, third, last = map(statistics.median_low, quarters)
        return last - second if min(third - second, last - third) > GROWTH / 4 else 0


class Worker:
    """A process that carries out actions on request.

    Args:
        actions: Functions of a random generator and a folder for files, by kind. An action returns nothing if all is
            well, raises an error of `runtime.errors` if it refuses, and `Wrong` if a number is wrong.
        seed: Seed of the actions.
        timeout: Seconds that an action may take.
    """

    def __init__(self, actions, seed, timeout):
        self.actions, self._seed, self._timeout = actions, seed, timeout
        self._process = None
        self._memories = []  # of each process

    def run(self, kind, number):
        """Carry out an action. Return its outcome and a description."""
        if self._process is None and (failed := self._start()):
            return self._end(failed, "first")
        answer = self._ask({"kind": kind, "number": number})
        if answer is None:
            return self._end(kind, number)
        if answer["outcome"] in (DONE, REFUSED) and (kept := self._kept()):
            return LEAKED, f"{kind} {number}: {kept}"
        return answer["outcome"], f"{kind} {number}: {answer['detail']}"

    def measure_memory(self):
        """Add a sample of the process's memory."""
        if self._process is not None and self._ask({"kind": None}) is not None:
            pages = int(Path(f"/proc/{self._process}/statm").read_text().split()[1])
            self._memories[-1].samples.append(pages * os.sysconf("SC_PAGESIZE"))

    def leaked(self):
        """Return by how many bytes a process has grown if its memory leaks, or else 0."""
        return max((memory.leaked() for memory in self._memories), default=0)

    def close(self):
        if self._process is not None:
            self._stop()

    def _start(self):
        """Start the process and carry out each action once. Return the kind that hangs or dies, if any."""
        self._folder = Path(tempfile.mkdtemp(prefix="soak-"))
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            with contextlib.suppress(BaseException):
                os.setpgid(0, 0)
                os.close(self._requests)
                os.close(self._answers)
                self._serve(os.fdopen(requests), os.fdopen(answers, "w"))
            os._exit(1)
        os.close(requests)
        os.close(answers)
        self._lines = os.fdopen(self._answers)
        self._memories.append(Memory())
        for kind in self.actions:  # what is loaded once is not a leak
            if self._ask({"kind": kind, "number": "first"}) is None:
                return kind
        self._baseline = self._held()
        end = time.monotonic() + SETTLED
        while time.monotonic() < end:  # faulthandler's thread, for one, is still there when it has been cancelled
            time.sleep(0.02)
            held = self._held()
            self._baseline = {name: min(before, held[name], key=len) for name, before in self._baseline.items()}
        return None

    def _serve(self, requests, answers):
        """Answer requests until there are no more."""
        log = (self._folder / "log").open("w+")
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)  # what the arena of a thread keeps would look like a leak
        gc.freeze()
        for line in requests:
            request = json.loads(line)
            if request["kind"] is None:
                gc.collect()
                with contextlib.suppress(AttributeError):
                    ctypes.CDLL(None).malloc_trim(0)  # what is free does not count
                outcome, detail = DONE, ""
            else:
                faulthandler.dump_traceback_later(0.9 * self._timeout, file=log)
                outcome, detail = self._attempt(request["kind"], request["number"])
                faulthandler.cancel_dump_traceback_later()
            print(json.dumps({"outcome": outcome, "detail": detail}), file=answers, flush=True)

    def _attempt(self, kind, number):
        folder = self._folder / f"{kind} {number}"
        folder.mkdir()
        try:
            self.actions[kind](random.Random(f"{self._seed} {kind} {number}"), folder)
        except Wrong as error:
            return WRONG, str(error)
        except Leaked as error:
            return LEAKED, str(error)
        except SAEError as error:
            return REFUSED, str(error)
        except BaseException as error:
            places = traceback.extract_tb(error.__traceback__)
            path = " < ".join(f"{Path(place.filename).name}:{place.lineno}" for place in reversed(places[-4:]))
            return WRONG, f"{type(error).__name__}: {str(error)[:200]} ({path})"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            gc.collect()  # a session in a cycle keeps its files until then
        return DONE, ""

    def _ask(self, request):
        """Return the answer to a request, or None if there is none in time."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, (json.dumps(request) + "\n").encode())
        self._late = not select.select([self._lines], [], [], self._timeout)[0]
        if self._late:
            return None
        line = self._lines.readline()
        return json.loads(line) if line else None

    def _held(self):
        process = Path(f"/proc/{self._process}")
        threads = _read_each(lambda path: path.read_text().strip(), process.glob("task/*/comm"))
        return {
            "descriptors": _read_each(os.readlink, (process / "fd").iterdir()),
            "threads": [name for name in threads if name != ALLOCATOR],
            "files": [path.name for path in self._folder.iterdir()],
        }

    def _kept(self):
        """Return what the process holds more than after the action before, as text."""
        before, end = self._baseline, time.monotonic() + SETTLED
        while True:
            held = self._held()
            grown = [name for name in held if len(held[name]) > len(before[name])]
            if not grown or time.monotonic() > end:
                break
            time.sleep(0.02)
        self._baseline = held
        more = {name: Counter(held[name]) - Counter(before[name]) for name in grown}
        return "; ".join(f"{name} {', '.join(found.elements())}" for name, found in more.items())

    def _end(self, kind, number):
        """End a process that hangs or has died, and return which."""
        log = (self._folder / "log").read_text(errors="replace").rpartition("Timeout (")[2][:1000]
        code = self._stop()
        if self._late:
            return HUNG, f"{kind} {number}: no answer after {self._timeout:g} s\n{log}"
        return WRONG, f"{kind} {number}: the process ended with {code}\n{log}"

    def _stop(self):
        """End the process. Return its exit code, or None if it had to be killed."""
        os.close(self._requests)
        self._lines.close()
        code = end_of(self._process, 0 if self._late else 5)  # one that lives ends when there are no more requests
        shutil.rmtree(self._folder, ignore_errors=True)
        self._process = None
        return code


def _read_each(read, paths):
    """Return what is read from each path that still exists: a thread may end, and a file may be closed, meanwhile."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(read(path))
    return found


def carry_out(function, timeout):
    """Call a function in a forked process. Return its exit code, or None if it is not done after `timeout` seconds."""
    return end_of(start(function), timeout)


def start(function):
    """Start a forked process, in a group of its own, that calls a function. Return its id."""
    process = os.fork()
    if process == 0:
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            torch.set_num_threads(1)  # threads do not outlive a fork
            function()
            os._exit(0)
        os._exit(1)
    with contextlib.suppress(OSError):
        os.setpgid(process, process)  # in both processes, so that it is done whichever is first
    return process


def end_of(process, timeout):
    """Wait for a process. Return its exit code, or None if it had to be killed after `timeout` seconds."""
    descriptor = os.pidfd_open(process)
    try:
        late = not select.select([descriptor], [], [], timeout)[0]
    finally:
        os.close(descriptor)
    if late:
        os.killpg(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return None if late else os.waitstatus_to_exitcode(status)


if not sys.platform.startswith("linux"):
    raise ImportError("The soak watches processes through /proc, so it runs on Linux only.")
