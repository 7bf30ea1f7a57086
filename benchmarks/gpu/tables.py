"""The stored results in Markdown, made from the JSON and nothing else."""

from typing import Any

from benchmarks.gpu.candidates import CANDIDATES
from benchmarks.gpu.contenders import COMPILES, DEDUPLICATED, ORIGINAL, ORIGINAL_GRAPH, TITLES, fastest, ours
from benchmarks.gpu.goals import verdicts
from benchmarks.shared.machine import markdown, ratio

Line = dict[str, Any]  # of the results, as JSON has it

NOT_A_GPU = "**These are no GPU figures.** A CPU stood in for one, to see that the benchmark runs."
SLOWEST = 10  # nodes and kernels of a graph that are shown


def table(result: Line) -> str:
    """Return everything that a file of results holds, each table below its heading."""
    lines = [line for line in result["grid"] if "ms" in line]
    parts = [NOT_A_GPU] if result["rehearsal"] else []
    parts += ["## All six hooks, error term on", grid_table(lines), note(result)]
    if single := [line for line in lines if line["rows"] == 1]:
        parts += ["## At one row, from the call until the results are ready", latency_table(single)]
    parts += ["## Host to host, and the small result", other_table(lines)]
    parts += ["## What the device can do", ceiling_table(result["ceilings"])]
    if result["candidates"]:
        parts += ["## Candidates of the graph", candidate_table(result["candidates"])]
    for profile in result["nodes"]:
        parts += [f"## Where the time of `model.onnx` goes, {where(profile)}", node_table(profile)]
    parts += ["## Goals", goal_table(lines, result["rehearsal"])]
    if reasons := left_out(result):
        parts += ["## Not measured", "\n".join(f"- {reason}" for reason in reasons)]
    return "\n\n".join(parts)


def grid_table(lines: list[Line]) -> str:
    """Return the ratios of device times, each as median and quartiles over the rounds."""
    heads = ("d_in x d_sae", "precision", "rows", "this, ms", *(f"{TITLES[name]} / this" for name in
             (ORIGINAL, ORIGINAL_GRAPH, DEDUPLICATED)), "fastest torch.compile / this", "limit / this",
             "sum / this", "products, TFLOP/s")  # fmt: skip
    cells = [
        [
            *place(line),
            milliseconds(line["ms"].get(ours(medians(line["ms"])))),
            *(cell(line["ratios"].get(name)) for name in (ORIGINAL, ORIGINAL_GRAPH, DEDUPLICATED)),
            compiled(line),
            cell(line.get("of_limit")),
            cell(line.get("of_sum")),
            f"{line['operations_per_second'][0] / 1e12:.1f}",
        ]
        for line in lines
    ]
    return markdown(heads, cells)


def latency_table(lines: list[Line]) -> str:
    """Return the host's times of one row."""
    names = [name for name in TITLES if any(name in line["wall_ms"] for line in lines)]
    heads = ("d_in x d_sae", "precision", *(f"{TITLES[name]}, ms" for name in names))
    return markdown(heads, [[*place(line)[:2], *(milliseconds(line["wall_ms"].get(name), 4) for name in names)]
                            for line in lines])  # fmt: skip


def other_table(lines: list[Line]) -> str:
    """Return what else may be asked for: the six hooks on the host, the encoder alone, the strongest features."""
    heads = ("d_in x d_sae", "precision", "rows", "PyTorch / this, host to host", "PyTorch / this, encoder",
             "PyTorch / this, top features", "encoder / top features of this")  # fmt: skip
    names = ("torch_encode", "torch_top", "saved")
    return markdown(heads, [[*place(line), cell(line["wall_ratios"].get("torch_host")),
                             *(cell(line["ratios"].get(name)) for name in names)] for line in lines])  # fmt: skip


def ceiling_table(ceilings: Line) -> str:
    """Return the measured rate of products, by precision, and that of a copy."""
    heads = ("", "measured")
    cells = [[f"square product, {name}", f"{peak['operations_per_second'] / 1e12:.1f} TFLOP/s (n = {peak['size']})"]
             for name, peak in ceilings["products"].items()]  # fmt: skip
    return markdown(heads, [*cells, ["copy, read and written", f"{ceilings['bytes_per_second'] / 1e9:.0f} GB/s"]])


def candidate_table(lines: list[Line]) -> str:
    """Return what each way to write the graph moves and takes."""
    heads = ("d_in x d_sae", "precision", "rows", "candidate", "moved, MB", "ms", "over as it is")
    cells = [
        [*place(line), name, f"{line['bytes'][name] / 1e6:.1f}", milliseconds(line["ms"].get(name)),
         cell(line["over_as_is"].get(name)) or line["absent"].get(name, "")]
        for line in lines
        for name in CANDIDATES
    ]  # fmt: skip
    return markdown(heads, cells)


def node_table(profile: Line) -> str:
    """Return the slowest nodes of a graph, and the slowest kernels if there were any."""
    kinds = {"node, on the host": profile["nodes"], "kernel, on the device": profile["kernels"]}
    cells = [[kind, f"`{name}`", f"{time:.4f}"] for kind, times in kinds.items() for name, time in
             list(times.items())[:SLOWEST]]  # fmt: skip
    return markdown(("", "", "ms"), cells)


def goal_table(lines: list[Line], rehearsal: bool) -> str:
    """Return each goal with each line that it is asked of, and yes or no; none is judged on a CPU."""
    found = verdicts(lines)
    cells = [[goal.text, *place(line), cell(value), "no GPU" if rehearsal else verdict]
             for goal, line, value, verdict in found]  # fmt: skip
    reached = sum(verdict == "yes" for *_, verdict in found)
    count = "None is judged." if rehearsal else f"{reached} of {len(found)} are reached."
    return markdown(("goal", "d_in x d_sae", "precision", "rows", "measured", "reached"), cells) + f"\n\n{count}"


def left_out(result: Line) -> list[str]:
    """Return what is missing from the tables, and why."""
    lines = result["grid"]
    reasons = [f"{where(line)}: {line['skipped']}" for line in lines if "skipped" in line]
    reasons += [f"{where(line)}, {TITLES[name]}: {reason}" for line in lines
                for name, reason in line.get("absent", {}).items()]  # fmt: skip
    reasons += [f"{what}: the time was up" for what in result["not_reached"]]
    return reasons + [f"{what} (an error)" for what in result["broken"]]


def note(result: Line) -> str:
    """Return how the tables came about."""
    parts = ("driver_version", "cuda", "cudnn", "torch", "onnxruntime", "python")
    versions = ", ".join(f"{name} {result[name]}" for name in parts if name in result)
    return (
        "Contenders in one process, in random order; calls that were queued before the device began, its caches "
        "flushed; medians over rounds, and quartiles. *This* has CUDA graphs (`cuda_graph=`) up to 64 rows, where they "
        "are faster. Limit: the products at PyTorch's speed, or the least bytes at a copy's, whichever is longer; "
        "sum: the products, and a pass of its own for each thing beside them. The PyTorch original is "
        f"{result['original']}. {result['date']}, {result['device']}, {versions}."
    )


def compiled(line: Line) -> str:
    """Return the ratio of the fastest of torch.compile's modes, and which it is."""
    name = fastest(medians(line["ms"]), COMPILES)
    return f"{cell(line['ratios'].get(name))} {TITLES[name].removeprefix('torch.compile, ')}" if name else ""


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the medians of times that come with their quartiles."""
    return {name: values[0] for name, values in times.items()}


def place(line: Line) -> list[str]:
    """Return the first cells of a line."""
    return [f"{line['d_in']} x {line['d_sae']}", line["precision"], str(line["rows"])]


def where(line: Line) -> str:
    """Return the same in words."""
    return "{}, {}, {} rows".format(*place(line))


def cell(values: list[float] | None) -> str:
    """Return a ratio with its quartiles, or nothing."""
    return ratio(values) if values else ""


def milliseconds(values: list[float] | None, digits: int = 3) -> str:
    """Return a median, or nothing."""
    return f"{values[0]:.{digits}f}" if values else ""
