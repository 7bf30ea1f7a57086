"""The pages of the documentation: their blocks run, their tables are up to date, and what they list is complete."""

import ast
import dataclasses
import json
import re
import shlex
import shutil
import typing
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import yaml
from safetensors import safe_open

import runtime
import saeexport
from docs import blocks, generate
from runtime import SAESession
from runtime.artifact import manifest
from runtime.artifact.budgets import FACTOR
from runtime.artifact.contracts import CONTRACTS, HALF_CONTRACTS
from runtime.commands.main import build_parser
from tests.support.hub_protocol import TOKEN
from tests.support.hub_server import HubServer
from tests.support.samples import HOOKS, MINILM, ROOT, TINY, contents, normal
from tests.support.simulated_cuda import DeviceArray, simulate, taken_by

DOCS = ROOT / "docs"
PAGES = generate.pages()
RUN = [page for page in PAGES if any(block.language == "python" or block.code.startswith("$ ")
                                     for block in blocks.blocks_of(page))]  # fmt: skip


def name_of(page):
    return str(page.relative_to(ROOT))


def text_of(name):
    return (DOCS / name).read_text()


def masked(text):
    """Hide measured errors, such as 2.16e-07, which differ from machine to machine."""
    return re.sub(r"\d\.\d+e-\d+", "#", text)


def rows_of(text, heading):
    """Return the cells of every table whose first heading is this."""
    tables = re.findall(rf"^\| {re.escape(heading)} \|.*\n\|[- |:]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in tables for line in table.splitlines()]


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_blocks_print_what_the_page_shows(page):
    for output in blocks.run_apart(page):
        assert masked(output.printed) == masked(output.shown)


def test_pages_with_blocks_are_found():
    names = {name_of(page) for page in RUN}
    assert {"README.md", *(f"docs/{name}.md" for name in (
        "artifact", "columns", "custom-architecture", "exporting", "formats", "interventions", "other-languages",
        "parity", "precision", "quickstart", "running", "serving", "verifying"))} == names  # fmt: skip


def test_a_block_that_prints_something_else_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n```text\n2\n```\n\n```console\n$ echo a\nb\n```\n")
    assert [(output.shown, output.printed) for output in blocks.run_apart(page)] == [("2\n", "1\n"), ("b\n", "a\n")]
    page.write_text("```console\n$ false\n```\n")
    with pytest.raises(RuntimeError, match="`false` exits with 1"):
        blocks.run_apart(page)


def test_the_workflow_is_one_of_github_actions():
    (workflow,) = [block.code for block in blocks.blocks_of(DOCS / "verifying.md") if block.language == "yaml"]
    (job,) = yaml.safe_load(workflow)["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    (command,) = [command for command in commands if command.startswith("python -m runtime ")]
    options = build_parser().parse_args(shlex.split(command.removeprefix("python -m runtime ")))
    (upload,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact")]
    assert options.format == "junit"
    assert (upload["with"]["path"], upload["if"]) == (options.output, "always()")  # a failure is uploaded, too


def test_the_blocks_for_a_gpu_run_on_a_simulated_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    machine, taken = simulate(monkeypatch), []
    x = normal(3, 384)
    torch = SimpleNamespace(from_dlpack=lambda tensor: taken.append(taken_by(machine, tensor)))
    found = not_run_elsewhere("gpu.md")
    assert len(found) == 1
    namespace = {"SAESession": SAESession, "torch": torch, "x": DeviceArray(machine, x), "x_on_the_host": x}
    exec(compile(found[0].code, "gpu.md", "exec"), namespace)
    assert np.array_equal(taken[0], namespace["sae"].encode(x))
    assert namespace["found"].values.shape == (3, 64)
    assert isinstance(namespace["output"], np.ndarray)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub 2.4's own upload
def test_the_blocks_for_the_hub_run_with_a_simulated_one(tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "my-sae")
    monkeypatch.chdir(tmp_path)
    with HubServer() as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.add("OWNER/NAME", {f"layer_3/{name}": data for name, data in contents(TINY).items()})
        repo = hub.repos["OWNER/NAME"]
        repo.branches["v1.0"] = repo.branches["main"]
        namespace = {}
        for block in not_run_elsewhere("hub.md"):
            exec(compile(block.code, "hub.md", "exec"), namespace)
        assert isinstance(namespace["sae"], SAESession)
        assert len(repo.commits) == 2


def not_run_elsewhere(name):
    """Return the `py` blocks of a page; no other page than these has any."""
    found = [(page.name, block) for page in PAGES for block in blocks.blocks_of(page) if block.language == "py"]
    assert {page for page, _ in found} == {"columns.md", "gpu.md", "grafting.md", "hub.md"}
    return [block for page, block in found if page == name]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_generated_tables_are_up_to_date(page):
    text = page.read_text()
    assert generate.fill(text) == text, "run python -m docs.generate"
    assert len(generate.REGION.findall(text)) == text.count("<!-- table:") == text.count("<!-- end -->")


def test_every_generated_table_is_on_a_page():
    shown = [name for page in PAGES for name in generate.REGION.findall(page.read_text())]
    assert set(shown) == set(generate.TABLES)


def test_images_are_those_that_were_drawn():
    assert {image.name for image in (DOCS / "images").iterdir()} == set(generate.IMAGES)
    for name, source in generate.IMAGES.items():
        assert (DOCS / "images" / name).read_bytes() == source.read_bytes(), "run python -m docs.generate"


def test_the_readme_is_short_and_its_speed_table_has_four_rows():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert [row[0] for row in rows_of(text, "tokens")] == ["1", "8", "64", "512"]


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_the_hook_tables_have_the_hooks_in_order(name):
    assert [row[0].strip("`") for row in rows_of((ROOT / name).read_text(), "hook")] == HOOKS


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES if page.is_relative_to(DOCS))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "models" / "README.md", ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_links_have_targets(page):
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}, link


def test_the_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "models" / "README.md"]
    for target in re.findall(r"(?:^|`)make ([\w-]+)", "\n".join(page.read_text() for page in pages), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_site_loads_nothing_from_elsewhere():
    config = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in config
    assert "https://" not in config


def test_the_table_of_folders_is_complete():
    listed = {row[0].strip("`/") for row in rows_of(text_of("architecture.md"), "folder")}
    assert all((ROOT / folder).is_dir() for folder in listed)
    wings = {str(file.parent.relative_to(ROOT)) for package in ("runtime", "saeexport")
             for file in (ROOT / package).rglob("*.py")}  # fmt: skip
    assert wings <= listed
    assert {f"tests/{folder.parent.name}" for folder in (ROOT / "tests").glob("*/__init__.py")} <= listed


def keys_of(kind):
    """Return the keys of a class of the manifest, and of those inside it."""
    for name, hint in typing.get_type_hints(kind).items():
        yield name
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from keys_of(part)


def test_the_specification_has_every_key_of_the_manifest():
    text = text_of("artifact.md")
    keys = set(keys_of(manifest.Manifest))
    assert len(keys) > 45
    assert [key for key in sorted(keys) if not re.search(rf"[`\"]{key}[`\"]", text)] == []


@pytest.mark.parametrize("artifact", [TINY, MINILM], ids=["tiny", "minilm"])
def test_the_specification_has_every_file_and_tensor(artifact):
    text = text_of("artifact.md")
    for file in artifact.iterdir():
        assert f"`{file.name}`" in text
    with safe_open(artifact / "golden.safetensors", "np") as golden:
        for name in golden.keys():  # noqa: SIM118 - it is not a dict
            named = re.sub(r"^(residual|scale)\..*", r"\1.<name>", re.sub(r"\.(float32|tf32)\b", ".<precision>", name))
            assert f"`{named}`" in text or named in HOOKS, name
    with safe_open(artifact / "weights.safetensors", "np") as weights:
        for name in weights.keys():  # noqa: SIM118
            assert f"`{name}`" in text, name


def test_the_specification_has_every_graph_and_property():
    text = text_of("artifact.md")
    for graph in {**CONTRACTS, **HALF_CONTRACTS}:
        assert f"`{graph}.onnx`" in text
    for prop in onnx.load_model(TINY / "model.onnx", load_external_data=False).metadata_props:
        assert f"`{prop.key}`" in text


def messages():
    """Yield the string literals in the code, with a NUL in place of each value of an f-string."""
    for package in ("runtime", "saeexport"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_messages_in_troubleshooting_are_those_of_the_code():
    quoted = [row[0].strip("`") for row in rows_of(text_of("troubleshooting.md"), "message")]
    assert len(quoted) >= 20
    texts = list(messages())
    for message in quoted:
        pattern = re.compile(".*?".join(map(re.escape, message.split("..."))), re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


@pytest.mark.parametrize("package", [runtime, saeexport], ids=lambda package: package.__name__)
def test_the_reference_has_the_public_names(package):
    text = text_of(f"api/{package.__name__}.md")
    shown = re.findall(rf"^::: {package.__name__}\.(\w+)$", text, re.MULTILINE)
    assert len(shown) == len(set(shown))
    of_runtime = [name for name in runtime.__all__ if package is saeexport and f"`{name}`" in text]
    assert sorted({*shown, *of_runtime}) == sorted(package.__all__)


def test_the_quoted_figures_are_those_of_the_code():
    worst = max(json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text())["worst"].values())
    assert worst < 0.6 * FACTOR  # one token, a dot product summed by another number of accumulators
    assert f"budget = {FACTOR:g} * error" in text_of("parity.md")
