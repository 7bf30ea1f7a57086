"""The package `runtime` works as a copy under another name, beside a module of the same name."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.samples import ROOT, TINY

PROGRAM = """
import pickle, pkgutil, sys
import numpy as np
from my_service import sae_runtime
from my_service.sae_runtime import SAEError, SAESession, verify

for found in pkgutil.walk_packages(sae_runtime.__path__, "my_service.sae_runtime."):
    if not found.name.endswith("__main__"):
        __import__(found.name)
with SAESession(sys.argv[1]) as sae:
    assert sae.top_features(np.ones((2, 6), np.float32), k=2).indices.shape == (2, 2)
    assert type(pickle.loads(pickle.dumps(sae))) is SAESession
    try:
        sae.encode(np.ones((2, 5), np.float32))
    except SAEError as error:
        print(error)
assert verify(sys.argv[1]).failures == []
assert "runtime" not in sys.modules
import runtime
print(runtime.__file__)
"""


@pytest.fixture
def service(tmp_path):
    """A folder with a copy of the package in `my_service`, and a module `runtime` of somebody else."""
    shutil.copytree(
        ROOT / "runtime", tmp_path / "my_service" / "sae_runtime", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "runtime.py").write_text("")
    (tmp_path / "main.py").write_text(PROGRAM)
    return tmp_path


def run(service, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(service)}
    return subprocess.run(
        [sys.executable, *arguments, TINY], cwd=service, env=environment, capture_output=True, text=True
    )  # fmt: skip


def test_a_copy_under_another_name_works(service):
    done = run(service, "main.py")
    assert done.returncode == 0, done.stderr
    message, other = done.stdout.splitlines()
    assert "takes (..., 6)" in message
    assert other == str(service / "runtime.py")


def test_its_commands_work(service):
    done = run(service, "-m", "my_service.sae_runtime", "verify")
    assert (done.returncode, "hook_sae_acts_post" in done.stdout) == (0, True), done.stderr


def test_without_the_copy_the_other_module_is_found(service):
    (service / "main.py").write_text("from runtime import SAESession\n")
    done = run(service, "main.py")
    assert f"cannot import name 'SAESession' from 'runtime' ({service / 'runtime.py'})" in done.stderr
