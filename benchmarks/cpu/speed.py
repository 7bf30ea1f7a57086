"""Times the contenders of one SAE: the same inputs in turn, round after round, and the ratios of their times."""

import tempfile
import time
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
    PRODUCTS,
    THIS,
    UnavailableError,
)
from benchmarks.cpu.contenders.uses import USES
from benchmarks.cpu.prepare import write_case
from benchmarks.cpu.workers import Worker
from benchmarks.shared.agreement import check_agreement, row_stride
from benchmarks.shared.saes import make_workload
from benchmarks.shared.timing import fastest, quartiles, take_turns
from runtime.artifact.names import HOOK_ACTS_POST, INDICES, VALUES

Medians = dict[str, list[float]]


@dataclass(frozen=True)
class Effort:
    """How long the contenders are measured.

    Attributes:
        threads: Number of threads of each contender.
        seconds: Smallest duration of a line of the table.
        rounds: Smallest number of rounds of a line of the table.
        turn: Seconds for which a contender is measured before the next one's turn; at least one call.
        rest: Seconds before a turn in which the threads of the contender before it go to sleep. Those of OpenMP,
            OpenBLAS and ONNX Runtime look for work for up to tens of milliseconds, on cores that the next one needs.
    """

    threads: int
    seconds: float
    rounds: int
    turn: float = 0.05
    rest: float = 0.05


def measure_case(
    d_in: int,
    d_sae: int,
    l0: float,
    frequencies: str,
    rows: Sequence[int],
    names: Mapping[str, Sequence[str]],
    effort: Effort,
) -> Iterator[dict[str, object]]:
    """Yield a line of results for each use and number of rows of one SAE.

    Args:
        d_in: Width of the activations.
        d_sae: Number of features.
        l0: Mean number of features that are on.
        frequencies: How the SAE is made, see `make_workload`.
        rows: Numbers of rows, those that a use is not measured with included.
        names: The contenders by use.
        effort: How long they are measured.

    Raises:
        DisagreementError: A contender computes other values than the original.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sparsity = write_case(folder, make_workload(d_in, d_sae, l0, frequencies), rows, names)
        for use, contenders in names.items():
            counts = rows_of(use, rows)
            for count, line in zip(counts, measure_use(folder, use, counts, contenders, effort), strict=True):
                yield {"use": use, "d_in": d_in, "d_sae": d_sae, "frequencies": frequencies, "rows": count,
                       "l0_wanted": l0, **sparsity[count], **line}  # fmt: skip


def rows_of(use: str, rows: Sequence[int]) -> list[int]:
    """Return the numbers of rows for which a use is measured."""
    return [count for count in rows if count <= USES[use].largest]


def measure_use(
    folder: Path, use: str, rows: Sequence[int], names: Sequence[str], effort: Effort
) -> Iterator[dict[str, object]]:
    """Yield the times of the contenders in one use for each number of rows, and their agreement."""
    with ExitStack() as stack:
        workers, missing = start(stack, folder, use, names, effort.threads)
        for count in rows:
            absent = missing | request(workers, "bind", rows=count)
            present = {name: worker for name, worker in workers.items() if name not in absent}
            agreement = check(present, folder, use, count)
            yield {
                **summarize(interleave(present, effort)), "agreement": agreement, "absent": absent,
                "resident_bytes": sum(worker.memory for worker in workers.values()),
            }  # fmt: skip


def start(
    stack: ExitStack, folder: Path, use: str, names: Sequence[str], threads: int
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Start the workers, and return them by name, and which of them cannot run here, and why."""
    workers, missing = {}, {}
    for name in names:
        try:
            workers[name] = stack.enter_context(Worker(name, folder, use, threads))
        except UnavailableError as reason:
            missing[name] = str(reason)
    missing |= request(workers, "load")
    return {name: worker for name, worker in workers.items() if name not in missing}, missing


def request(workers: Mapping[str, Worker], name: str, **arguments: object) -> dict[str, str]:
    """Send every worker a request at once, wait for all, and return which of them cannot run here, and why."""
    absent = {}
    for worker in workers.values():
        worker.send(name, **arguments)
    for contender, worker in workers.items():
        try:
            worker.receive()
        except UnavailableError as reason:
            absent[contender] = str(reason)
    return absent


def check(workers: Mapping[str, Worker], folder: Path, use: str, rows: int) -> dict[str, float]:
    """Return the relative difference of each worker's results from the first one's.

    Of strongest features, the values have to agree, and the activations that the original has at their indices; equally
    strong features may come in another order.

    Raises:
        DisagreementError: A worker computes other values.
    """
    reference: dict[str, Tensor] | None = None
    differences = {}
    for name, worker in workers.items():
        target = folder / f"outputs-{name}.safetensors"
        worker.ask("write_outputs", rows=rows, stride=row_stride(rows), target=str(target))
        found = load_file(target)
        target.unlink()
        reference = found if reference is None else reference
        expected = {output: reference[output] for output in CONTENDERS[name].compared(use)}
        if INDICES in found:
            found["activations at the indices"] = found[VALUES]
            expected["activations at the indices"] = _at(reference[HOOK_ACTS_POST], found[INDICES])
        differences[name] = float(f"{check_agreement(CONTENDERS[name].title, found, expected):.1e}")
    return differences


def _at(acts_post: Tensor, indices: Tensor) -> Tensor:
    """Return the activations of the features with these indices; 0 for the index -1."""
    return acts_post.gather(1, indices.clamp(min=0)).masked_fill(indices < 0, 0)


def interleave(workers: Mapping[str, Worker], effort: Effort) -> Medians:
    """Return the median milliseconds of each contender, one per round; the workers take turns."""
    medians: Medians = {name: [] for name in workers}
    for _, name in take_turns(workers, effort.rounds, effort.seconds):
        time.sleep(effort.rest)
        medians[name].append(float(np.median(workers[name].ask("measure", seconds=effort.turn))))
    return medians


def summarize(rounds: Medians) -> dict[str, object]:
    """Return the times and their ratios, each as median and quartiles over the rounds.

    The ratio of a round is the ratio of its medians. The floor is the fastest product, and the copy where there is one.
    """
    times = {name: np.array(values) for name, values in rounds.items()}
    medians = {name: float(np.median(values)) for name, values in times.items()}
    product = fastest(medians, PRODUCTS)
    if product is not None:
        times[PRODUCT] = times[product]
        times[FLOOR] = times[product] + times.get(COPY, 0)
    ratios = {
        f"over_{base}": {name: quartiles(values / times[base]) for name, values in times.items() if name != base}
        for base in (THIS, FLOOR, PRODUCT, MODEL_GRAPH)
        if base in times
    }
    return {"rounds": len(times[THIS]), "ms": {name: quartiles(values) for name, values in times.items()},
            "best_alternative": fastest(medians, ALTERNATIVES), "fastest_product": product, **ratios}  # fmt: skip
