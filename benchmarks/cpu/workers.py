"""A process for each contender, which waits until it is asked: `python -m benchmarks.cpu.workers NAME FOLDER THREADS`.

After a call, the threads of one library spin for a while in expectation of the next one. In one process with others
they would do so on the cores that another contender needs; in a process of its own a contender that is not asked lies
still after a moment. A request and its answer are a line of JSON each, on standard input and output.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.cpu.cases import input_file
from benchmarks.cpu.contenders import CONTENDERS, Call, UnavailableError, Way
from benchmarks.shared.machine import ROOT, field_of

LONG = 0.5
"""Seconds from which on a call is measured without one before it: what that one is for, caches that others have filled
and threads of others that still spin, is over in milliseconds."""


class Worker:
    """The parent's end of a contender's process."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, it is closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu.workers", name, str(folder), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def send(self, request: str, **arguments: object) -> None:
        """Ask for something without waiting for the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` says what it died of
            self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
            self._process.stdin.flush()

    def receive(self) -> Any:
        """Return the answer.

        Raises:
            UnavailableError: this machine cannot run the contender.
            RuntimeError: it failed; the message ends with what it wrote.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"The process of {self.name} ended with {self._process.returncode}: "
                               f"{self._log.read()[-2000:]}")  # fmt: skip
        answer = json.loads(line)
        if "unavailable" in answer:
            raise UnavailableError(answer["unavailable"])
        return answer["answer"]

    def ask(self, request: str, **arguments: object) -> Any:
        """Ask for something and return the answer."""
        self.send(request, **arguments)
        return self.receive()

    @property
    def resident(self) -> int:
        """What the process has in memory now, in bytes, without pages of files."""
        return field_of(self._process.pid, "RssAnon")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Served:
    """The contender's end: each method answers the request of its name."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.folder = folder
        self.way: Way = CONTENDERS[name].make(folder, threads)
        self.parts: dict[str, Call] = {}
        self.last: dict[str, float] = {}

    def ready(self) -> str:
        """Answer once the contender is loaded."""
        return "ready"

    def bind(self, rows: int) -> list[str]:
        """Take the inputs with so many rows, and call each part once."""
        self.parts, self.last = {}, {}
        self.parts = self.way.bind(np.load(input_file(self.folder, rows)))
        for name, part in self.parts.items():
            self.last[name] = seconds_of(part)
        return list(self.parts)

    def outputs(self, rows: int, every: int, target: str) -> list[str]:
        """Write the hooks of the inputs with so many rows to a file: of all of them computed, every n-th row."""
        hooks = self.way.outputs(np.load(input_file(self.folder, rows)))
        save_file({hook: np.array(y[::every]) for hook, y in hooks.items()}, target)
        return list(hooks)

    def turn(self, seconds: float) -> dict[str, list[float]]:
        """Return the times of each part, in milliseconds: a call or more, until so many seconds are measured."""
        measured = {}
        for name, part in self.parts.items():
            if self.last[name] < LONG:
                part()
            times = [seconds_of(part)]
            while sum(times) < seconds:
                times.append(seconds_of(part))
            measured[name] = [1e3 * t for t in times]
            self.last[name] = times[-1]
        return measured


def seconds_of(call: Call) -> float:
    """Return how long a call takes, the freeing of its result included."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    served = Served(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = {"answer": getattr(served, arguments.pop("request"))(**arguments)}
        except UnavailableError as reason:
            answer = {"unavailable": str(reason)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
