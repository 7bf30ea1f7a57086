"""A whole run: its parts in order until the time limit, and the file of results, which is written after every line."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.contenders.agreement import precision
from benchmarks.gpu.contenders.torch_contenders import ORIGINAL_IS
from benchmarks.gpu.device import Device
from benchmarks.gpu.measure.candidates import measure_candidates
from benchmarks.gpu.measure.grid import Options, measure
from benchmarks.gpu.measure.limit import bandwidth, peak_rate
from benchmarks.gpu.measure.nodes import measure_nodes
from benchmarks.gpu.prepared.artifacts import weights_dtype
from benchmarks.shared.machine import write_results
from runtime.arrays.dtypes import BFLOAT16

Shape = tuple[int, int]

PROFILED_ROWS = 1024
"""Rows with which the nodes are measured and torch.compile autotunes: many, and still fast."""


@dataclass(frozen=True)
class Plan:
    """What a run measures.

    Attributes:
        folder: Folder of the artifacts.
        shapes: Sizes; only the first is measured in every way.
        precisions: Precisions.
        rows: Numbers of rows, ascending.
        minutes: Time after which no new part begins.
        options: How the grid is measured.
    """

    folder: Path
    shapes: Sequence[Shape]
    precisions: Sequence[str]
    rows: Sequence[int]
    minutes: float
    options: Options

    def parts(self) -> Iterator[tuple[str, Shape, str]]:
        """Yield the parts in order: everything with the first size, then the grid with the rest."""
        for shape in self.shapes:
            for kind in ("grid", "candidates", "nodes") if shape == self.shapes[0] else ("grid",):
                for name in self.precisions:
                    yield kind, shape, name


def run(plan: Plan, device: Device, rehearsal: bool, target: Path) -> dict[str, Any]:
    """Return all results, and write them to the file `target`."""
    result: dict[str, Any] = {
        **device.describe(), "rehearsal": rehearsal, "original": ORIGINAL_IS, "state_before": device.state(),
        "ceilings": measure_ceilings(device, plan.precisions), "grid": [], "candidates": [], "nodes": [],
        "not_reached": [], "broken": [],
    }  # fmt: skip
    end = time.monotonic() + 60 * plan.minutes
    parts = list(plan.parts())
    with tqdm(total=len(parts), unit="part", disable=None) as bar:
        for kind, shape, name in parts:
            part = f"{shape[0]} x {shape[1]}, {name}, {kind}"
            bar.set_description(part)
            if time.monotonic() > end:
                result["not_reached"].append(part)
                continue
            try:
                for line in measure_part(kind, shape, name, plan, device):
                    result[kind].append(line)
                    write_results(target, result)
                    if time.monotonic() > end and kind == "grid" and line["rows"] < plan.rows[-1]:
                        result["not_reached"].append(f"{part}, more than {line['rows']} rows")
                        break
            except Exception as error:  # of any type: a part that fails must not cost the figures of the rest
                result["broken"].append(f"{part}: {type(error).__name__}: {error}")
            bar.update()
    result["state_after"] = device.state()
    write_results(target, result)
    return result


def measure_part(kind: str, shape: Shape, name: str, plan: Plan, device: Device) -> Iterator[dict[str, Any]]:
    """Yield the lines of a part, each when it is measured."""
    if kind != "grid" and name == BFLOAT16 and device.torch.type == "cpu":
        return  # ONNX Runtime's CPU provider does not have bfloat16; sessions run other graphs there
    profiled = min(PROFILED_ROWS, max(plan.rows))
    if kind == "grid":
        yield from measure(plan.folder, shape, name, plan.rows, device, plan.options)
    elif kind == "candidates":
        for rows in plan.rows:
            yield measure_candidates(plan.folder, shape, name, rows, device, plan.options.effort)
    else:
        yield measure_nodes(plan.folder, shape, name, profiled, device)


def measure_ceilings(device: Device, precisions: Sequence[str]) -> dict[str, Any]:
    """Return the rate of the fastest product in each precision, and the bandwidth of a copy."""
    products = {}
    for name in precisions:
        with precision(name):
            products[name] = peak_rate(device, getattr(torch, weights_dtype(name)))
    device.release_memory()
    return {"products": products, "bytes_per_second": bandwidth(device)}


def result_file(folder: Path, device: str) -> Path:
    """Return the path of the results of a device."""
    return folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
