"""The tables of the GPU results in Markdown, made from the file of results alone."""

from typing import Any

from benchmarks.gpu.contenders.names import (
    COMPILE_MODES,
    DEDUPLICATED,
    ORIGINAL,
    ORIGINAL_GRAPH,
    TITLES,
    fastest_setting,
)
from benchmarks.gpu.prepared.artifacts import CANDIDATES
from benchmarks.gpu.report.goals import verdicts
from benchmarks.report.markdown import markdown_table, ratio_cell, size_cell
from benchmarks.shared.timing import fastest

Line = dict[str, Any]  # a line of the results, as in the JSON file

NOT_A_GPU = "**These are not GPU figures.** The benchmark was rehearsed on a CPU to check that it runs."
SHOWN_NODES = 10


def table(result: Line) -> str:
    """Return all tables of a file of results, each below its heading."""
    lines = [line for line in result["grid"] if "ms" in line]
    parts = [NOT_A_GPU] if result["rehearsal"] else []
    parts += ["## All six hooks, error term on", grid_table(lines), note(result)]
    if single := [line for line in lines if line["rows"] == 1]:
        parts += ["## At one row, from the call until the results are ready", latency_table(single)]
    parts += ["## Host to host, and the small result", request_table(lines)]
    parts += ["## What the device can do", ceiling_table(result["ceilings"])]
    if result["candidates"]:
        parts += ["## Candidates of the graph", candidate_table(result["candidates"])]
    for profile in result["nodes"]:
        parts += [f"## Where the time of `model.onnx` goes, {describe_place(profile)}", node_table(profile)]
    parts += ["## Goals", goal_table(lines, result["rehearsal"])]
    if reasons := left_out(result):
        parts += ["## Not measured", "\n".join(f"- {reason}" for reason in reasons)]
    return "\n\n".join(parts)


def grid_table(lines: list[Line]) -> str:
    """Return the ratios of device times, each as median and quartiles over the rounds."""
    headings = ("d_in x d_sae", "precision", "rows", "this, ms", *(f"{TITLES[name]} / this" for name in
             (ORIGINAL, ORIGINAL_GRAPH, DEDUPLICATED)), "fastest torch.compile / this", "limit / this",
             "sum / this", "products, TFLOP/s")  # fmt: skip
    cells = [
        [
            *place_cells(line),
            time_cell(line["ms"].get(fastest_setting(medians(line["ms"])))),
            *(ratio_cell(line["ratios"].get(name)) for name in (ORIGINAL, ORIGINAL_GRAPH, DEDUPLICATED)),
            compile_cell(line),
            ratio_cell(line.get("of_limit")),
            ratio_cell(line.get("of_sum")),
            f"{line['operations_per_second'][0] / 1e12:.1f}",
        ]
        for line in lines
    ]
    return markdown_table(headings, cells)


def latency_table(lines: list[Line]) -> str:
    """Return the times of one row by the host's clock."""
    names = [name for name in TITLES if any(name in line["wall_ms"] for line in lines)]
    headings = ("d_in x d_sae", "precision", *(f"{TITLES[name]}, ms" for name in names))
    rows = [[*place_cells(line)[:2], *(time_cell(line["wall_ms"].get(name), 4) for name in names)] for line in lines]
    return markdown_table(headings, rows)


def request_table(lines: list[Line]) -> str:
    """Return the ratios of other requests: all six hooks on the host, the encoder alone, the strongest features."""
    headings = ("d_in x d_sae", "precision", "rows", "PyTorch / this, host to host", "PyTorch / this, encoder",
             "PyTorch / this, top features", "PyTorch / this, watch", "encoder / top features of this")  # fmt: skip
    names = ("torch_encode", "torch_top", "torch_watch", "saved")
    return markdown_table(headings, [[*place_cells(line), ratio_cell(line["wall_ratios"].get("torch_host")),
                             *(ratio_cell(line["ratios"].get(name)) for name in names)] for line in lines])  # fmt: skip


def ceiling_table(ceilings: Line) -> str:
    """Return the measured rates of products, by precision, and of a copy."""
    headings = ("", "measured")
    cells = [[f"square product, {name}", f"{peak['operations_per_second'] / 1e12:.1f} TFLOP/s (n = {peak['size']})"]
             for name, peak in ceilings["products"].items()]  # fmt: skip
    return markdown_table(
        headings, [*cells, ["copy, read and written", f"{ceilings['bytes_per_second'] / 1e9:.0f} GB/s"]]
    )


def candidate_table(lines: list[Line]) -> str:
    """Return the moved bytes and the time of each way to write the graph."""
    headings = ("d_in x d_sae", "precision", "rows", "candidate", "moved, MB", "ms", "over as it is")
    cells = [
        [*place_cells(line), name, f"{line['bytes'][name] / 1e6:.1f}", time_cell(line["ms"].get(name)),
         ratio_cell(line["over_as_is"].get(name)) or line["absent"].get(name, "")]
        for line in lines
        for name in CANDIDATES
    ]  # fmt: skip
    return markdown_table(headings, cells)


def node_table(profile: Line) -> str:
    """Return the slowest nodes of a graph, and its slowest kernels on a GPU."""
    kinds = {"node, on the host": profile["nodes"], "kernel, on the device": profile["kernels"]}
    cells = [[kind, f"`{name}`", f"{time:.4f}"] for kind, times in kinds.items() for name, time in
             list(times.items())[:SHOWN_NODES]]  # fmt: skip
    return markdown_table(("", "", "ms"), cells)


def goal_table(lines: list[Line], rehearsal: bool) -> str:
    """Return each goal with each line that it applies to, and whether it is reached; none is judged on a CPU."""
    found = verdicts(lines)
    cells = [[goal.text, *place_cells(line), ratio_cell(value), "not a GPU" if rehearsal else verdict]
             for goal, line, value, verdict in found]  # fmt: skip
    reached = sum(verdict == "yes" for *_, verdict in found)
    count = "No goal is judged." if rehearsal else f"{reached} of {len(found)} goals are reached."
    return markdown_table(("goal", "d_in x d_sae", "precision", "rows", "measured", "reached"), cells) + f"\n\n{count}"


def left_out(result: Line) -> list[str]:
    """Return what is missing from the tables, and why."""
    lines = result["grid"]
    reasons = [f"{describe_place(line)}: {line['skipped']}" for line in lines if "skipped" in line]
    reasons += [f"{describe_place(line)}, {TITLES[name]}: {reason}" for line in lines
                for name, reason in line.get("absent", {}).items()]  # fmt: skip
    reasons += [f"{what}: the time limit was reached" for what in result["not_reached"]]
    return reasons + [f"{what} (an error)" for what in result["broken"]]


def note(result: Line) -> str:
    """Return how the grid was measured."""
    parts = ("driver_version", "cuda", "cudnn", "torch", "onnxruntime", "python")
    versions = ", ".join(f"{name} {result[name]}" for name in parts if name in result)
    return (
        "All contenders run in one process, in random order. Calls are queued before the device begins them, and its "
        "caches are flushed before each. Each value is the median over rounds, with the quartiles in brackets. *This* "
        "uses CUDA graphs (`cuda_graph=`) up to 64 rows where they are faster. Limit: the products at PyTorch's speed, "
        "or the fewest bytes at the speed of a copy, whichever takes longer. Sum: the products, and a separate kernel "
        "for each other step. The PyTorch original is "
        f"{result['original']}. {result['date']}, {result['device']}, {versions}."
    )


def compile_cell(line: Line) -> str:
    """Return the ratio of the fastest of torch.compile's modes, and its name."""
    name = fastest(medians(line["ms"]), COMPILE_MODES)
    return f"{ratio_cell(line['ratios'].get(name))} {TITLES[name].removeprefix('torch.compile, ')}" if name else ""


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the medians of times with quartiles."""
    return {name: values[0] for name, values in times.items()}


def place_cells(line: Line) -> list[str]:
    """Return the first cells of a line: size, precision and rows."""
    return [size_cell(line), line["precision"], str(line["rows"])]


def describe_place(line: Line) -> str:
    """Return size, precision and rows in words."""
    return "{}, {}, {} rows".format(*place_cells(line))


def time_cell(values: list[float] | None, digits: int = 3) -> str:
    """Return a median in milliseconds, or nothing if it was not measured."""
    return f"{values[0]:.{digits}f}" if values else ""
