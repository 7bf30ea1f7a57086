"""`saeexport.export` and `saeexport.verify` are functions, whichever module is imported first."""

import subprocess
import sys

import pytest

CODE = """
import importlib, inspect, sys

def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "saeexport"]:
        del sys.modules[name]

for first in ("saeexport", "saeexport._export", "saeexport.proof.verify", "saeexport.cli", "saeexport.proof.prove"):
    forget()
    importlib.import_module(first)
    import saeexport, saeexport._export, saeexport.proof.verify
    for name in ("export", "verify", "load", "assert_parity"):
        assert inspect.isfunction(getattr(saeexport, name)), (first, name)
    assert saeexport.verify is saeexport.proof.verify.verify, first
    assert saeexport.export is saeexport._export.export, first
"""


@pytest.mark.slow
def test_public_functions_are_not_shadowed_by_modules():
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=300)
