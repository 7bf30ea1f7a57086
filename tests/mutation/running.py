"""Runs tests against mutants: a pytest plugin in place of pytest's own loop over the tests."""

import ast
import functools
import hashlib
import itertools
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch

from .mutants import places_of

ROOT = Path(__file__).parents[2]
MODES = QUICK, WARM, FRESH = "quick", "warm", "fresh"
"""Which tests a mutant is run against: those that take less than `QUICK_SECONDS`; all of them; and all of them with the
fixtures that they share made again by the mutant. Each mode is for the mutants that the one before left."""

QUICK_SECONDS = 0.2

PATIENCE = 10.0
"""Multiple of the time that the tests of a file take, after which a mutant counts as one that never ends."""


class Ledger:
    """A file with a line for each mutant and file of tests: the test that failed, or null.

    A line counts as long as the module and the file of tests are as they were.
    """

    def __init__(self, path):
        self.path, self.killers, self.seen = path, {}, set()
        for line in path.read_text().splitlines() if path.exists() else []:
            self._count(**json.loads(line))

    def _count(self, mutant, source, file, tests, mode, killer):
        if source != _hash(mutant.partition(":")[0]):
            return
        if killer:
            self.killers[mutant] = killer
        elif tests == _hash(file):
            self.seen |= {(mutant, file, one) for one in MODES[: MODES.index(mode) + 1]}

    def add(self, mutant, file, mode, killer):
        line = dict(mutant=mutant.name, source=_hash(mutant.module), file=file, tests=_hash(file), mode=mode,
                    killer=killer)  # fmt: skip
        self._count(**line)
        with self.path.open("a") as ledger:
            ledger.write(json.dumps(line) + "\n")


def _file_of(item):
    return str(item.path.relative_to(ROOT))


@functools.cache
def _hash(file):
    path = ROOT / file
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


class Mutating:
    """Runs each file of tests against the mutants of functions that it calls, until a test fails.

    Args:
        mutants: The mutants.
        tests: Files of tests in the order in which they are run; others follow.
        ledger: Path of the ledger. What is in it is not run again.
        until: Time after which no mutant is started, as `time.monotonic` gives it.
        jobs: Number of mutants that run at once.
        mode: One of `MODES`.
    """

    def __init__(self, mutants, tests, ledger, until, jobs, mode):
        self.mutants, self.tests, self.ledger, self.until = mutants, tests, ledger, until
        self.jobs, self.mode = jobs, mode
        self.failed, self.not_green, self.unfinished = None, [], False

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed = report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        torch.set_num_threads(1)  # a process that is forked does not have the other threads
        order = {file: i for i, file in enumerate(self.tests)}
        ordered = sorted(session.items, key=lambda item: order.get(_file_of(item), len(order)))
        for file, items in itertools.groupby(ordered, key=_file_of):
            if self._pending(file) and time.monotonic() < self.until:
                whole = Forked(functools.partial(self._run_file, file, list(items)), quiet=False).result()
                self.not_green += [] if whole else [file]
            self.unfinished |= bool(self._pending(file))
        return True

    def _pending(self, file):
        """Return the mutants that no test has noticed and this file of tests has not seen."""
        ledger = Ledger(self.ledger)
        return [mutant for mutant in self.mutants
                if mutant.name not in ledger.killers and (mutant.name, file, self.mode) not in ledger.seen]  # fmt: skip

    def _run_file(self, file, items):
        """Run the tests of a file without a mutant, and then with each. Return whether they pass without one."""
        start = time.monotonic()
        calls = (
            Forked(functools.partial(self._calls_of, items)).result() if self.mode == FRESH else self._calls_of(items)
        )
        patience = 5 + PATIENCE * (time.monotonic() - start)
        if None in calls:
            print(f"\n{items[calls.index(None)].nodeid} fails without a mutant")
            return False
        if self.mode != FRESH:  # a session of ONNX Runtime that a fixture has opened does not run in another process
            runs = Forked(functools.partial(self._calls_of, items)).result()
            calls = [call if run and (self.mode != QUICK or run[1] < QUICK_SECONDS) else None
                     for call, run in zip(calls, runs, strict=True)]  # fmt: skip
        running, ledger, kills = {}, Ledger(self.ledger), Counter()

        def wait(most):
            while len(running) > most:
                for mutant, process in list(running.items()):
                    if process.is_done(patience):
                        del running[mutant]
                        killer = process.result(otherwise=("it never ends, or crashes",))[0]
                        kills[killer] += 1
                        ledger.add(mutant, file, self.mode, killer)
                time.sleep(0.002)

        for mutant in self._pending(file):
            chosen = [
                item
                for item, called in zip(items, calls, strict=True)
                if called and (mutant.is_constant or f"{mutant.module}:{mutant.function}" in called[0])
            ]
            chosen.sort(key=lambda item: -kills[item.nodeid])  # what noticed others comes first
            if not chosen:
                ledger.add(mutant, file, self.mode, None)
                continue
            wait(self.jobs - 1)
            if time.monotonic() > self.until:
                break
            running[mutant] = Forked(functools.partial(self._first_failure, mutant, chosen))
        wait(0)
        return True

    def _first_failure(self, mutant, items):
        """Return the first of the tests that fails with a mutant, as a list with its id or None."""
        apply(mutant)
        return [next((item.nodeid for item in items if not self._passes(item)), None)]

    def _passes(self, item):
        """Run a test, and leave the fixtures of its file as they are."""
        self.failed = None
        item.ihook.pytest_runtest_protocol(item=item, nextitem=item.getparent(pytest.Module))
        return self.failed is None

    def _calls_of(self, items):
        """Run tests and return for each the functions of the mutated modules that it calls and its seconds.

        It is None for a test that fails.
        """
        places = {
            (str(ROOT / module), min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])):
                f"{module}:{name}"
            for module in {mutant.module for mutant in self.mutants}
            for name, node in places_of(ast.parse((ROOT / module).read_text())).items()
        }  # fmt: skip
        called = set()

        def note(frame, event, argument):
            if event == "call" and (place := places.get((frame.f_code.co_filename, frame.f_code.co_firstlineno))):
                called.add(place)

        found = []
        for item in items:
            called.clear()
            start = time.monotonic()
            sys.setprofile(note)
            passes = self._passes(item)
            sys.setprofile(None)
            found.append((sorted(called), time.monotonic() - start) if passes else None)
        return found


class Forked:
    """A process that is forked to call a function, whose result it hands back as JSON."""

    def __init__(self, function, quiet=True):
        self.start, self.status, self.answer = time.monotonic(), None, tempfile.TemporaryFile()  # noqa: SIM115
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        try:
            if quiet:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
            self.answer.write(json.dumps(function()).encode())
            self.answer.flush()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def is_done(self, patience):
        """Tell whether the process has ended, and end it if it took longer than `patience` seconds."""
        if self.status is None and time.monotonic() > self.start + patience:
            os.kill(self.pid, signal.SIGKILL)
            _, self.status = os.waitpid(self.pid, 0)
        elif self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def result(self, otherwise=None):
        """Wait for the process, and return the result of its function, or a `otherwise` if it has none."""
        if self.status is None:
            _, self.status = os.waitpid(self.pid, 0)
        with self.answer as answer:
            answer.seek(0)
            return json.loads(answer.read()) if self.status == 0 else otherwise


def apply(mutant):
    """Change a module that is imported: the code of a function, or a constant in every module that has it."""
    module = sys.modules[mutant.module.removesuffix(".py").replace("/", ".")]
    if mutant.is_constant:
        node = places_of(mutant.tree)[mutant.function]
        old, name = vars(module)[mutant.function], mutant.function
        new = eval(compile(ast.Expression(node.value), module.__file__, "eval"), vars(module))
        for other in [other for other in sys.modules.values() if vars(other).get(name) is old]:
            setattr(other, name, new)
        return
    code, owner = compile(mutant.tree, module.__file__, "exec"), module
    for name in mutant.function.split("."):
        code = next(part for part in code.co_consts if getattr(part, "co_name", None) == name)
        owner = vars(owner)[name]
    function = getattr(owner, "fget", None) or getattr(owner, "func", None) or getattr(owner, "__wrapped__", owner)
    function.__code__ = code
