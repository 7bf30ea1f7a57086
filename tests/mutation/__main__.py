"""Command line: `python -m tests.mutation` runs the mutants that were not run before, and lists those left alive."""

import argparse
import random
import sys
import time
from pathlib import Path

import pytest

from benchmarks.shared.machine import available_cores, describe_machine, write_results

from .equivalent import EQUIVALENT
from .mutants import Mutant, mutants_of
from .running import MODES, QUICK, ROOT, Ledger, Mutating
from .table import RESULTS, table

MODULES = [
    "runtime/artifact/budgets.py",
    *(f"runtime/parity/{name}.py" for name in (
        "decisions", "judge", "reference", "golden", "proof", "outputs", "running", "verify", "report", "fidelity",
        "versions")),
    *(f"saeexport/proof/{name}.py" for name in ("decisions", "truth")),
]  # fmt: skip

TESTS = [
    *(f"tests/runtime/parity/test_{name}.py" for name in (
        "reference", "following", "proof", "report", "running", "fidelity", "golden_file", "verify", "parity",
        "decisions", "columns", "golden", "outputs", "unloaded", "decisions_of_artifacts", "gates", "plain_comparison",
        "tf32")),
    *(f"tests/saeexport/proof/test_{name}.py" for name in (
        "following", "typical_intervention", "left_out", "truth", "activations", "half_gates", "execution",
        "against_pytorch")),
    "tests/runtime/commands/test_reports.py", "tests/saeexport/graphs/test_int8.py",
]  # fmt: skip
"""Files of tests, those first that are fast and notice most."""

LEDGER = ROOT / "build" / "mutants.jsonl"


def main() -> int:
    """Run mutants until the time is over. Return 0 if each one has been run and is noticed, or is equivalent."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", help="files whose code is changed; all of the proof if none is given")
    parser.add_argument("--mode", choices=MODES, default=QUICK, help="the quick tests, all, or all with new fixtures")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time; the next run goes on")
    parser.add_argument("--jobs", type=int, default=available_cores(), help="number of mutants that run at once")
    parser.add_argument("--sample", type=int, help="number of mutants of each module, drawn at random by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="*", default=TESTS, help="files of tests")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="file that remembers what was run")
    parser.add_argument("--list", action="store_true", help="run nothing, only list what is left alive")
    parser.add_argument("--record", action="store_true", help=f"write the numbers to {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    mutants = [mutant for module in arguments.modules or MODULES for mutant in drawn(module, arguments)]
    mutants.sort(key=lambda mutant: mutant.name in EQUIVALENT)  # those that are left over take longest
    arguments.ledger.parent.mkdir(exist_ok=True)
    until = time.monotonic() + 60 * arguments.minutes
    plugin = Mutating(mutants, arguments.tests, arguments.ledger, until, arguments.jobs, arguments.mode)
    if not arguments.list:
        options = ["-q", "-p", "no:cacheprovider", "-o", "tmp_path_retention_policy=failed"]
        pytest.main([*options, *(str(ROOT / tests) for tests in arguments.tests)], plugins=[plugin])
    killers = Ledger(arguments.ledger).killers
    alive = [mutant for mutant in mutants if mutant.name not in killers and mutant.name not in EQUIVALENT]
    result = summary(mutants, killers, alive)
    for mutant in alive:
        print(f"{mutant.module}:{mutant.line}: {mutant.function}: {mutant.change}")
    for name in EQUIVALENT.keys() & killers.keys():
        print(f"{name} is said to be equivalent, and {killers[name]} fails with it")
    print(table(result))
    if plugin.unfinished:
        print("Not all of them were run. The next run goes on.")
    if arguments.record:
        write_results(RESULTS, result)
    return bool(alive or plugin.not_green or plugin.unfinished)


def drawn(module: str, arguments: argparse.Namespace) -> list[Mutant]:
    """Return the mutants of a module, or a sample of them."""
    found = mutants_of(module, (ROOT / module).read_text())
    if arguments.sample is None or arguments.sample > len(found):
        return found
    return random.Random(arguments.seed).sample(found, arguments.sample)


def summary(mutants: list[Mutant], killers: dict[str, str], alive: list[Mutant]) -> dict[str, object]:
    """Return the numbers of each module and the names of what is left alive, for the file of results."""
    modules = {}
    for module in dict.fromkeys(mutant.module for mutant in mutants):
        own = [mutant.name for mutant in mutants if mutant.module == module]
        modules[module] = {
            "mutants": len(own),
            "equivalent": sum(name in EQUIVALENT and name not in killers for name in own),
            "alive": [mutant.name for mutant in alive if mutant.module == module],
        }
    return {**describe_machine(["numpy", "torch", "onnxruntime"]), "modules": modules}


if __name__ == "__main__":
    sys.exit(main())
