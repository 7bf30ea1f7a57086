"""A process for each contender, which waits for requests: `python -m benchmarks.cpu.workers NAME FOLDER THREADS`.

After a call, the threads of a library spin for a while in expectation of the next one. In a process shared by several
contenders they would do so on the cores that another contender needs. In a process of its own, a contender is idle a
moment after its turn. A request and its answer are one line of JSON each, on standard input and output.
"""

import contextlib
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
    """A contender's process, seen from the parent."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, it is closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu.workers", name, str(folder), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
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

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.folder = folder
        self.runner: Runner = CONTENDERS[name].make(folder, threads)
        self.parts: dict[str, Call] = {}
        self.last: dict[str, float] = {}

    def ready(self) -> str:
        """Answer once the contender is loaded."""
        return "ready"

    def bind(self, rows: int) -> list[str]:
        """Load the inputs with this number of rows, call each part once, and return the names of the parts."""
        self.parts, self.last = {}, {}  # releases those of other inputs first
        self.parts = self.runner.bind(np.load(input_file(self.folder, rows)))
        self.last = {name: seconds_of(part) for name, part in self.parts.items()}
        return list(self.parts)

    def write_hooks(self, rows: int, stride: int, target: str) -> list[str]:
        """Compute the hooks of the inputs with this number of rows, and write every `stride`-th row to a file."""
        hooks = self.runner.compute_hooks(np.load(input_file(self.folder, rows)))
        save_file({hook: np.array(y[::stride]) for hook, y in hooks.items()}, target)
        return list(hooks)

    def measure(self, seconds: float) -> dict[str, list[float]]:
        """Return the milliseconds of calls of each part, which is called until `seconds` are measured."""
        measured = {}
        for name, part in self.parts.items():
            if self.last[name] < LONG_CALL:
                part()
            times = [seconds_of(part)]
            while sum(times) < seconds:
                times.append(seconds_of(part))
            measured[name] = [1e3 * t for t in times]
            self.last[name] = times[-1]
        return measured


def main() -> None:
    """Answer requests until standard input is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    server = Server(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = {"answer": getattr(server, arguments.pop("request"))(**arguments)}
        except UnavailableError as reason:
            answer = {"unavailable": str(reason)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
