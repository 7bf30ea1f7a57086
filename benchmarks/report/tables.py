"""The stored results in Markdown: what README.md shows, made from the JSON and nothing else."""

from typing import Any

from benchmarks.cpu.contenders import CONTENDERS, FLOOR, MODEL_GRAPH, ORIGINAL, PRODUCT, THIS
from benchmarks.cpu.processes import PROCESSES
from benchmarks.cpu.processes import ROWS as PROCESS_ROWS
from benchmarks.cpu.sweep import WORST, worst
from benchmarks.shared.machine import markdown, ratio

Line = dict[str, Any]  # of the results, as JSON has it


def table(result: Line) -> str:
    """Return everything that a file of results holds, each table below its heading."""
    parts = []
    if result.get("grid"):
        parts += ["## All six hooks, error term on", grid_table(result["grid"]), grid_note(result)]
    if result.get("sweep"):
        parts += ["## From no feature on to all", sweep_table(result["sweep"]), sweep_note(result["sweep"])]
    if result.get("processes"):
        parts += ["## Whole processes", process_table(result["processes"]), process_note(result["processes"])]
    return "\n\n".join(parts)


def grid_table(lines: list[Line]) -> str:
    """Return the ratios of the contenders' times, each as median and quartiles over the rounds."""
    heads = ("d_in x d_sae", "frequencies", "rows", "L0", "features on", "PyTorch original / this",
             "best alternative / this", "this / floor", "this / product", "this, ms")  # fmt: skip
    return markdown(heads, [grid_cells(line) for line in lines])


def grid_cells(line: Line) -> list[str]:
    """Return the cells of a line."""
    best = line["best_alternative"]
    return [
        size(line),
        line["frequencies"],
        str(line["rows"]),
        l0(line),
        f"{line['fired_share']:.1%}",
        ratio_of(line, THIS, ORIGINAL),
        f"{ratio_of(line, THIS, best)} {CONTENDERS[best].title}" if best else "",
        ratio_of(line, FLOOR, THIS),
        ratio_of(line, PRODUCT, THIS),
        milliseconds(line, THIS),
    ]


def grid_note(result: Line) -> str:
    """Return how the table came about."""
    names = ("torch", "onnxruntime", "numpy")
    versions = ", ".join(f"{name} {result[name]}" for name in names)
    reasons = {name: reason for line in result["grid"] for name, reason in line["absent"].items()}
    absent = "".join(f" {CONTENDERS[name].title} is missing: {reason}." for name, reason in sorted(reasons.items()))
    return (
        "Each contender in a process of its own, asked in random order; the median over rounds, and the quartiles. "
        "Features on: for any of the rows. Floor: the encoder's product in ONNX Runtime, and a copy of all else that "
        f"is written. {result['date']}, {result['processor']}, {result['threads']} threads each, "
        f"Python {result['python']}, {versions}.{absent}"
    )


def sweep_table(lines: list[Line]) -> str:
    """Return the session's own choice of graph beside the dense one, at every sparsity."""
    heads = ("d_in x d_sae", "rows", "L0", "features on", "`model`, ms", "this, ms", "this / `model`")
    cells = [[size(line), str(line["rows"]), l0(line), f"{line['fired_share']:.1%}", milliseconds(line, MODEL_GRAPH),
              milliseconds(line, THIS), ratio_of(line, MODEL_GRAPH, THIS)] for line in lines]  # fmt: skip
    return markdown(heads, cells)


def sweep_note(lines: list[Line]) -> str:
    """Return where the session's choice is slowest beside the dense graph, and whether that is too slow."""
    line = worst(lines)
    most = line[f"over_{MODEL_GRAPH}"][THIS]
    verdict = "more" if most[0] > WORST else "not more"
    return (
        f"At most {ratio(most)} of the dense graph's time, at L0 {line['l0_mean']:.0f} with {line['rows']} rows: "
        f"{verdict} than {WORST - 1:.0%} slower."
    )


def process_table(result: Line) -> str:
    """Return what whole processes cost."""
    few, many = PROCESS_ROWS
    heads = ("", "start to first result, s", "over this", f"peak memory, {few} row", f"{many} rows", "to install")
    cells = []
    for name, process in PROCESSES.items():
        way = result["ways"][name]
        memory = [f"{way['resident_bytes'][str(rows)] / 1e6:.0f} MB" for rows in PROCESS_ROWS]
        seconds, install = f"{way['seconds'][0]:.2f}", f"{way['install']['bytes'] / 1e6:.0f} MB"
        cells.append([process.title, seconds, ratio(way["over_this"]), *memory, install])
    return markdown(heads, cells)


def process_note(result: Line) -> str:
    """Return what the processes did."""
    return (
        f"An SAE of {result['d_in']} x {result['d_sae']}, {result['weights_bytes'] / 1e6:.0f} MB of weights in the "
        f"page cache, {result['runs']} runs each. Memory counts the pages of mapped files, too. To install: the "
        "distributions that each way requires, transitively, without bytecode."
    )


def ratio_of(line: Line, base: str, name: str) -> str:
    """Return the ratio of a contender's time to that of a base, or nothing if it was not measured."""
    values = line[f"over_{base}"].get(name)
    return ratio(values) if values else ""


def size(line: Line) -> str:
    """Return the size of a line's SAE."""
    return f"{line['d_in']} x {line['d_sae']}"


def l0(line: Line) -> str:
    """Return the mean and the standard deviation of L0 over a line's tokens."""
    digits = 1 if line["l0_mean"] < 1000 else 0
    return f"{line['l0_mean']:.{digits}f} ± {line['l0_std']:.{digits}f}"


def milliseconds(line: Line, name: str) -> str:
    """Return a contender's median time."""
    return f"{line['ms'][name][0]:.2f}"
