"""`make soak`: hours of use, abuse and death in minutes, and a table of what came of it.

Each action is chosen at random and has a timeout. The table counts, by kind of action:

    done      it did what it should, and the numbers are those of the PyTorch original
    refused   it was refused with an error of `runtime.errors`
    wrong     a number differs, a file is lost, another exception came out, or the process died
    hung      it was not done in time
    leaked    the process kept a descriptor, a thread, files or memory, or a killed command left files

The exit code is 1 if any of the last three is not zero. The seed is printed; with the same seed, the same actions come
in the same order.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its thread can hang a forked process
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not outlive a fork

import pytest
import torch
from tqdm import tqdm

from saeexport import export
from saeexport.graphs import write
from tests.soak.actions import actions_on
from tests.soak.calls import Subject
from tests.soak.kills import NAMES, Kills
from tests.soak.outcomes import DONE, FAILURES, HUNG, LEAKED, WRONG, Leaked, Table, Wrong
from tests.soak.worker import Worker
from tests.support.tracing import CachedTrace, remember_operators
from tests.support.zoo import sae_of

SUBJECTS = (("standard", {}), ("standard", {"use_error_term": True}), ("jumprelu", {}), ("gated", {}), ("topk", {}),
            ("transcoder", {"use_error_term": True}))  # fmt: skip
TIMEOUT = 60.0
KILLS_EVERY = 25
"""Number of actions for each kill, which costs as much as they do together."""
MEMORY_EVERY = 20
MEMORY = "memory of the process"


def main(arguments=None):
    """Run a soak, print its table, and return the exit code."""
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long (default: %(default)g)")
    parser.add_argument("--actions", type=int, metavar="N", help="stop after N actions, if the time is not over before")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of every choice (default: a new one)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, metavar="S",
                        help="seconds that an action may take (default: %(default)g)")  # fmt: skip
    parser.add_argument("--kills", type=int, metavar="N", help="only kill each command N times, however long it takes")
    parser.add_argument("--subjects", type=int, default=len(SUBJECTS), metavar="N",
                        help="number of SAEs, at least 2 (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, warm():
        saes = [sae_of(name, **more) for name, more in SUBJECTS[: options.subjects]]
        table = Table()
        kills = Kills(saes[0], saes[1], Path(folder))
        if options.kills:
            kill_each(kills, options.kills, seed, table)
        else:
            subjects = [Subject(sae, export(sae, Path(folder) / f"sae{i}").path) for i, sae in enumerate(saes)]
            worker = Worker(actions_on(subjects, Path(folder) / "checkpoints"), seed, options.timeout)
            with contextlib.closing(worker):
                soak(worker, list(worker.actions), kills, 60 * options.minutes, options.actions, seed, table)
    for failure in table.failures:
        print(failure)
    print(f"\n{kills}\n\n{table}")
    return 1 if table.total(*FAILURES) else 0


@contextlib.contextmanager
def warm():
    """Let exports reuse traces, and PyTorch and tqdm start no threads, so that a fork can do what a process can."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0
    with pytest.MonkeyPatch.context() as patch:
        remember_operators(patch)
        patch.setattr(write, "trace", CachedTrace())
        yield


def soak(worker, kinds, kills, seconds, most, seed, table):
    """Carry out random actions until the time is over, or `most` of them."""
    rng, end, number = random.Random(seed), time.monotonic() + seconds, 0
    with progress(seconds) as bar:
        while (left := end - time.monotonic()) > 0 and number != most:
            number += 1
            bar.n = round(seconds - left)
            bar.set_postfix_str(f"{number:,} actions, {table.total(*FAILURES)} failures")
            if number % KILLS_EVERY == 0:
                kill(kills, rng.choice(NAMES), number, seed, table)
            else:
                kind = rng.choice(kinds)
                table.add(kind, *worker.run(kind, number))
            if number % MEMORY_EVERY == 0:
                worker.measure_memory()
    grown = worker.leaked()  # at the end, because only what goes on growing is a leak
    table.add(MEMORY, LEAKED if grown else DONE, f"{MEMORY} grew by {grown >> 20} MiB in the second half")


def kill_each(kills, count, seed, table):
    """Kill each command a number of times."""
    with progress(count * len(NAMES)) as bar:
        for number in range(count):
            for name in NAMES:
                kill(kills, name, number, seed, table)
                bar.update()


def kill(kills, name, number, seed, table):
    try:
        kills.kill(name, random.Random(f"{seed} {name} {number}"))
    except Wrong as error:
        table.add(name, WRONG, f"{number}: {error}")
    except Leaked as error:
        table.add(name, LEAKED, f"{number}: {error}")
    except TimeoutError as error:
        table.add(name, HUNG, f"{number}: {error}")
    else:
        table.add(name, DONE)


def progress(total):
    """Return a progress bar, which is shown on a terminal only."""
    return tqdm(total=round(total), disable=None, bar_format="{desc}{bar} {n}/{total} {postfix}")


if __name__ == "__main__":
    sys.exit(main())
