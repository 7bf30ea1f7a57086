"""What `make test-hosts` asks for can be installed: its constraints pin every package, in a version that is allowed."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib")  # of Python 3.11
ROOT = Path(__file__).parents[2]


def pins():
    lines = (ROOT / "tests" / "hosts" / "constraints.txt").read_text().splitlines()
    named = (line.split("==") for line in lines if not line.startswith("#"))
    return {normalized(name): version for name, version in named}


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def asked():
    """Return the requirements of the packages and extras that the Makefile installs."""
    makefile = (ROOT / "Makefile").read_text()
    extras, others = re.search(
        r'--constraint tests/hosts/constraints.txt .*\n.*"\.\[(.*?)\]" (.*)\n', makefile
    ).groups()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + [
        line for extra in extras.split(",") for line in project["optional-dependencies"][extra]
    ]
    return [Requirement(line) for line in (*listed, *others.split())]


def test_every_requirement_is_pinned_in_a_version_that_it_allows():
    assert {normalized(each.name) for each in asked()} > {"torch", "optimum-onnx", "onnxruntime-genai", "tokenizers"}
    for each in asked():
        assert each.specifier.contains(pins()[normalized(each.name)]), each


def test_what_cannot_be_installed_together_would_be_found():
    hub = Requirement("huggingface_hub>=1.31,<3")  # of the extra "test", which transformers 4 excludes
    assert not hub.specifier.contains(pins()["huggingface-hub"])
