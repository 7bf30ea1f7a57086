"""A process for each contender, which waits for requests: `python -m benchmarks.cpu.workers NAME FOLDER USE THREADS`.

After a call, the threads of a library spin for a while in expectation of the next one. In a process shared by several
contenders they would do so on the cores that another contender needs. In a process of its own, a contender is idle a
moment after its turn, for which the next one waits. A request and its answer are one line of JSON each, on standard
input and output.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.cpu.contenders.cases import input_file
from benchmarks.cpu.contenders.names import CONTENDERS, Call, Runner, UnavailableError
from benchmarks.shared.machine import ROOT, process_memory
from benchmarks.shared.timing import seconds_of

LONG_CALL = 0.5
"""Seconds from which a call is measured without a warm-up call. A warm-up undoes what the other contenders left, such
as full caches and spinning threads; that takes milliseconds, which do not matter in a long call."""


class Worker:
    """A contender's process, seen from the parent.

    Raises:
        UnavailableError: The environment of the contender is not installed.
    """

    def __init__(self, name: str, folder: Path, use: str, threads: int) -> None:
        self.name = name
        command = [CONTENDERS[name].python, "-m", "benchmarks.cpu.workers", name, str(folder), use, str(threads)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, it is closed with the worker
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def send(self, request: str, **arguments: object) -> None:
        """Send a request without waiting for the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` gives the reason
            self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
            self._process.stdin.flush()

    def receive(self) -> Any:
        """Wait for the answer and return it.

        Raises:
            UnavailableError: The contender cannot run on this machine.
            RuntimeError: The process ended; the message ends with what it printed.
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
        """Send a request and return the answer."""
        self.send(request, **arguments)
        return self.receive()

    @property
    def memory(self) -> int:
        """Memory of the process in bytes, without the pages of files."""
        return process_memory(self._process.pid, "RssAnon")

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

    def __exit__(self, *_: object) -> None:
        self.close()


class Server:
    """A contender in its own process. Each public method answers the request of its name."""

    def __init__(self, name: str, folder: Path, use: str, threads: int) -> None:
        self.folder = folder
        self.make = functools.partial(CONTENDERS[name].make, folder, use, threads)
        self.last = 0.0

    def load(self) -> None:
        """Load the contender."""
        self.runner: Runner = self.make()

    def bind(self, rows: int) -> None:
        """Load the inputs with this number of rows, and call the contender once."""
        self.call: Call | None = None  # releases that of other inputs first
        self.call = self.runner.bind(np.load(input_file(self.folder, rows)))
        self.last = seconds_of(self.call)

    def write_outputs(self, rows: int, stride: int, target: str) -> None:
        """Compute the outputs for the inputs with this number of rows, and write every `stride`-th row to a file."""
        outputs = self.runner.compute(np.load(input_file(self.folder, rows)))
        save_file({name: np.array(y[::stride]) for name, y in outputs.items()}, target)

    def measure(self, seconds: float) -> list[float]:
        """Return the milliseconds of calls, of which as many are made as take `seconds`, and at least one."""
        assert self.call is not None
        if self.last < LONG_CALL:
            self.call()
        times = [seconds_of(self.call)]
        total = times[0]
        while total < seconds:
            times.append(seconds_of(self.call))
            total += times[-1]
        self.last = times[-1]
        return [1e3 * t for t in times]


def main() -> None:
    """Answer requests until standard input is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    server = Server(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = {"answer": getattr(server, arguments.pop("request"))(**arguments)}
        except UnavailableError as reason:
            answer = {"unavailable": str(reason)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
