"""ONNX Runtime is imported with its telemetry off; if it is missing, an error says which build to install."""

import os
import subprocess
import sys

import pytest

from runtime._onnxruntime import is_allowed
from tests.support.samples import ROOT, TINY

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name={missing!r})

sys.meta_path.insert(0, Block())
import runtime
"""
SWITCH = "ORT_DISABLE_TELEMETRY"
NEEDED = ("PATH", "HOME", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Variables that a process gets. ONNX Runtime sends nothing where CI, GITHUB_ACTIONS or a similar one is set, and where
it sends nothing in any case, no test can see that it was turned off."""


def run(code, home=None, **switch):
    environment = {name: os.environ[name] for name in NEEDED if name in os.environ}
    environment |= {"PYTHONPATH": str(ROOT), **({"HOME": str(home)} if home else {}), **switch}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60,
                          env=environment)  # fmt: skip


def test_without_onnxruntime_the_error_names_the_extras():
    done = run(BLOCK.format(blocked="onnxruntime", missing="onnxruntime"))
    assert done.returncode == 1
    assert 'pip install "saeexport[cpu]"' in done.stderr
    assert 'pip install "saeexport[gpu]"' in done.stderr


def test_a_broken_onnxruntime_keeps_its_own_error():
    done = run(BLOCK.format(blocked="onnxruntime", missing="coloredlogs"))
    assert done.returncode == 1
    assert "saeexport[cpu]" not in done.stderr


@pytest.mark.parametrize("package", ["runtime", "saeexport"])
def test_no_file_and_no_thread_of_its_telemetry_appears(tmp_path, package):
    count = "import os; print(len(os.listdir('/proc/self/task')))"
    alone = run(f"import numpy, onnxruntime; {count}", tmp_path, **{SWITCH: "1"})
    done = run(f"import {package}; {count}" if package == "runtime" else f"import {package}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("Microsoft"))
    if package == "runtime":
        assert done.stdout == alone.stdout


def test_a_forked_child_exits():
    code = f"""
import os, sys, numpy, runtime
session = runtime.SAESession({str(TINY)!r}, "cpu", threads=1)
session(numpy.ones((1, 6), "float32"))
child = os.fork()
if child == 0:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code).stdout == "7\n"


def test_what_the_user_has_set_is_respected():
    done = run(f"import os, runtime; print(os.environ[{SWITCH!r}])", **{SWITCH: "0"})
    assert done.stdout == "0\n"


def test_imported_too_late_its_events_are_still_turned_off():
    code = "import onnxruntime; onnxruntime.disable_telemetry_events = lambda: print('off'); import runtime"
    assert run(code).stdout == "off\n"
    assert run(code, **{SWITCH: "0"}).stdout == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows decides in another way")
@pytest.mark.parametrize("value", ["1", "true", "Yes", "ON", "y", "1 ", "0", "", "off", "2"])
def test_the_values_that_turn_it_off_are_those_of_onnxruntime(tmp_path, value):
    done = run("import onnxruntime; print(onnxruntime.__version__)", tmp_path, **{SWITCH: value})
    if tuple(map(int, done.stdout.split(".")[:2])) < (1, 29):
        pytest.skip("wheels before 1.29 do not send telemetry")
    assert bool(list(tmp_path.rglob("Microsoft"))) == is_allowed(value)


def test_the_doctor_of_a_process_says_its_state():
    say = "from runtime.commands.doctor import diagnose; print(diagnose())"
    assert "runtime has set ORT_DISABLE_TELEMETRY=1" in run(say).stdout
    assert "events off, but" in run(f"import onnxruntime; {say}").stdout
    assert "on: ORT_DISABLE_TELEMETRY is '0'" in run(say, **{SWITCH: "0"}).stdout
