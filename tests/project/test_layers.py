"""The wings of the packages import in one direction only, and the contract for this rejects violations."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.samples import ROOT

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def lint(folder):
    return subprocess.run([LINT_IMPORTS, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_the_wings_are_in_order():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("runtime/arrays/tensor.py", "from ..session import session", "runtime: each wing"),
        ("runtime/devices/options.py", "from ..commands.main import main", "runtime: each wing"),
        ("saeexport/original/hooked_sae.py", "from ..proof import prove", "saeexport: each wing"),
        ("runtime/parity/verify.py", "import saeexport", "runtime and its pytest plugin run"),
        ("runtime/session/session.py", "def late():\n    import torch", "runtime and its pytest plugin run"),
        ("pytest_saeexport/__init__.py", "import saeexport", "runtime and its pytest plugin run"),
        ("runtime/new_wing/__init__.py", "", "runtime: each wing"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(tmp_path, module, line, broken):
    for path in [ROOT / "pyproject.toml", *(p for package in ("runtime", "saeexport", "pytest_saeexport")
                                            for p in (ROOT / package).rglob("*.py"))]:  # fmt: skip
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    changed = tmp_path / module
    changed.parent.mkdir(exist_ok=True)
    changed.write_text(f"{changed.read_text() if changed.exists() else ''}\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout
    assert broken in done.stdout
