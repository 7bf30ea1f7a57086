"""Correct code of users passes `mypy --strict`, and wrong code does not."""

import re
import subprocess
import sys

from tests.support.samples import ROOT

SNIPPETS = ROOT / "tests" / "typing" / "user_snippets.py"
HEAD = """\
import numpy as np
import numpy.typing as npt
from runtime import SAESession, Tensor


class Own(SAESession):
    pass


def wrong(sae: SAESession, x: npt.NDArray[np.float32], card: Tensor) -> None:
"""
WRONG = {
    "sae.encode(card).max()": "union-attr",
    "sae.run_with_cache(card)[1]['hook_sae_output'].sum()": "union-attr",
    "sae.top_features(card, 5).values.max()": "union-attr",
    "sae.run_with_cache(x, return_output=False)[0].mean()": "attr-defined",
    "sae.steer(x, {}, return_output=False)[0].mean()": "attr-defined",
    "sae.hook_dict['hook_sae_input'].nam": "attr-defined",
    "sae.top_features(x, 'five')": "call-overload",
    "sae.W_dec = x": "misc",
}


def errors_of(text, tmp_path):
    """Return the (line, error code) pairs that `mypy --strict` reports for a user's file."""
    file = tmp_path / "snippet.py"
    file.write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.findall(r"snippet\.py:(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.MULTILINE)
    assert run.returncode == bool(found), run.stdout + run.stderr
    return [(int(line), code) for line, code in found]


def test_what_users_write_passes(tmp_path):
    assert errors_of(SNIPPETS.read_text(), tmp_path) == []


def test_what_is_wrong_fails(tmp_path):
    lines = "".join(f"    {line}\n" for line in WRONG)
    own_class, first = HEAD[: HEAD.index("class")].count("\n") + 1, HEAD.count("\n") + 1
    assert errors_of(HEAD + lines, tmp_path) == [(own_class, "misc"), *enumerate(WRONG.values(), first)]
