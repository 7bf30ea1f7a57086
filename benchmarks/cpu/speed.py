"""Times the contenders of one SAE: the same inputs in turn, round after round, and the ratios of their times."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.cpu.contenders.names import (
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
from benchmarks.shared.agreement import check_agreement, row_stride
from benchmarks.shared.saes import make_workload
from benchmarks.shared.timing import fastest, quartiles, take_turns

Medians = dict[str, list[float]]


@dataclass(frozen=True)
class Effort:
    """How long the contenders are measured.

    Attributes:
        threads: Number of threads of each contender.
        seconds: Smallest duration of a line of the table.
        rounds: Smallest number of rounds of a line of the table.
        turn: Seconds for which a contender is measured before the next one's turn; at least one call.
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
        DisagreementError: A contender computes other values than the original.
    """
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        sparsity = write_case(folder, make_workload(d_in, d_sae, l0, frequencies), rows, names)
        workers = {name: stack.enter_context(Worker(name, folder, effort.threads)) for name in names}
        for worker in workers.values():
            worker.send("ready")
        for worker in workers.values():
            worker.receive()
        for count in rows:
            absent = bind(workers, count)
            present = {name: worker for name, worker in workers.items() if name not in absent}
            agreement = check(present, folder, count)
            yield {
                "d_in": d_in, "d_sae": d_sae, "frequencies": frequencies, "rows": count, "l0_wanted": l0,
                **sparsity[count], **summarize(interleave(present, effort)), "agreement": agreement, "absent": absent,
                "resident_bytes": sum(worker.memory for worker in workers.values()),
            }  # fmt: skip


def bind(workers: Mapping[str, Worker], rows: int) -> dict[str, str]:
    """Give every worker the inputs with this number of rows; return which of them cannot run, and why."""
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
    """Return the relative difference of each worker's results from the first one's.

    Raises:
        DisagreementError: A worker computes other values.
    """
    reference: dict[str, Tensor] | None = None
    differences = {}
    for name, worker in workers.items():
        target = folder / f"hooks-{name}.safetensors"
        worker.ask("write_hooks", rows=rows, stride=row_stride(rows), target=str(target))
        found = load_file(target)
        target.unlink()
        reference = found if reference is None else reference
        expected = {hook: reference[hook] for hook in CONTENDERS[name].hooks}
        differences[name] = float(f"{check_agreement(CONTENDERS[name].title, found, expected):.1e}")
    return differences


def interleave(workers: Mapping[str, Worker], effort: Effort) -> Medians:
    """Return the median milliseconds of each part, one per round; the workers take turns."""
    medians: Medians = {}
    for _, name in take_turns(workers, effort.rounds, effort.seconds):
        for part, times in workers[name].ask("measure", seconds=effort.turn).items():
            medians.setdefault(part, []).append(float(np.median(times)))
    return medians


def summarize(rounds: Medians) -> dict[str, object]:
    """Return the times and their ratios, each as median and quartiles over the rounds.

    The ratio of a round is the ratio of its medians.
    """
    times = {part: np.array(values) for part, values in rounds.items()}
    if PRODUCT in times:
        times[FLOOR] = times[PRODUCT] + times[COPY]
    medians = {part: float(np.median(values)) for part, values in times.items()}
    ratios = {
        f"over_{base}": {name: quartiles(values / times[base]) for name, values in times.items() if name != base}
        for base in (THIS, FLOOR, PRODUCT, MODEL_GRAPH)
        if base in times
    }
    return {"rounds": len(times[THIS]), "ms": {name: quartiles(values) for name, values in times.items()},
            "best_alternative": fastest(medians, ALTERNATIVES), **ratios}  # fmt: skip
