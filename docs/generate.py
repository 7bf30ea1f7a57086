"""Fills the generated parts of the documentation: `python -m docs.generate` (`make docs`).

A region of a page between `<!-- table: NAME -->` and `<!-- end -->` is made from the measurements in
benchmarks/results, or from the code, by the function of that name in `TABLES`. Images are copied from the folders in
which they are drawn. `tests/project/test_docs.py` fails if a page differs from what this module would write.

Only this module imports the table functions of benchmarks/, models/, tests/hosts/ and tests/mutation/.
"""

import contextlib
import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.costs import export, graft, memory, steer, threads, watch
from benchmarks.cpu.__main__ import RESULTS as SPEED
from benchmarks.cpu.contenders.uses import ALL_HOOKS, FEATURES, WATCH
from benchmarks.gpu.report import tables as gpu
from benchmarks.losses import faults, gates, half, int8
from benchmarks.report import tables
from runtime.artifact.contracts import CONTRACTS, HALF_CONTRACTS
from runtime.artifact.folder import read_artifact
from runtime.artifact.names import HOOK_NAMES
from runtime.artifact.writing import write_text
from saeexport.checkpoints import registry
from saeexport.grafting.names import LAYOUTS
from saeexport.original.architectures import ARCHITECTURES
from tests.hosts import table as tried
from tests.mutation import table as mutation

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
REGION = re.compile(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)

IMAGES = {
    "speed.png": RESULTS / "speed.png",
    "memory.png": RESULTS / "memory.png",
    "gpu.png": RESULTS / "gpu-nvidia-h200.png",
    "steering.png": ROOT / "models" / "minilm" / "steering.png",
}
"""The images of the pages, and the files that they are copied from."""

ENGINES = ROOT / "examples" / "engines" / "engines.json"

GPU = RESULTS / "gpu-nvidia-h200.json"
GPU_CANDIDATES = ("as_is", "gemm", "rides")

EXCERPT_ROWS = (1, 8, 64, 512)
EXCERPT_COLUMNS = {
    "rows": "tokens",
    "L0": "L0",
    "this, ms": "time, ms",
    "PyTorch original / this": "times faster than the PyTorch original",
    "best alternative / this": "times faster than the best alternative",
}
"""The columns of the README's table, by their headings in the full one."""

Cells = list[list[str]]


def main() -> None:
    """Write every page and image that has changed."""
    for page in pages():
        text = page.read_text("utf-8")
        filled = fill(text)
        if filled != text:
            write_text(page, filled)
            print(f"{page.relative_to(ROOT)} was filled")
    (DOCS / "images").mkdir(exist_ok=True)
    for name, source in IMAGES.items():
        shutil.copyfile(source, DOCS / "images" / name)


def pages() -> list[Path]:
    """Return the pages that may have generated regions: README.md and those of the site."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def fill(text: str) -> str:
    """Return the text of a page with its generated regions filled.

    Raises:
        KeyError: A region has a name that is not in `TABLES`.
    """

    def filled(region: re.Match[str]) -> str:
        table = TABLES[region[1]]().replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        return f"<!-- table: {region[1]} -->\n\n{table}\n\n<!-- end -->"

    return REGION.sub(filled, text)


def results(path: Path) -> Any:
    """Return the content of a file of results."""
    return json.loads(path.read_text("utf-8"))


def measured(path: Path, command: str, part: str = "") -> str:
    """Return the sentence that says when, where and by which command a file of results, or a part, was measured."""
    result = results(path)[f"{part}_measured"] if part else results(path)
    machine = f"{result['processor']}, {result['threads']} threads" if "threads" in result else result["processor"]
    names = ("torch", "onnxruntime", "openvino", "sae-lens", "python")
    versions = ", ".join(f"{name} {result[name]}" for name in names if name in result)
    return f"Measured {result['date']} by `{command}` on a CPU ({machine}); {versions}."


def speed() -> str:
    """Return the table of the README: one size, features as frequent as in a real SAE, few to many tokens."""
    grid = results(SPEED)["grid"]
    lines = [
        line
        for line in grid
        if line["use"] == ALL_HOOKS
        and line["d_in"] == 768
        and line["frequencies"] == "realistic"
        and line["rows"] in EXCERPT_ROWS
    ]
    heads, *rows = cells_of(tables.grid_table(lines))
    places = [heads.index(head) for head in EXCERPT_COLUMNS]
    table = table_of(list(EXCERPT_COLUMNS.values()), [[row[place] for place in places] for row in rows])
    return f"{table}\n\n{measured(SPEED, 'make bench', 'grid')}"


def speed_summary() -> str:
    """Return the range of the ratios with all hooks over sizes, frequencies and numbers of tokens, as a sentence."""
    lines = speed_lines(ALL_HOOKS)
    original = [line["over_this"]["original"][0] for line in lines]
    best = [line["over_this"][line["best_alternative"]][0] for line in lines]
    floor = [line["over_floor"]["this"][0] for line in lines]
    return (
        f"`SAESession` is {min(original):.1f} to {max(original):.1f} times faster than the PyTorch original, "
        f"{min(best):.1f} to {max(best):.1f} times faster than the best alternative, and takes {min(floor):.2f} to "
        f"{max(floor):.2f} times the floor."
    )


def speed_lines(use: str) -> list[dict[str, Any]]:
    """Return the lines of the grid of one use."""
    return tables.lines_by_use(results(SPEED)["grid"]).get(use, [])


def gpu_grid() -> str:
    """Return the ratios on a GPU without the columns that only a developer of the benchmark needs."""
    heads, *rows = cells_of(gpu.grid_table(results(GPU)["grid"]))
    places = [i for i, head in enumerate(heads) if not head.startswith(("sum", "products"))]
    return table_of([heads[i] for i in places], [[row[i] for i in places] for row in rows])


def gpu_candidates() -> str:
    """Return the times of the ways to write the graph, a line for each size, precision and number of rows."""
    rows = [
        [*gpu.place_cells(line), *(gpu.time_cell(line["ms"].get(name)) for name in GPU_CANDIDATES)]
        for line in results(GPU)["candidates"]
    ]
    heads = ("product, then sum, ms", "Gemm, ms", "the bias is a row of the matrix, ms")
    return table_of(["d_in x d_sae", "precision", "rows", *heads], rows)


def int8_fidelity() -> str:
    """Return the loss of int8 weights on the real SAE, as a sentence."""
    result = results(int8.RESULTS)
    real, sizes = result["real"], result["bytes"]
    features, acts_pre = real["features"], real["hooks"]["hook_sae_acts_pre"]["artifact"]["token"]
    return (
        f"The weights take {sizes['float32'] / 1e6:.0f} MB in float32 and {sizes['int8'] / 1e6:.0f} MB in int8. "
        f"On the real SAE in `models/`, over {real['tokens']} tokens, `acts_pre` is off by at most {acts_pre:.1%} of "
        "its size; "
        f"{features['kept']:.1%} of the features that are on stay on, {features['gained']:.1%} are new, L0 goes from "
        f"{features['l0_original']:.1f} to {features['l0']:.1f}, and the explained variance from "
        f"{real['explained_original']:.4f} to {real['explained']:.4f}."
    )


def parity_factor() -> str:
    """Return the largest ratio of errors between correct programs, by dtype, as a sentence."""
    result = results(RESULTS / "parity.json")
    worst = ", ".join(f"{value:.1f} in {dtype}" for dtype, value in result["worst"].items())
    return f"The largest factor is {worst}. The largest factor of a column is {result['column']:.1f}."


def steering() -> str:
    """Return the effect of features on the similarity of sentences, as a table."""
    with in_path(ROOT / "models" / "minilm"):
        module = importlib.import_module("steer")
    return module.table(results(module.RESULT))


def graphs() -> str:
    """Return the contracts of the graphs."""
    rows = []
    for name, contract in {**CONTRACTS, **HALF_CONTRACTS}.items():
        hooks = "all six hooks" if contract.outputs == HOOK_NAMES else code(contract.outputs)
        dtypes = [text for text, known in (("float32", CONTRACTS), ("half", HALF_CONTRACTS)) if name in known]
        where = "CPU" if contract.for_cpu else "every device"
        rows.append([f"`{name}.onnx`", code(contract.inputs), hooks, where, ", ".join(dtypes)])
    return table_of(["file", "inputs", "outputs", "written for", "in artifacts of"], rows)


def engines() -> str:
    """Return what the manifest says about the engines of each graph, and which of them run it within its budgets."""
    surveyed = results(ENGINES)
    releases = {name.split()[1]: surveyed.pop(name) for name in list(surveyed) if name.startswith("onnxruntime ")}
    rows = []
    for graph, spec in read_artifact(ROOT / "models" / "minilm-layer3").manifest.graphs.items():
        requires = spec.requires
        assert requires is not None
        written = ["yes" if requires.portable else "no", f"{requires.onnxruntime}"]
        in_onnxruntime = ", ".join(release for release, found in releases.items() if found[graph] == "ok")
        ran = ["yes" if found[graph] == "ok" else "no" for found in surveyed.values()]
        rows.append([f"`{graph}`", *written, in_onnxruntime, *ran])
    heads = ["graph", "`portable`", "`onnxruntime`", f"onnxruntime, of {', '.join(releases)}", *surveyed]
    return table_of(heads, rows)


def formats() -> str:
    """Return the formats of checkpoints: the files that each consists of, and the architectures that it can hold."""
    rows = []
    for form in registry.FORMATS:
        every = set(form.ARCHITECTURES) == set(ARCHITECTURES)
        files = form.NAME.replace("<", "&lt;")
        rows.append([form.TITLE, files, "all" if every else ", ".join(form.ARCHITECTURES)])
    return table_of(["format", "files", "architectures"], rows)


def process_note() -> str:
    """Return the conditions of the whole-process measurement."""
    return f"{tables.process_note(results(SPEED)['processes'])} {measured(SPEED, 'make bench', 'processes')}"


def mutants() -> str:
    """Return the table of the mutants of the proof."""
    result = results(mutation.RESULTS)
    return f"{mutation.table(result)}\n\n{measured(mutation.RESULTS, 'make mutants')}"


def hosts() -> str:
    """Return the table of the hosts that were tried."""
    return tried.table(results(tried.RESULTS))


def hooks_of_layouts() -> str:
    """Return the table of the places of hooks, one row for each hook and one column for each layout."""
    known = dict.fromkeys(hook for layout in LAYOUTS for hook in layout.places)
    rows = [[f"`{hook}`", *(_place(layout.places.get(hook)) for layout in LAYOUTS)] for hook in known]
    return table_of(["hook", *(layout.name for layout in LAYOUTS)], rows)


def _place(entry: tuple[str, str] | None) -> str:
    if entry is None:
        return ""
    child, tensor = entry
    return f"{tensor} of `{child}`" if child else f"{tensor} of the block"


def code(names: Sequence[str]) -> str:
    """Return names in code font, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def cells_of(table: str) -> Cells:
    """Return the cells of a Markdown table: its headings, then its rows."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def table_of(heads: Sequence[str], rows: Cells) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


@contextlib.contextmanager
def in_path(folder: Path) -> Any:
    """Let modules of a folder be imported by their names inside the `with` block."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


TABLES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "speed-summary": speed_summary,
    "speed-all": lambda: tables.grid_table(speed_lines(ALL_HOOKS)),
    "speed-all-rivals": lambda: tables.rival_table(speed_lines(ALL_HOOKS)),
    "speed-features": lambda: tables.grid_table(speed_lines(FEATURES)),
    "speed-features-rivals": lambda: tables.rival_table(speed_lines(FEATURES)),
    "speed-watch": lambda: tables.grid_table(speed_lines(WATCH)),
    "speed-watch-rivals": lambda: tables.rival_table(speed_lines(WATCH)),
    "speed-ahead": lambda: tables.ahead_note(results(SPEED)["grid"]),
    "speed-measured": lambda: measured(SPEED, "make bench", "grid"),
    "sparsities": lambda: tables.sweep_table(results(SPEED)["sweep"]),
    "sparsities-measured": lambda: measured(SPEED, "make bench", "sweep"),
    "sparsities-summary": lambda: tables.sweep_note(results(SPEED)["sweep"]),
    "processes": lambda: tables.process_table(results(SPEED)["processes"]),
    "processes-measured": process_note,
    "export": lambda: export.table(results(export.RESULTS)),
    "export-measured": lambda: measured(export.RESULTS, "make bench-export"),
    "graft": lambda: graft.table(results(graft.RESULTS)),
    "graft-measured": lambda: measured(graft.RESULTS, "make bench-graft"),
    "edits": lambda: steer.table(results(steer.RESULTS)["rows"]),
    "watch": lambda: watch.table(results(watch.RESULTS)["rows"]),
    "watch-measured": lambda: measured(watch.RESULTS, "make bench-watch"),
    "threads": lambda: threads.table(results(threads.RESULTS)["rows"]),
    "threads-measured": lambda: measured(threads.RESULTS, "make bench-threads"),
    "memory": lambda: memory.memory_table(results(memory.RESULTS)["rows"]),
    "memory-times": lambda: memory.time_table(results(memory.RESULTS)["times"]),
    "memory-measured": lambda: measured(memory.RESULTS, "make bench-memory"),
    "edits-measured": lambda: measured(steer.RESULTS, "make bench-steer"),
    "gpu": gpu_grid,
    "gpu-latency": lambda: gpu.latency_table([line for line in results(GPU)["grid"] if line["rows"] == 1]),
    "gpu-requests": lambda: gpu.request_table(results(GPU)["grid"]),
    "gpu-candidates": gpu_candidates,
    "gpu-measured": lambda: gpu.note(results(GPU)),
    "int8": lambda: int8.table(results(int8.RESULTS)),
    "int8-fidelity": int8_fidelity,
    "int8-measured": lambda: measured(int8.RESULTS, "make bench-int8"),
    "half": lambda: half.table(results(half.RESULTS)),
    "half-measured": lambda: measured(half.RESULTS, "make bench-half"),
    "parity-factor": parity_factor,
    "gates": lambda: gates.sentence(results(gates.RESULTS)),
    "faults": lambda: faults.table(results(faults.RESULTS)),
    "faults-measured": lambda: measured(faults.RESULTS, "make parity"),
    "steering": steering,
    "graphs": graphs,
    "engines": engines,
    "formats": formats,
    "hosts": hosts,
    "mutants": mutants,
    "hooks-of-layouts": hooks_of_layouts,
}
"""The functions behind the generated regions, by their names."""


if __name__ == "__main__":
    main()
