"""The contenders side by side: the same inputs in turn, round after round, and the ratios of their times."""

import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from benchmarks.cpu.contenders import (
    ALTERNATIVES,
    CONTENDERS,
    COPY,
    FLOOR,
    MODEL_GRAPH,
    PRODUCT,
    THIS,
    UnavailableError,
)
from benchmarks.cpu.prepare import write_case
from benchmarks.cpu.workers import Worker
from benchmarks.shared.agreement import agree
from benchmarks.shared.machine import quartiles
from benchmarks.shared.saes import subject_of
from runtime.arrays.tensor import Array

CHECKED_ROWS = 512  # of the results of a call that are compared
Medians = dict[str, list[float]]


@dataclass(frozen=True)
class Effort:
    """How long it is measured.

    Attributes:
        threads: of each contender.
        seconds: of a line of the table, at least.
        rounds: of a line of the table, at least.
        turn: seconds that are measured of a contender before the next one's turn, at least one call.
    """

    threads: int
    seconds: float
    rounds: int
    turn: float = 0.05


def measure_case(
    d_in: int, d_sae: int, l0: float, frequencies: str, rows: Sequence[int], names: Sequence[str], effort: Effort
) -> Iterator[dict[str, object]]:
    """Yield a line of results for each number of rows of one SAE, computed by the contenders `names`.

    Raises:
        DisagreementError: a contender computes something else than the original.
    """
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        folder = Path(temporary)
        facts = write_case(folder, subject_of(d_in, d_sae, l0, frequencies), rows, names)
        workers = {name: running.enter_context(Worker(name, folder, effort.threads)) for name in names}
        for worker in workers.values():
            worker.send("ready")
        for worker in workers.values():
            worker.receive()
        for count in rows:
            absent = bind(workers, count)
            present = {name: worker for name, worker in workers.items() if name not in absent}
            agreement = check(present, folder, count)
            rounds = interleave(present, effort)
            yield {
                "d_in": d_in, "d_sae": d_sae, "frequencies": frequencies, "rows": count, "l0_wanted": l0,
                **facts[count], **summary(rounds), "agreement": agreement, "absent": absent,
                "resident_bytes": sum(worker.resident for worker in workers.values()),
            }  # fmt: skip


def bind(workers: Mapping[str, Worker], rows: int) -> dict[str, str]:
    """Give every worker the inputs with so many rows; return who cannot run, and why."""
    absent = {}
    for worker in workers.values():
        worker.send("bind", rows=rows)
    for name, worker in workers.items():
        try:
            worker.receive()
        except UnavailableError as reason:
            absent[name] = str(reason)
    return absent


def check(workers: Mapping[str, Worker], folder: Path, rows: int) -> dict[str, float]:
    """Compare the results of all workers with the first one's, and return by how much each differs.

    Raises:
        DisagreementError: one computes something else.
    """
    reference: dict[str, Array] | None = None
    differences = {}
    for name, worker in workers.items():
        target = folder / f"outputs-{name}.safetensors"
        worker.ask("outputs", rows=rows, every=-(-rows // CHECKED_ROWS), target=str(target))
        outputs = load_file(target)
        target.unlink()
        reference = outputs if reference is None else reference
        difference = agree(CONTENDERS[name].title, outputs, reference, CONTENDERS[name].hooks)
        differences[name] = float(f"{difference:.1e}")
    return differences


def interleave(workers: Mapping[str, Worker], effort: Effort) -> Medians:
    """Return the medians of each part in milliseconds, by round: every round asks all workers, in random order."""
    medians: Medians = {}
    order, end, rounds = np.random.default_rng(0), time.perf_counter() + effort.seconds, 0
    while rounds < effort.rounds or time.perf_counter() < end:
        for name in order.permutation(list(workers)):
            for part, times in workers[str(name)].ask("turn", seconds=effort.turn).items():
                medians.setdefault(part, []).append(float(np.median(times)))
        rounds += 1
    return medians


def summary(rounds: Medians) -> dict[str, object]:
    """Return the times and their ratios, each as median and quartiles over the rounds.

    The ratio of a round is that of the round's medians.
    """
    times = {part: np.array(values) for part, values in rounds.items()}
    if PRODUCT in times:
        times[FLOOR] = times[PRODUCT] + times[COPY]
    best = fastest(times, ALTERNATIVES)
    over = {
        f"over_{base}": {name: quartiles(values / times[base]) for name, values in times.items() if name != base}
        for base in (THIS, FLOOR, PRODUCT, MODEL_GRAPH)
        if base in times
    }
    return {"rounds": len(times[THIS]), "ms": {name: quartiles(values) for name, values in times.items()},
            "best_alternative": best, **over}  # fmt: skip


def fastest(times: Mapping[str, Array], names: Collection[str]) -> str | None:
    """Return which of `names` has the smallest median, or None if none was measured."""
    measured = [name for name in names if name in times]
    return min(measured, key=lambda name: float(np.median(times[name])), default=None)
