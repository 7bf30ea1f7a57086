"""An installation without an ONNX Runtime says which one to install."""

import subprocess
import sys

from tests.support.samples import ROOT

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name={missing!r})

sys.meta_path.insert(0, Block())
import runtime
"""


def import_runtime(blocked, missing):
    code = BLOCK.format(blocked=blocked, missing=missing)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_without_onnxruntime_the_error_names_the_extras():
    done = import_runtime("onnxruntime", "onnxruntime")
    assert done.returncode == 1
    assert 'pip install "saeexport[cpu]"' in done.stderr
    assert 'pip install "saeexport[gpu]"' in done.stderr


def test_a_broken_onnxruntime_keeps_its_own_error():
    done = import_runtime("onnxruntime", "coloredlogs")
    assert done.returncode == 1
    assert "saeexport[cpu]" not in done.stderr
