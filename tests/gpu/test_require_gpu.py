"""`make gpu` cannot pass without a GPU: with --require-gpu, tests that would be skipped fail."""

import re
import subprocess
import sys

import pytest

from tests.support.devices import why_not_on
from tests.support.samples import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    ("target", "kind", "test"),
    [("gpu", "cuda", "gpu/test_cuda.py::test_every_node_is_on_cuda"),
     ("gpu-tensorrt", "tensorrt", "gpu/test_tensorrt.py::test_an_engine_is_kept")],
)  # fmt: skip
@pytest.mark.slow
def test_without_a_gpu_it_fails(target, kind, test):
    if not why_not_on(kind):
        pytest.skip("this machine has one")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--require-gpu", f"tests/{test}"]
    required = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert required.returncode == 1
    assert "--require-gpu: " in required.stdout
    (recipe,) = re.findall(rf"^{target}: .*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert "pytest --require-gpu -m " in recipe
