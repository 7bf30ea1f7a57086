"""Kills an export and a run at random moments, and checks that nothing is lost, and nothing left after the next one."""

import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runtime.commands.main import main as runtime
from runtime.tables import format_table
from saeexport import export
from tests.soak.outcomes import Leaked, Wrong
from tests.soak.worker import carry_out, end_of, start
from tests.support.samples import contents, normal

TIMEOUT = 120
NAMES = ("killed export", "killed export --overwrite", "killed run")


@dataclass
class Counts:
    """What was found after the kills of one command.

    Attributes:
        kills: Number of kills.
        before: Kills after which the path held what it held before, or nothing.
        after: Kills after which the path held the result.
        left: Kills that left a partial file or a staging folder, which the next command then removed.
        lost: Kills after which the path held something else.
        leftovers: Kills that left something that was there after the next command, too.
    """

    kills: int = 0
    before: int = 0
    after: int = 0
    left: int = 0
    lost: int = 0
    leftovers: int = 0


@dataclass
class Kills:
    """The commands that are killed, each with the duration that it was measured to have.

    Attributes:
        old: SAE whose artifact is replaced.
        new: SAE that is exported.
        folder: Folder for files.
        counts: What was found so far, by command.
    """

    old: object
    new: object
    folder: Path
    counts: dict[str, Counts] = field(default_factory=dict)

    def __post_init__(self):
        self._old, self._new = self.folder / "old", self.folder / "new"
        export(self.old, self._old)
        export(self.new, self._new)
        np.save(self.folder / "x.npy", normal(2000, self.new.cfg.d_in))
        self._run(self.folder / "reference.safetensors")
        self._durations = {name: self._measure(name) for name in NAMES}

    def kill(self, name, rng):
        """Kill a command at a random moment, check what it left, and check that the next command clears up.

        Raises:
            Wrong: Something is lost, or the next command fails.
            Leaked: Something is left after the next command.
            TimeoutError: The next command hangs.
        """
        counts = self.counts.setdefault(name, Counts())
        counts.kills += 1
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            path = Path(temporary) / "result"
            fresh = self._prepare(name, path, rng)
            process = start(lambda: self._command(name, path, fresh))
            time.sleep(rng.uniform(0, 1.1 * self._durations[name]))
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            self._check(name, path, fresh, counts)
            counts.left += {entry.name for entry in path.parent.iterdir()} > {path.name} or (
                not path.exists() and any(path.parent.iterdir())
            )
            began = time.monotonic()
            code = carry_out(lambda: self._command(name, path, fresh=False), TIMEOUT)
            self._durations[name] = time.monotonic() - began  # the machine may have other work by now
            if code is None:
                raise TimeoutError(f"{name}: the next command is not done after {TIMEOUT} s")
            if code or self._content(path) != self._content(self._result(name)):
                counts.lost += 1
                raise Wrong(f"{name}: the next command ends with {code}")
            if left := sorted(entry.name for entry in path.parent.iterdir() if entry != path):
                counts.leftovers += 1
                raise Leaked(f"{name}: {', '.join(left)} is there after the next command")

    def _prepare(self, name, path, rng):
        """Put what is to be replaced at the path, and return whether there is nothing to be replaced."""
        if name == NAMES[0] or (name == NAMES[2] and rng.random() < 0.5):
            return True
        if name == NAMES[1]:
            shutil.copytree(self._old, path)
        else:
            path.write_bytes(b"old")
        return False

    def _command(self, name, path, fresh):
        if name == NAMES[2]:
            self._run(path, *(() if fresh else ("--overwrite",)))
        else:
            export(self.new, path, overwrite=not fresh)

    def _run(self, path, *options):
        arguments = [str(self._new), str(self.folder / "x.npy"), str(path), "--device", "cpu", "--batch", "100"]
        if code := runtime(["run", *arguments, *options]):
            raise Wrong(f"run ends with {code}")

    def _measure(self, name):
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            began = time.monotonic()
            code = end_of(start(lambda: self._command(name, Path(temporary) / "result", True)), TIMEOUT)
            if code != 0:
                raise Wrong(f"{name} ends with {code}")
            return time.monotonic() - began

    def _check(self, name, path, fresh, counts):
        """Check that the path holds all of what was there before, or all of the result."""
        found = self._content(path)
        old = None if fresh else self._content(self._old) if name == NAMES[1] else b"old"
        if found == old:
            counts.before += 1
        elif found == self._content(self._result(name)):
            counts.after += 1
        else:
            counts.lost += 1
            raise Wrong(f"{name}: the path holds neither the old nor the new result")

    def _result(self, name):
        return self.folder / "reference.safetensors" if name == NAMES[2] else self._new

    @staticmethod
    def _content(path):
        if not path.exists():
            return None
        return contents(path) if path.is_dir() else path.read_bytes()

    def __str__(self):
        header = ("killed at a random moment", "kills", "old", "new", "left files", "lost", "left after the next")
        rows = [
            (name, *(str(value) for value in (c.kills, c.before, c.after, c.left, c.lost, c.leftovers)))
            for name, c in self.counts.items()
        ]
        return format_table(rows, header=header, right={1, 2, 3, 4, 5, 6})
