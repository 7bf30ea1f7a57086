"""The README is executed, and its tables are compared with the code."""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.costs import export, steer
from benchmarks.cpu.__main__ import RESULTS
from benchmarks.losses import half, int8
from benchmarks.report import tables
from runtime import SAESession
from runtime.artifact.contracts import CONTRACTS
from runtime.artifact.manifest import MANIFEST
from runtime.parity.reference import FACTOR
from saeexport.checkpoints import registry as checkpoints
from tests.support.samples import HOOKS, MINILM, ROOT, normal
from tests.support.simulated_cuda import DeviceArray, simulate, taken_by

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def masked(text):
    """Hide measured numbers: errors such as 2.16e-07."""
    return re.sub(r"\d\.\d+e-\d+", "#", text)


def table(heading):
    """Return the cells of the table whose first heading is this."""
    lines = TEXT.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Be in a folder where `models` is, and where files may be written."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)


def test_the_python_blocks_run_and_print_what_they_say(folder):
    namespace, ran = {}, 0
    for i, (language, code) in enumerate(BLOCKS):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"README block {i}", "exec"), namespace)
        expected = BLOCKS[i + 1][1] if i + 1 < len(BLOCKS) and BLOCKS[i + 1][0] == "text" else ""
        assert printed.getvalue() == expected
        ran += 1
    assert ran == 7


def test_the_blocks_for_a_gpu_run_on_a_simulated_one(folder, monkeypatch):
    machine, taken = simulate(monkeypatch), []
    x = normal(3, 384)
    torch = SimpleNamespace(from_dlpack=lambda tensor: taken.append(taken_by(machine, tensor)))
    blocks = [code for language, code in BLOCKS if language == "py"]
    assert len(blocks) == 1
    namespace = {"SAESession": SAESession, "torch": torch, "x": DeviceArray(machine, x), "x_on_the_host": x}
    exec(compile(blocks[0], "README", "exec"), namespace)
    assert np.array_equal(taken[0], namespace["sae"].encode(x))
    assert namespace["found"].values.shape == (3, 64)
    assert isinstance(namespace["output"], np.ndarray)


def test_the_console_blocks_print_what_they_say(folder):
    commands = [block for language, block in BLOCKS if language == "console" and block.startswith("$ ")]
    assert len(commands) == 2
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    for block in commands:
        command, expected = block.removeprefix("$ ").split("\n", 1)
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, masked(done.stdout)) == (0, masked(expected)), done.stderr


def test_the_two_commands_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([\w-]+)", TEXT + (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_hook_table_has_the_hooks_in_order():
    assert [row[0].strip("`") for row in table("hook, in firing order")] == HOOKS


def test_the_artifact_table_has_its_files():
    names = [row[0].strip("`") for row in table("file")]
    assert sorted(names) == sorted(entry.name for entry in MINILM.iterdir())
    rows = {row[0].strip("`"): row[1] for row in table("file")}
    assert MANIFEST in rows
    for graph, contract in CONTRACTS.items():
        described = rows[f"{graph}.onnx"].replace("`", "")
        hooks = "all six hooks" if list(contract.outputs) == HOOKS else ", ".join(contract.outputs)
        assert described == f"{', '.join(contract.inputs)} to {hooks}"


def test_the_code_map_has_every_module():
    listed = set(re.findall(r"^\| `((?:runtime|saeexport)/\S+\.py)` \|", TEXT, re.MULTILINE))
    modules = {
        str(path.relative_to(ROOT))
        for package in ("runtime", "saeexport")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and str(path.relative_to(ROOT)) != "saeexport/__main__.py"
    }
    assert listed == modules


def test_the_measured_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "models" / "minilm")
    steering = importlib.import_module("steer")
    assert steering.table(json.loads(steering.RESULT.read_text())) in TEXT
    assert steer.table(json.loads(steer.RESULTS.read_text())["rows"]) in TEXT
    assert export.table(json.loads(export.RESULTS.read_text())) in TEXT
    assert int8.table(json.loads(int8.RESULTS.read_text())) in TEXT
    assert half.table(json.loads(half.RESULTS.read_text())) in TEXT
    speed = json.loads(RESULTS.read_text())
    for made in (tables.grid_table(speed["grid"]), tables.sweep_table(speed["sweep"]),
                 tables.process_table(speed["processes"])):  # fmt: skip
        assert made in TEXT


def test_the_table_of_formats_is_that_of_the_code():
    assert checkpoints.table() in TEXT


def test_the_links_lead_somewhere():
    for name in ("README.md", "models/README.md"):
        text = (ROOT / name).read_text()
        headings = {"#" + title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
        for link in re.findall(r"\]\(((?!http)[^)]+)\)", text):
            assert link in headings or (ROOT / name).parent.joinpath(link).exists(), link


def test_the_measured_factor_is_quoted_and_below_the_allowed_one():
    worst = json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text())["worst"]
    worst = max(worst.values())
    assert worst < 0.6 * FACTOR  # one token, a dot product summed by another number of accumulators
    assert f"correct\nprograms is {worst:.1f}." in TEXT
