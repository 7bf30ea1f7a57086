"""The code blocks of the documentation, run: `python -m docs.blocks` writes what they print into the pages.

The `python` blocks of a page run in order in one namespace, in a folder of their own in which `models/` can be found.
The `text` block after a block holds its output. A `console` block that starts with `$ ` holds a command line and its
output; other console blocks are not run. `py` blocks need a GPU, the Hugging Face Hub or a grafted host: the tests run
them on a simulated or a small one.

`tests/project/test_docs.py` compares what the pages show with what their blocks print. Run this module after a change
of a message that a page shows, and read the difference.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docs.generate import ROOT, pages
from runtime.artifact.writing import write_text

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: Word after the opening fence.
        code: Text between the fences.
        start: Position of the code in the page.
    """

    language: str
    code: str
    start: int


class Output(NamedTuple):
    """The output that a page shows for a block, and the output of its run."""

    shown: str
    printed: str
    start: int


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [Block(found[1], found[2], found.start(2)) for found in FENCED.finditer(page.read_text("utf-8"))]


def run_page(page: Path) -> Iterator[Output]:
    """Run the blocks of a page in order, in the current folder, and yield their outputs.

    Raises:
        RuntimeError: A command line failed.
    """
    namespace: dict[str, object] = {}
    blocks = blocks_of(page)
    for block, following in zip(blocks, [*blocks, Block("", "", 0)][1:], strict=True):
        if block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.code, f"{page.name}, block at {block.start}", "exec"), namespace)
            text = following if following.language == "text" else Block("text", "", 0)
            yield Output(text.code, printed.getvalue(), text.start)
        elif block.language == "console" and block.code.startswith("$ "):
            line, shown = block.code.split("\n", 1)
            yield Output(shown, run_line(line.removeprefix("$ ")), block.start + len(line) + 1)


def run_line(line: str) -> str:
    """Return what a command line prints, with this Python's programs first in the path.

    Raises:
        RuntimeError: It failed.
    """
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
    )
    if done.returncode:
        raise RuntimeError(f"`{line}` exits with {done.returncode}: {done.stderr}")
    return done.stdout


def run_apart(page: Path) -> list[Output]:
    """Run the blocks of a page in a folder of their own, with `models/` in it."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(ROOT / "models")
        os.chdir(folder)
        try:
            return list(run_page(page))
        finally:
            os.chdir(before)


def main() -> None:
    """Run the blocks of every page, or of those named, and write their outputs into the pages."""
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or pages()
    for page in chosen:
        outputs = run_apart(page)
        text = page.read_text("utf-8")
        for output in reversed(outputs):
            if output.start:
                text = text[: output.start] + output.printed + text[output.start + len(output.shown) :]
            elif output.printed:
                print(f"{page.name}: a block prints {output.printed!r}, and no text block shows it")
        write_text(page, text)


if __name__ == "__main__":
    main()
