"""Command line: `python -m tests.mutation` runs the mutants that were not run before, and writes how many are noticed."""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import pytest

from .mutants import mutants_of
from .running import MODES, QUICK, ROOT, Ledger, Mutating

MODULES = [
    "runtime/artifact/budgets.py",
    *(f"runtime/parity/{name}.py" for name in (
        "decisions", "judge", "reference", "golden", "proof", "outputs", "running", "verify", "report", "fidelity",
        "versions")),
    *(f"saeexport/proof/{name}.py" for name in ("decisions", "truth", "prove", "verify", "activations", "evaluator")),
]  # fmt: skip

TESTS = [
    *(f"tests/runtime/parity/test_{name}.py" for name in (
        "reference", "following", "parity", "decisions", "columns", "golden", "outputs", "decisions_of_artifacts", "gates")),
    "tests/saeexport/proof",
    "tests/runtime/parity",
]  # fmt: skip
"""Files of tests, those first that are fast and notice most."""

LEDGER = ROOT / "build" / "mutants.jsonl"
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"


def main() -> int:
    """Run mutants until the time is over, and return 0 if every one has been run and is noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", default=MODULES, help="files whose code is changed")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time; the next run goes on")
    parser.add_argument("--jobs", type=int, default=1, help="number of mutants that run at once")
    parser.add_argument("--sample", type=int, help="number of mutants of each module, drawn at random by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode", choices=MODES, default=QUICK, help="tests to run: the quick ones first, then the others")
    parser.add_argument("--list", action="store_true", help="only list the mutants that no test has noticed")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="files of tests")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    mutants = []
    for module in arguments.modules:
        found = mutants_of(module, (ROOT / module).read_text())
        draws = random.Random(arguments.seed)
        mutants += found if arguments.sample is None else draws.sample(found, min(arguments.sample, len(found)))
    LEDGER.parent.mkdir(exist_ok=True)
    plugin = Mutating(mutants, arguments.tests, LEDGER, until, arguments.jobs, arguments.mode)
    if not arguments.list:
        options = ["-p", "no:cacheprovider", "-q", "-o", "tmp_path_retention_policy=failed"]
        pytest.main([*options, *(str(ROOT / tests) for tests in arguments.tests)], plugins=[plugin])
    ledger = Ledger(LEDGER)
    alive = [mutant for mutant in mutants if mutant.name not in ledger.killers]
    for mutant in alive:
        print(f"{mutant.module}:{mutant.line}: {mutant.function}: {mutant.change}")
    print(f"{len(mutants)} mutants, {len(mutants) - len(alive)} noticed, {len(alive)} not"
          f"{' (not all were run)' if plugin.unfinished else ''}")
    return bool(alive or plugin.not_green)


if __name__ == "__main__":
    sys.exit(main())
