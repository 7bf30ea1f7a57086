"""A process that runs an SAE on a CPU imports what it needs, and nothing else."""

import ast
import subprocess
import sys

import pytest

import runtime
from tests.support.samples import ROOT, TINY

LATER = (
    "runtime.hosts", "runtime.parity", "runtime.hub", "runtime.devices.cuda.backend",
    "runtime.devices.tensorrt.backend", "safetensors", "concurrent", "logging", "inspect", "urllib", "tempfile",
)  # fmt: skip


def imported(code, names):
    """Return which modules are imported after some code, other than those that numpy and ONNX Runtime import."""
    script = f"""
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy, onnxruntime
before = set(sys.modules)
{code}
print(*(name for name in {names!r} if name in set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


def test_a_call_on_a_cpu_imports_no_hosts_proofs_gpus_or_hub():
    x = "numpy.ones((1, 6), 'float32')"
    code = f"import runtime\nsae = runtime.SAESession({str(TINY)!r}, 'cpu')\nsae({x}), sae.watch([1])({x})"
    assert imported(code, LATER) == []
    assert imported("import runtime\nruntime.verify", LATER)  # or nothing would be noticed


def test_every_public_name_is_there():
    """Each name is the first that is imported."""
    code = f"""
for name in {runtime.__all__!r}:
    for module in [module for module in sys.modules if module.partition(".")[0] == "runtime"]:
        del sys.modules[module]
    exec(f"from runtime import {{name}}")
"""
    assert imported(code, ["runtime"]) == ["runtime"]
    assert {*runtime.__all__} <= {*dir(runtime)}
    with pytest.raises(subprocess.CalledProcessError):
        imported(code.replace(runtime.__all__[-1], "nothing"), ["runtime"])


def test_a_type_checker_sees_the_names_that_are_imported_later():
    tree = ast.parse((ROOT / "runtime" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == runtime._LATER


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="module 'runtime' has no attribute 'nothing'"):
        runtime.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from runtime import nothing  # noqa: F401
