"""A short soak, and proof that its table counts every kind of failure."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from runtime import InputError, SAESession
from tests.soak import __main__ as program
from tests.soak.actions import actions_on
from tests.soak.calls import Subject
from tests.soak.kills import NAMES, Kills
from tests.soak.outcomes import DONE, HUNG, LEAKED, REFUSED, WRONG, Table, Wrong
from tests.soak.worker import GROWTH, LEAST, Memory, Worker
from tests.support.samples import ROOT, make_sae

KEPT = []


@pytest.mark.slow
def test_a_short_soak_finds_nothing():
    command = [sys.executable, "-m", "tests.soak", "--actions", "100", "--seed", "19", "--subjects", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed 19\n")
    assert not done.stderr  # the progress bar is for terminals


def refuse(rng, folder):
    raise InputError("no")


def raise_another_error(rng, folder):
    raise KeyError("oops")


def find_a_wrong_number(rng, folder):
    raise Wrong("differs by 1.00e-03")


def hang(rng, folder):
    time.sleep(1000)


def die(rng, folder):
    os.kill(os.getpid(), signal.SIGKILL)


def keep_a_descriptor(rng, folder):
    KEPT.append(os.open(ROOT, os.O_RDONLY))


def keep_a_thread(rng, folder):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def keep_a_file(rng, folder):
    (folder.parent / f"{folder.name}.left").touch()


def keep_memory(rng, folder):
    KEPT.append(b"x" * (4 * GROWTH // LEAST))


def keep_memory_at_first(rng, folder):
    if len(KEPT) < LEAST // 4:
        KEPT.append(b"x" * (4 * GROWTH // LEAST))


PLANTED = {
    refuse: (REFUSED, "no"),
    raise_another_error: (WRONG, "KeyError: 'oops' \\(test_soak.py:"),
    find_a_wrong_number: (WRONG, "differs by 1.00e-03"),
    hang: (HUNG, r"no answer after 2 s\n.*hang"),
    die: (WRONG, "the process ended with -9"),
    keep_a_descriptor: (LEAKED, f"descriptors {ROOT}"),
    keep_a_thread: (LEAKED, "threads "),
    keep_a_file: (LEAKED, "files .*left"),
    (lambda rng, folder: None): (DONE, ""),
}


@pytest.fixture
def worker():
    started = []

    def start(action, timeout=2.0):
        started.append(Worker({"planted": action}, 0, timeout))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.mark.parametrize("action", PLANTED, ids=lambda action: action.__name__)
def test_every_outcome_is_told_from_the_others(worker, action):
    outcome, detail = worker(action).run("planted", 1)
    assert outcome == PLANTED[action][0], detail
    assert re.search(PLANTED[action][1], detail, re.DOTALL), detail


def test_a_worker_goes_on_after_a_death(worker):
    def sometimes_die(rng, folder):
        if folder.name == "planted 2":
            die(rng, folder)

    one = worker(sometimes_die)
    assert [one.run("planted", number)[0] for number in range(4)] == [DONE, DONE, WRONG, DONE]


@pytest.mark.parametrize(("action", "leaks"), [(keep_memory, True), (keep_memory_at_first, False)])
def test_a_process_that_leaks_is_told_from_one_that_fills_a_cache(worker, action, leaks):
    one = worker(action)
    for number in range(LEAST + 4):
        outcome, detail = one.run("planted", number)
        assert outcome == DONE, detail
        assert number >= LEAST or not one.leaked()  # there are too few samples
        one.measure_memory()
    assert (one.leaked() > GROWTH) == leaks
    os.kill(one._process, signal.SIGKILL)
    assert one.run("planted", 100)[0] == WRONG
    assert one.run("planted", 101)[0] == DONE
    assert (one.leaked() > GROWTH) == leaks  # that of the process before


def leaked(sizes):
    """Return what is found in samples, which are given in GROWTH."""
    memory = Memory()
    memory.samples = [int(size * GROWTH) for size in sizes]
    return memory.leaked() / GROWTH


SAMPLES = 120  # ten minutes


@pytest.mark.parametrize(
    "size",
    {
        "up and down": lambda i: 3 + i % 3,
        "slow waves": lambda i: 3 + math.sin(i / 10) / 4,
        "a cache": lambda i: min(i / 50, 1.0) * 5,
        "a cache that fills ever more slowly": lambda i: 5 * (1 - math.exp(-i / 15)),
        "pools of an allocator": lambda i: math.log1p(i / 2) / 4,
        "too little to tell from noise": lambda i: 0.8 * i / SAMPLES,
        **{f"a step at {at}": lambda i, at=at: 2.0 * (i >= at) for at in range(5, SAMPLES, 10)},
    }.items(),
    ids=lambda item: item[0],
)
def test_memory_that_does_not_go_on_growing_is_no_leak(size):
    assert not leaked(map(size[1], range(SAMPLES)))


@pytest.mark.parametrize("noise", [0, 0.1])
@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("samples", [LEAST, SAMPLES, 1000])
def test_memory_that_goes_on_growing_is_a_leak(samples, first, noise):
    rng = random.Random(0)
    sizes = [
        first * (1 - math.exp(-10 * i / samples)) + 1.5 * i / samples + rng.uniform(-noise, noise)
        for i in range(samples)
    ]
    assert leaked(sizes) == pytest.approx(0.75, abs=0.2)


def test_a_session_that_computes_something_else_is_wrong(exported, monkeypatch, worker):
    sae, path = exported
    encode = SAESession.encode
    monkeypatch.setattr(SAESession, "encode", lambda self, x: encode(self, x) * 1.001)
    outcomes = set()
    one = worker(actions_on([Subject(sae, path)])["calls"], timeout=30.0)
    for number in range(12):
        outcome, detail = one.run("planted", number)
        outcomes.add(outcome)
        assert outcome == DONE or "encode differs by" in detail
    assert outcomes == {DONE, WRONG}


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    return Kills(make_sae(10), make_sae(10, seed=1), tmp_path_factory.mktemp("kills"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_command_loses_nothing(kills, name):
    for seed in range(3):
        kills.kill(name, random.Random(seed))
    assert kills.counts[name].kills == 3
    assert (kills.counts[name].lost, kills.counts[name].leftovers) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["lost", "left", "hung", "failed"])
def test_what_a_kill_loses_or_leaves_is_noticed(kills, monkeypatch, table, fault):
    command, name = Kills._command, NAMES[2]

    def plant(self, name, path, fresh):
        first = path.parent / "first"
        if (path.parent.parent / "planted").exists():
            if fault == "hung":
                time.sleep(1000)
            if fault == "failed":
                raise OSError
            return command(self, name, path, fresh)
        (path.parent.parent / "planted").touch()
        if fault == "lost":
            path.write_bytes(b"half")
        if fault == "left":
            first.touch()
        time.sleep(1000)
        return None

    (kills.folder / "planted").unlink(missing_ok=True)
    monkeypatch.setattr(Kills, "_command", plant)
    monkeypatch.setattr("tests.soak.kills.TIMEOUT", 3)
    monkeypatch.setitem(kills._durations, name, 0.5)
    monkeypatch.setattr(random.Random, "uniform", lambda self, low, high: high)
    program.kill(kills, name, 1, 0, table)
    assert table.counts[name][{"left": LEAKED, "hung": HUNG}.get(fault, WRONG)] == 1


@pytest.fixture
def table():
    return Table()


@pytest.mark.slow
@pytest.mark.parametrize(("action", "code"), [(refuse, 0), (keep_a_descriptor, 1), (raise_another_error, 1)])
def test_the_exit_code_says_whether_something_failed(monkeypatch, capsys, action, code):
    monkeypatch.setattr(program, "actions_on", lambda *args: {"planted": action})
    monkeypatch.setattr(program, "Kills", lambda *args: "none were killed")
    assert program.main(["--actions", "3", "--seed", "7", "--subjects", "2"]) == code
    printed = capsys.readouterr().out
    assert printed.startswith("seed 7\n")
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("planted ")]
    assert row == ["planted", *("03000" if action is refuse else "00003" if action is keep_a_descriptor else "00300")]


@pytest.mark.slow
@pytest.mark.parametrize(("action", "code"), [(keep_memory, 1), (keep_memory_at_first, 0)])
def test_the_exit_code_says_whether_memory_leaks(monkeypatch, capsys, action, code):
    monkeypatch.setattr(program, "actions_on", lambda *args: {"planted": action})
    monkeypatch.setattr(program, "Kills", lambda *args: "none were killed")
    monkeypatch.setattr(program, "kill", lambda *args: None)
    monkeypatch.setattr(program, "MEMORY_EVERY", 1)
    assert program.main(["--actions", str(LEAST + 10), "--seed", "7", "--subjects", "2"]) == code
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(f"{program.MEMORY} ")]
    assert row[-5:] == list("00001" if code else "10000")


def test_the_same_seed_gives_the_same_actions(tmp_path, monkeypatch):
    def drawn(seed):
        seen = []

        class Recorder:
            def run(self, kind, number):
                seen.append((kind, number))
                return DONE, ""

            def measure_memory(self):
                pass

            def leaked(self):
                return 0

        monkeypatch.setattr(program, "kill", lambda kills, name, number, *args: seen.append((name, number)))
        program.soak(Recorder(), ["a", "b", "c"], None, 60, 100, seed, Table())
        return seen

    assert drawn(1) == drawn(1) != drawn(2)
    assert {"a", "b", "c"} < {kind for kind, _ in drawn(1)} <= {"a", "b", "c", *NAMES}
    assert len(drawn(1)) == 100
