"""`python -m runtime doctor`: which devices of a machine can run artifacts, and why not."""

import importlib.metadata

import onnxruntime as ort
import pytest

from runtime import ProviderError, _onnxruntime, read_artifact
from runtime.commands import doctor
from runtime.commands.main import main
from runtime.devices import capabilities
from tests.support.samples import TINY
from tests.support.simulated_cuda import simulate


def line(text, name):
    (found,) = [line for line in text.splitlines() if line.split("  ")[0].rstrip() == name]
    return found


def no_driver():
    raise ProviderError("no NVIDIA driver (libcuda.so.1 is missing)")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for module in (doctor, capabilities):
        monkeypatch.setattr(module, "driver", no_driver)


def test_a_machine_without_a_gpu(no_gpu, capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "yes: float32, int8" in line(text, "cpu")
    assert "none: no NVIDIA driver" in line(text, "driver")
    assert f"no: the onnxruntime {ort.__version__} installed here is built without CUDA" in line(text, "cuda:0")
    assert "no: " in line(text, "tensorrt:0")


@pytest.fixture
def machine(monkeypatch):
    machine = simulate(monkeypatch, gpus=2)
    monkeypatch.setattr(doctor, "driver", lambda: machine)
    return machine


def test_a_machine_with_two_gpus(machine):
    text = doctor.diagnose()
    assert line(text, "driver").endswith("runs CUDA up to 13.0, 2 GPUs")
    assert "Simulated GPU, compute capability 9.0" in line(text, "GPU 1")
    for name in ("cuda:0", "cuda:1", "tensorrt:0", "tensorrt:1"):
        assert line(text, name).endswith("yes: float32, float16, bfloat16, tf32")


def test_an_older_gpu_lacks_dtypes(monkeypatch):
    machine = simulate(monkeypatch, capability=(7, 5))
    monkeypatch.setattr(doctor, "driver", lambda: machine)
    assert line(doctor.diagnose(), "cuda:0").endswith("yes: float32, float16")


def test_an_artifact_is_checked_for_each_device(machine, capsys, monkeypatch):
    assert main(["doctor", str(TINY)]) == 0
    assert "yes" in line(capsys.readouterr().out, "cuda:0")
    monkeypatch.setattr(doctor, "check_runs", lambda *_: no_driver())
    assert "no: no NVIDIA driver" in line(doctor.diagnose(read_artifact(TINY)), "cuda:0")


def test_both_wheels_at_once_are_reported(no_gpu, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.31.1")
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are both installed" in line(doctor.diagnose(), "warning")


@pytest.mark.parametrize(
    ("chosen", "imported_before", "says"),
    [
        (
            None,
            False,
            "off: runtime has set ORT_DISABLE_TELEMETRY=1; set it yourself for programs that use onnxruntime",
        ),
        ("1", False, "off: ORT_DISABLE_TELEMETRY is '1'"),
        (" TRUE", True, "off: ORT_DISABLE_TELEMETRY is ' TRUE'"),
        (None, True, "events off, but onnxruntime was imported before runtime"),
        ("0", False, "on: ORT_DISABLE_TELEMETRY is '0'; set it to 1 before Python starts"),
        ("", True, "on: ORT_DISABLE_TELEMETRY is ''; set it to 1 before Python starts"),
    ],
)
def test_the_state_of_telemetry(no_gpu, monkeypatch, chosen, imported_before, says):
    monkeypatch.setattr(_onnxruntime, "CHOSEN_BY_USER", chosen)
    monkeypatch.setattr(_onnxruntime, "IMPORTED_BEFORE", imported_before)
    assert says in line(doctor.diagnose(), "telemetry")
