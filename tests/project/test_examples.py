"""Each example has a page of one screen, a make target, and links that lead somewhere."""

import re

import pytest

from tests.support.samples import ROOT

EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if (path / "README.md").exists())


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_its_page_is_short_and_names_its_target(folder):
    text = (folder / "README.md").read_text()
    assert len(text.splitlines()) <= 60
    assert f"make example-{folder.name}" in text
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (folder / link).exists(), link
    for file in re.findall(r"^\| `([\w.]+\.(?:py|mjs|hpp|cpp|sh))`", text, re.MULTILINE):
        assert (folder / file).exists(), file


def test_the_target_examples_makes_every_example():
    (line,) = re.findall(r"^examples: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(line.split()) >= {f"example-{folder.name}" for folder in EXAMPLES}
