"""The grid: all contenders, a line for each size, precision and number of rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contenders.agreement import (
    TOLERANCES,
    WATCH,
    bind_contenders,
    compute_reference,
    precision,
    watched_features,
)
from benchmarks.gpu.contenders.names import (
    DECODE_PRODUCT,
    ENCODE_PRODUCT,
    GRAPHED_ROWS,
    THIS_HOST,
    THIS_PROJECT,
    TITLES,
    TORCH_HOST,
    Factories,
    fastest_setting,
)
from benchmarks.gpu.contenders.runtime_contenders import Sessions
from benchmarks.gpu.contenders.torch_contenders import torch_contenders
from benchmarks.gpu.device import Device
from benchmarks.gpu.measure.limit import Work, limit_contenders, limits
from benchmarks.gpu.measure.timing import Effort, Rounds, interleave, medians, summarize
from benchmarks.gpu.prepared.artifacts import artifact_folder, draw_inputs, load_weights, weights_dtype
from benchmarks.shared.equations import encode
from benchmarks.shared.timing import quartiles
from runtime.arrays.dtypes import FLOAT32
from runtime.artifact.names import HOOK_ACTS_POST

SETS = 4  # number of sets of inputs, which contenders use in turn
HOST_BYTES = 2 << 30
"""Larger results are not copied to the host: that would take seconds and measure only the bus."""
TOO_LARGE = "the result is too large to be worth copying to the host"

Line = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How the grid is measured.

    Attributes:
        effort: How long the contenders are measured.
        compiled: Whether torch.compile takes part.
        tuned: Pairs of size and rows at which torch.compile also autotunes.
    """

    effort: Effort
    compiled: bool
    tuned: Sequence[tuple[tuple[int, int], int]]


@dataclass(frozen=True)
class Case:
    """One SAE in one precision, on the device.

    Attributes:
        shape: d_in and d_sae.
        precision: Precision of the products.
        device: Device that runs the contenders.
        weights: Weights in the dtype of the precision.
        exact: Weights of the float32 original with which all are compared.
        sessions: Sessions of the artifact.
    """

    shape: tuple[int, int]
    precision: str
    device: Device
    weights: dict[str, Tensor]
    exact: dict[str, Tensor]
    sessions: Sessions


def measure(
    folder: Path, shape: tuple[int, int], name: str, all_rows: Sequence[int], device: Device, options: Options
) -> Iterator[Line]:
    """Yield a line for each number of rows of one SAE in the precision `name`."""
    device.release_memory()
    free = device.free_bytes()
    artifact = artifact_folder(folder, shape, weights_dtype(name))
    weights = load_weights(artifact, device.torch)
    in_float32 = weights_dtype(name) == FLOAT32
    exact = weights if in_float32 else load_weights(artifact_folder(folder, shape, FLOAT32), device.torch)
    graphed = [rows for rows in all_rows if rows in GRAPHED_ROWS]
    with Sessions(artifact, device, name, graphed) as sessions:
        case = Case(shape, name, device, weights, exact, sessions)
        for rows in all_rows:
            work = Work(*shape, rows, weights["W_enc"].itemsize)
            line: Line = {"d_in": shape[0], "d_sae": shape[1], "precision": name, "rows": rows}
            device.release_memory()
            if work.needed_bytes > free:
                needed = f"needs about {work.needed_bytes / 1e9:.0f} GB of memory, {free / 1e9:.0f} were free"
                yield line | {"skipped": needed}
                continue
            try:
                line |= measure_line(case, work, options)
            except torch.OutOfMemoryError as error:
                line["skipped"] = str(error).splitlines()[0]
            yield line


def measure_line(case: Case, work: Work, options: Options) -> Line:
    """Return the times of one batch. The contenders that agree are timed; the results name the rest."""
    with precision(case.precision):
        inputs = draw_inputs(case.weights, work.rows, SETS)
        expected = [compute_reference(x, case.exact) for x in inputs[:2]]
        watched = watched_features(expected)
        expected = [reference | {WATCH: reference[HOOK_ACTS_POST][:, watched]} for reference in expected]
        factories, absent = make_factories(case, work, inputs, options, watched)
        dtype = case.weights["W_enc"].dtype
        contenders, agreement, failed = bind_contenders(factories, expected, dtype, TOLERANCES[case.precision])
        with torch.inference_mode():
            acts_post = encode(inputs[0], *(case.weights[name] for name in ("W_enc", "b_enc", "b_dec")))
        parts = limit_contenders(case.weights, inputs, acts_post, case.device)
        queued, awaited = interleave(contenders | parts, case.device, options.effort)
    on = (expected[0][HOOK_ACTS_POST] != 0).sum(1).double().mean().item()
    return {**summarize(queued, awaited), **compare_with_limits(work, queued, case.device.copied_bytes),
            "agreement": agreement, "absent": absent | failed, "l0_mean": round(on, 1)}  # fmt: skip


def make_factories(
    case: Case, work: Work, inputs: list[Tensor], options: Options, watched: Tensor
) -> tuple[Factories, dict[str, str]]:
    """Return how to make the contenders that take part, and why the rest do not."""
    torch._dynamo.reset()  # each number of rows is compiled separately, and torch.compile limits how often
    tuned = (case.shape, work.rows) in options.tuned
    factories = torch_contenders(case.weights, inputs, case.device, tuned, watched)
    if not options.compiled:
        factories = {name: make for name, make in factories.items() if "compile" not in name}
    factories |= case.sessions.contenders(inputs, work.d_sae, watched)
    if work.itemsize * work.rows * (2 * work.d_sae + 4 * work.d_in) <= HOST_BYTES:
        return factories, {}
    on_host = (TORCH_HOST, THIS_HOST)
    return {name: make for name, make in factories.items() if name not in on_host}, dict.fromkeys(on_host, TOO_LARGE)


def compare_with_limits(work: Work, queued: Rounds, copied: int) -> Line:
    """Return the limits, the share of them that this project reaches, and the rate of the products."""
    products = queued[ENCODE_PRODUCT] + queued[DECODE_PRODUCT]
    found: Line = {"operations_per_second": quartiles(work.operations / (1e-3 * products), 0)}
    this = fastest_setting(medians(queued))
    for kind, bound in limits(work, queued, copied).items():
        found[f"{kind}_ms"] = quartiles(bound)
        if this in queued:
            found[f"of_{kind}"] = quartiles(bound / queued[this])
    return found


def failures(result: Line) -> list[str]:
    """Return what failed, where this project could not run, and which contender computed wrong values."""
    return result["broken"] + [
        f"{line['d_in']} x {line['d_sae']}, {line['precision']}, {line['rows']} rows, {TITLES[name]}: {reason}"
        for line in result["grid"]
        for name, reason in line.get("absent", {}).items()
        if reason.startswith("wrong") or (name in THIS_PROJECT and reason != TOO_LARGE)
    ]
