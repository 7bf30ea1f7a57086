"""The whole run: its parts in order, until the time is up, and the file of results, written after every line."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.agreement import precision
from benchmarks.gpu.candidates import measure_candidates
from benchmarks.gpu.device import Device
from benchmarks.gpu.grid import Options, measure
from benchmarks.gpu.limit import bandwidth, peak_rate
from benchmarks.gpu.nodes import measure_nodes
from benchmarks.gpu.subjects import dtype_of
from benchmarks.gpu.torch_ways import ORIGINAL_IS
from runtime.arrays.dtypes import BFLOAT16

Shape = tuple[int, int]

PROFILED_ROWS = 1024
"""Rows at which the candidates and the nodes are measured, and torch.compile autotunes: many, and still cheap."""


@dataclass(frozen=True)
class Plan:
    """What a run measures.

    Attributes:
        folder: with the artifacts.
        shapes: sizes; the first is measured in every way.
        rows: ascending.
        minutes: after which nothing new is begun.
    """

    folder: Path
    shapes: Sequence[Shape]
    precisions: Sequence[str]
    rows: Sequence[int]
    minutes: float
    options: Options

    def parts(self) -> Iterator[tuple[str, Shape, str]]:
        """Yield the parts in order: everything of the first size, then the grid of the others."""
        for shape in self.shapes:
            for name in self.precisions:
                yield "grid", shape, name
            if shape == self.shapes[0]:
                for kind in ("candidates", "nodes"):
                    for name in self.precisions:
                        yield kind, shape, name


def run(plan: Plan, device: Device, rehearsal: bool, target: Path) -> dict[str, Any]:
    """Return all results, which are in the file `target`, too."""
    result: dict[str, Any] = {
        **device.facts(), "rehearsal": rehearsal, "original": ORIGINAL_IS, "state_before": device.state(),
        "ceilings": ceilings(device, plan.precisions), "grid": [], "candidates": [], "nodes": [], "not_reached": [],
        "broken": [],
    }  # fmt: skip
    end = time.monotonic() + 60 * plan.minutes
    parts = list(plan.parts())
    with tqdm(total=len(parts), unit="part", disable=None) as bar:
        for kind, shape, name in parts:
            what = f"{shape[0]} x {shape[1]}, {name}, {kind}"
            bar.set_description(what)
            if time.monotonic() > end:
                result["not_reached"].append(what)
                continue
            try:
                for line in lines_of(kind, shape, name, plan, device):
                    result[kind].append(line)
                    target.write_text(json.dumps(result, indent=1) + "\n")
                    if time.monotonic() > end and kind == "grid" and line["rows"] < plan.rows[-1]:
                        result["not_reached"].append(f"{what}, more than {line['rows']} rows")
                        break
            except Exception as error:  # of any kind: what breaks one part must not cost the others' figures
                result["broken"].append(f"{what}: {type(error).__name__}: {error}")
            bar.update()
    result["state_after"] = device.state()
    target.write_text(json.dumps(result, indent=1) + "\n")
    return result


def lines_of(kind: str, shape: Shape, name: str, plan: Plan, device: Device) -> Iterator[dict[str, Any]]:
    """Yield the lines of a part, each when it is measured."""
    if kind != "grid" and name == BFLOAT16 and device.torch.type == "cpu":
        return  # ONNX Runtime's CPU has no bfloat16; the session runs other graphs there
    profiled = min(PROFILED_ROWS, max(plan.rows))
    if kind == "grid":
        yield from measure(plan.folder, shape, name, plan.rows, device, plan.options)
    elif kind == "candidates":
        yield measure_candidates(plan.folder, shape, name, profiled, device, plan.options.effort)
    else:
        yield measure_nodes(plan.folder, shape, name, profiled, device)


def ceilings(device: Device, precisions: Sequence[str]) -> dict[str, Any]:
    """Return the fastest product of each precision, and the bandwidth of a copy."""
    products = {}
    for name in precisions:
        with precision(name):
            products[name] = peak_rate(device, getattr(torch, dtype_of(name)))
    device.forget()
    return {"products": products, "bytes_per_second": bandwidth(device)}


def result_file(folder: Path, device: str) -> Path:
    """Return where the results of a device are."""
    return folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
