"""The tables of the CPU results in Markdown, made from the file of results alone. The documentation includes them."""

from typing import Any

from benchmarks.cpu.contenders.names import ALTERNATIVES, CONTENDERS, FLOOR, MODEL_GRAPH, ORIGINAL, PRODUCT, THIS
from benchmarks.cpu.contenders.uses import USES
from benchmarks.cpu.processes import PROCESSES
from benchmarks.cpu.processes import ROWS as PROCESS_ROWS
from benchmarks.cpu.sweep import LARGEST_RATIO, slowest
from benchmarks.report.markdown import markdown_table, ratio_cell, size_cell

Line = dict[str, Any]  # a line of the results, as in the JSON file


def table(result: Line) -> str:
    """Return all tables of a file of results, each below its heading."""
    parts = []
    if result.get("grid"):
        for use, lines in lines_by_use(result["grid"]).items():
            parts += [f"## {USES[use].title.capitalize()}", grid_table(lines), rival_table(lines)]
        parts += [ahead_note(result["grid"]), grid_note(result)]
    if result.get("sweep"):
        parts += ["## From no feature on to all", sweep_table(result["sweep"]), sweep_note(result["sweep"])]
    if result.get("processes"):
        parts += ["## Whole processes", process_table(result["processes"]), process_note(result["processes"])]
    return "\n\n".join(parts)


def lines_by_use(lines: list[Line]) -> dict[str, list[Line]]:
    """Return the lines of the grid by use."""
    return {use: found for use in USES if (found := [line for line in lines if line["use"] == use])}


def grid_table(lines: list[Line]) -> str:
    """Return the ratios of the contenders' times, each as median and quartiles over the rounds."""
    headings = ("d_in x d_sae", "frequencies", "rows", "L0", "features on", "PyTorch original / this",
                "best alternative / this", "this / floor", "this / product", "this, ms")  # fmt: skip
    rows = []
    for line in lines:
        best = line["best_alternative"]
        rows.append([
            size_cell(line), line["frequencies"], str(line["rows"]), l0_cell(line), f"{line['fired_share']:.1%}",
            ratio_of(line, THIS, ORIGINAL), f"{ratio_of(line, THIS, best)} {CONTENDERS[best].title}" if best else "",
            ratio_of(line, FLOOR, THIS), ratio_of(line, PRODUCT, THIS), time_cell(line, THIS),
        ])  # fmt: skip
    return markdown_table(headings, rows)


def rival_table(lines: list[Line]) -> str:
    """Return the time of every contender that a user can run instead, divided by that of this project."""
    headings = ("d_in x d_sae", "frequencies", "rows", *(CONTENDERS[name].title for name in ALTERNATIVES))
    return markdown_table(headings, [
        [size_cell(line), line["frequencies"], str(line["rows"]),
         *(ratio_of(line, THIS, name) for name in ALTERNATIVES)]
        for line in lines
    ])  # fmt: skip


def ahead_note(lines: list[Line]) -> str:
    """Return for each use which alternatives take less time than this project, by the medians, and how much less."""
    sentences = []
    for use, of_use in lines_by_use(lines).items():
        found = []
        for name in ALTERNATIVES:
            ratios = [line["over_this"][name][0] for line in of_use if name in line["over_this"]]
            if ahead := [ratio for ratio in ratios if ratio < 1]:
                share = " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (min(ahead), max(ahead))))
                found.append(
                    f"{CONTENDERS[name].title} in {len(ahead)} of {len(ratios)} rows, with {share} of this project's"
                )
        less = "; ".join(found) if found else f"no alternative, in any of {len(of_use)} rows"
        sentences.append(f"With {USES[use].title}, less time is taken by {less}.")
    return "\n\n".join(sentences)


def grid_note(result: Line) -> str:
    """Return how the grid was measured, and which contenders are missing."""
    measured = result["grid_measured"]
    libraries = ("torch", "onnxruntime", "numpy", *(one.library for one in CONTENDERS.values() if one.library))
    versions = ", ".join(f"{name} {measured[name]}" for name in libraries if measured.get(name))
    reasons = {name: reason for line in result["grid"] for name, reason in line["absent"].items()}
    absent = "".join(f" {CONTENDERS[name].title} is missing: {reason}." for name, reason in sorted(reasons.items()))
    return (
        "Each contender runs in its own process, and they take turns in random order. Each value is the median over "
        "rounds, with the quartiles in brackets. Features on: for any of the rows. Product: the encoder's, in ONNX "
        "Runtime, OpenVINO or NumPy, whichever is fastest. Floor: the product, and a copy of everything else that is "
        f"written. {measured['date']}, {measured['processor']}, {measured['threads']} threads each, "
        f"Python {measured['python']}, {versions}.{absent}"
    )


def sweep_table(lines: list[Line]) -> str:
    """Return the time of the session's choice of graph and of the dense graph, at every sparsity."""
    headings = ("d_in x d_sae", "rows", "L0", "features on", "`model`, ms", "this, ms", "this / `model`")
    rows = [[size_cell(line), str(line["rows"]), l0_cell(line), f"{line['fired_share']:.1%}",
             time_cell(line, MODEL_GRAPH), time_cell(line, THIS), ratio_of(line, MODEL_GRAPH, THIS)]
            for line in lines]  # fmt: skip
    return markdown_table(headings, rows)


def sweep_note(lines: list[Line]) -> str:
    """Return where the session's choice is slowest, compared with the dense graph, and whether that is too slow."""
    line = slowest(lines)
    ratio = line[f"over_{MODEL_GRAPH}"][THIS]
    verdict = "more" if ratio[0] > LARGEST_RATIO else "not more"
    return (
        f"At most {ratio_cell(ratio)} of the dense graph's time, at L0 {line['l0_mean']:.0f} with {line['rows']} rows: "
        f"{verdict} than {LARGEST_RATIO - 1:.0%} slower."
    )


def process_table(result: Line) -> str:
    """Return the time, the memory and the installed size of whole processes."""
    few, many = PROCESS_ROWS
    headings = ("", "start to first result, s", "over this", f"peak memory, {few} row", f"{many} rows", "to install")
    rows = []
    for name, process in PROCESSES.items():
        way = result["ways"][name]
        memory = [f"{way['resident_bytes'][str(count)] / 1e6:.0f} MB" for count in PROCESS_ROWS]
        seconds, install = f"{way['seconds'][0]:.2f}", f"{way['install']['bytes'] / 1e6:.0f} MB"
        rows.append([process.title, seconds, ratio_cell(way["over_this"]), *memory, install])
    return markdown_table(headings, rows)


def process_note(result: Line) -> str:
    """Return how the processes were measured."""
    return (
        f"An SAE of {result['d_in']} x {result['d_sae']}, {result['weights_bytes'] / 1e6:.0f} MB of weights in the "
        f"page cache, {result['runs']} runs each. Memory includes the pages of mapped files. To install: the "
        "distributions that each way requires, directly and indirectly, without bytecode."
    )


def ratio_of(line: Line, base: str, name: str) -> str:
    """Return the ratio of a contender's time to that of a base, or nothing if it was not measured."""
    return ratio_cell(line[f"over_{base}"].get(name))


def l0_cell(line: Line) -> str:
    """Return the mean and the standard deviation of L0 over a line's tokens."""
    digits = 1 if line["l0_mean"] < 1000 else 0
    return f"{line['l0_mean']:.{digits}f} ± {line['l0_std']:.{digits}f}"


def time_cell(line: Line, name: str) -> str:
    """Return a contender's median time in milliseconds."""
    milliseconds = line["ms"][name][0]
    return f"{milliseconds:.{2 if milliseconds >= 1 else 3}f}"
