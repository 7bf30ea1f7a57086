"""The runner of mutants: what it changes, and that it tells a mutant that tests notice from one that they do not."""

import json
import subprocess
import sys

import numpy as np
import pytest

from runtime.parity import report, running
from tests.mutation.mutants import mutants_of
from tests.mutation.running import ROOT, Forked, Ledger, apply
from tests.mutation.table import table
from tests.support.references import make_reference

SOURCE = '''
"""A module."""
LIMIT = 8.0
NAME = "x"


class Kind:
    """A class."""

    size: int = 3

    @property
    def wide(self) -> bool:
        """Tell something."""
        return self.size > 2 and not self.flat


def total(rows, least=1):
    if rows:
        raise ValueError("no")
    rows[0] = max(rows, key=abs)
    return rows.sum(axis=0)
'''


def test_every_kind_of_change_is_made_once():
    found = [f"{mutant.line} {mutant.function}: {mutant.change}" for mutant in mutants_of("module.py", SOURCE)]
    assert found == [
        "3 LIMIT: 8.0 -> 16.0",
        "3 LIMIT: 8.0 -> 4.0",
        "15 Kind.wide: self.size > 2 and (not self.flat) -> self.size > 2 or not self.flat",
        "15 Kind.wide: self.size > 2 and (not self.flat) -> not self.flat",
        "15 Kind.wide: self.size > 2 and (not self.flat) -> self.size > 2",
        "15 Kind.wide: self.size > 2 -> self.size >= 2",
        "15 Kind.wide: self.size > 2 -> self.size < 2",
        "15 Kind.wide: 2 -> 3",
        "15 Kind.wide: not self.flat -> self.flat",
        "19 total: if rows: -> if True:",
        "19 total: if rows: -> if False:",
        "20 total: raise ValueError('no') -> pass",
        "21 total: rows[0] = max(rows, key=abs) -> pass",
        "21 total: 0 -> 1",
        "21 total: max(rows, key=abs) -> max(rows)",
        "21 total: max(rows, key=abs) -> min(rows, key=abs)",
        "22 total: rows.sum(axis=0) -> rows.sum()",
        "22 total: 0 -> 1 (place 2)",
    ]


def the_mutant(module, function, change):
    found = mutants_of(module, (ROOT / module).read_text())
    return next(mutant for mutant in found if (mutant.function, mutant.change) == (function, change))


@pytest.mark.parametrize(("module", "function", "change", "observe", "before", "after"), [
    ("report", "count", "n != 1 -> n == 1", lambda: report.count(2, "token"), "2 tokens", "2 token"),
    ("report", "Verdict.used", "0.0 -> 1.0", lambda: report.Verdict("g", "h", None, None).used, 0, 1),
    ("reference", "ALLOWED_CHANCE_FLIPS", "8 -> 16",
     lambda: make_reference([[1.0]], flips=np.array([1])).max_flipped, 12, 20),
    ("running", "KeptGraphs.make_room", "self._kept[place] = graph -> pass",
     lambda: (kept := running.KeptGraphs(print), kept.make_room("model"), kept._kept)[2], {"": "model"}, {}),
    ("reference", "Reference.budgets", "{hook: self.budget(hook) for hook in self.truth} if self.recorded is None else "
     "self.recorded -> self.recorded", lambda: len(make_reference([[1.0]], budget=None).budgets or ()), 5, 0),
])  # fmt: skip
def test_a_change_is_made_in_another_process_only(module, function, change, observe, before, after):
    mutant = the_mutant(f"runtime/parity/{module}.py", function, change)
    assert Forked(lambda: (apply(mutant), observe())[1]).result() == after
    assert observe() == before


def test_a_process_that_crashes_or_never_ends_has_no_result():
    assert Forked(lambda: 1 / 0).result("none") == "none"
    endless = Forked(lambda: [None for _ in iter(int, 1)])
    while not endless.is_done(patience=0.05):
        pass
    assert endless.result("none") == "none"


def test_what_is_recorded_counts_until_a_file_changes(tmp_path):
    mutant, other = mutants_of("runtime/parity/versions.py", (ROOT / "runtime/parity/versions.py").read_text())[:2]
    path, file = tmp_path / "ledger", "tests/runtime/parity/test_report.py"
    ledger = Ledger(path)
    ledger.add(mutant, file, "quick", "a test")
    ledger.add(other, file, "warm", None)
    again = Ledger(path)
    assert again.killers == {mutant.name: "a test"}
    assert again.seen == {(other.name, file, "quick"), (other.name, file, "warm")}
    path.write_text(path.read_text().replace('"source": "', '"source": "0'))
    assert not Ledger(path).killers
    assert not Ledger(path).seen


@pytest.mark.slow
def test_mutants_that_tests_notice_are_told_from_others(tmp_path):
    def run(*tests):
        command = [sys.executable, "-m", "tests.mutation", "runtime/parity/versions.py",
                   "--ledger", tmp_path / "ledger",
                   "--tests", *(f"tests/runtime/parity/test_{name}.py" for name in tests)]  # fmt: skip
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    blind = run("running")
    assert blind.returncode == 1
    n = len(mutants_of("runtime/parity/versions.py", (ROOT / "runtime/parity/versions.py").read_text()))
    assert f"| all | {n} | 0 | 0 | {n} |" in blind.stdout
    assert "versions.py:31: differing_versions: here.get(package, version) != version -> " in blind.stdout
    seeing = run("report")
    assert seeing.returncode == 0, seeing.stdout + seeing.stderr
    assert f"| all | {n} | {n} | 0 | 0 |" in seeing.stdout
    killers = {json.loads(line)["killer"] for line in (tmp_path / "ledger").read_text().splitlines()} - {None}
    assert killers == {"tests/runtime/parity/test_report.py::test_versions_that_differ_are_named"}


def test_the_table_counts_each_module_and_all():
    line = {"mutants": 9, "equivalent": 2, "alive": ["x"]}
    assert table({"modules": {"a.py": line, "b.py": {**line, "alive": []}}}).splitlines()[2:] == [
        "| `a.py` | 9 | 6 | 2 | 1 |", "| `b.py` | 9 | 7 | 2 | 0 |", "| all | 18 | 13 | 4 | 1 |",
    ]  # fmt: skip
