"""The grid: a line for each size, precision and number of rows, all contenders side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.agreement import BOUNDS, bind, precision, reference
from benchmarks.gpu.contenders import (
    DECODE_PRODUCT,
    ENCODE_PRODUCT,
    GRAPHED_ROWS,
    OURS,
    THIS_HOST,
    TITLES,
    TORCH_HOST,
    Makers,
    ours,
)
from benchmarks.gpu.device import Device
from benchmarks.gpu.equations import encode
from benchmarks.gpu.limit import Work, limit_ways, limits
from benchmarks.gpu.runtime_ways import Sessions
from benchmarks.gpu.subjects import artifact_of, draw_inputs, dtype_of, load_weights
from benchmarks.gpu.timing import Effort, Rounds, interleave, medians, summary
from benchmarks.gpu.torch_ways import torch_ways
from benchmarks.shared.machine import quartiles
from runtime.arrays.dtypes import FLOAT32
from runtime.artifact.names import HOOK_ACTS_POST

SETS = 4
HOST_BYTES = 2 << 30
"""Results above this are not copied to the host: it would measure nothing but the bus, for seconds."""
TOO_LARGE = "the result is too large to be worth copying to the host"

Line = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How it is measured.

    Attributes:
        effort: how long.
        compiled: whether torch.compile takes part.
        tuned: (size, rows) at which it also autotunes.
    """

    effort: Effort
    compiled: bool
    tuned: Sequence[tuple[tuple[int, int], int]]


@dataclass(frozen=True)
class Subject:
    """One SAE in one precision, on the device.

    Attributes:
        weights: in the dtype of the precision.
        exact: the float32 ones that all are compared with.
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
    device.forget()
    free = device.free_bytes()
    artifact = artifact_of(folder, shape, dtype_of(name))
    weights = load_weights(artifact, device.torch)
    in_float32 = dtype_of(name) == FLOAT32
    exact = weights if in_float32 else load_weights(artifact_of(folder, shape, FLOAT32), device.torch)
    graphed = [rows for rows in all_rows if rows in GRAPHED_ROWS]
    with Sessions(artifact, device, name, graphed) as sessions:
        subject = Subject(shape, name, device, weights, exact, sessions)
        for rows in all_rows:
            work = Work(*shape, rows, weights["W_enc"].itemsize)
            line: Line = {"d_in": shape[0], "d_sae": shape[1], "precision": name, "rows": rows}
            device.forget()
            if work.needed_bytes > free:
                needed = f"needs about {work.needed_bytes / 1e9:.0f} GB of memory, {free / 1e9:.0f} were free"
                yield line | {"skipped": needed}
                continue
            try:
                line |= measure_line(subject, work, options)
            except torch.OutOfMemoryError as error:
                line["skipped"] = str(error).splitlines()[0]
            yield line


def measure_line(subject: Subject, work: Work, options: Options) -> Line:
    """Return what one batch takes: who agrees is timed, who does not is named."""
    with precision(subject.precision):
        inputs = draw_inputs(subject.weights, work.rows, SETS)
        expected = [reference(x, subject.exact) for x in inputs[:2]]
        makers, absent = contenders(subject, work, inputs, options)
        dtype = subject.weights["W_enc"].dtype
        ways, agreement, failed = bind(makers, expected, dtype, BOUNDS[subject.precision])
        with torch.inference_mode():
            acts_post = encode(inputs[0], *(subject.weights[name] for name in ("W_enc", "b_enc", "b_dec")))
        parts = limit_ways(subject.weights, inputs, acts_post, subject.device)
        queued, awaited = interleave(ways | parts, subject.device, options.effort)
    on = (expected[0][HOOK_ACTS_POST] != 0).sum(1).double().mean().item()
    return {**summary(queued, awaited), **beside_limits(work, queued, subject.device.copied_bytes),
            "agreement": agreement, "absent": absent | failed, "l0_mean": round(on, 1)}  # fmt: skip


def contenders(subject: Subject, work: Work, inputs: list[Tensor], options: Options) -> tuple[Makers, dict[str, str]]:
    """Return who takes part, and who does not by choice, with the reason."""
    torch._dynamo.reset()  # each number of rows is compiled by itself, and only so many are
    tuned = (subject.shape, work.rows) in options.tuned
    makers = torch_ways(subject.weights, inputs, subject.device, tuned)
    if not options.compiled:
        makers = {name: make for name, make in makers.items() if "compile" not in name}
    makers |= subject.sessions.ways(inputs, work.d_sae)
    if work.itemsize * work.rows * (2 * work.d_sae + 4 * work.d_in) <= HOST_BYTES:
        return makers, {}
    on_host = (TORCH_HOST, THIS_HOST)
    return {name: make for name, make in makers.items() if name not in on_host}, dict.fromkeys(on_host, TOO_LARGE)


def beside_limits(work: Work, queued: Rounds, copied: int) -> Line:
    """Return the limits, the share of them that this project reaches, and the rate of the products at this shape."""
    products = queued[ENCODE_PRODUCT] + queued[DECODE_PRODUCT]
    found: Line = {"operations_per_second": quartiles(work.operations / (1e-3 * products), 0)}
    this = ours(medians(queued))
    for kind, bound in limits(work, queued, copied).items():
        found[f"{kind}_ms"] = quartiles(bound)
        if this in queued:
            found[f"of_{kind}"] = quartiles(bound / queued[this])
    return found


def failures(result: Line) -> list[str]:
    """Return what broke, where this project could not run, and where anyone was wrong: no figure may hide it."""
    return result["broken"] + [
        f"{line['d_in']} x {line['d_sae']}, {line['precision']}, {line['rows']} rows, {TITLES[name]}: {reason}"
        for line in result["grid"]
        for name, reason in line.get("absent", {}).items()
        if reason.startswith("wrong") or (name in OURS and reason != TOO_LARGE)
    ]
