"""Devices: what was asked for runs, or is an error that says what is missing; fakes stand for ONNX Runtime."""

import ctypes
import re
import sys

import onnx
import onnxruntime as ort
import pytest
from conftest import TINY, normal
from onnx import TensorProto, helper

from runtime import ProviderError, SAESession, providers


def test_the_probe_is_what_onnx_makes_of_it():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model.SerializeToString() == providers.PROBE
    onnx.checker.check_model(onnx.load_from_string(providers.PROBE), full_check=True)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "", "cuda:0:1"])
def test_other_names_are_refused(name):
    with pytest.raises(ProviderError, match=f'device is {name!r}; it must be "auto", "cpu", "cuda" or'):
        SAESession(TINY, name)


class FakeSession:
    """Stands for ONNX Runtime's, which would need the card: it says where it runs."""

    made: list = []  # noqa: RUF012
    runs_on = None
    error = None

    def __init__(self, model, options, providers):
        type(self).made.append((model, options, providers))
        if self.error:
            raise self.error
        self.model = model

    def get_providers(self):
        return [self.runs_on or self.made[-1][2][0][0]]


@pytest.fixture
def cuda(monkeypatch):
    """Make this machine look as if it had onnxruntime-gpu; sessions are fakes."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [providers.CUDA, providers.CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write("Failed to load it"), raising=False)
    fake = type("Fake", (FakeSession,), {"made": []})
    monkeypatch.setattr(ort, "InferenceSession", fake)
    return fake


@pytest.mark.parametrize(("name", "index"), [("cuda", "0"), ("cuda:0", "0"), ("cuda:3", "3"), ("auto", "0")])
def test_cuda_is_probed_and_asked_for_full_float32_with_no_fall_back(cuda, capsys, name, index):
    device = providers.find_device(name)
    assert device.name == f"cuda:{index}"
    ((model, options, asked),) = cuda.made
    assert model == providers.PROBE
    assert asked == [(providers.CUDA, {"device_id": index, "use_tf32": "0"})]
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert capsys.readouterr().out == ""  # what preload_dlls prints is in the error, if there is one


def test_a_session_that_ends_up_elsewhere_is_an_error(cuda):
    cuda.runs_on = providers.CPU
    with pytest.raises(ProviderError, match="A session for cuda:0 started on CPUExecutionProvider instead"):
        providers.start_session("model.onnx", providers.Device("cuda:0", providers.CUDA, {}))
    with pytest.raises(ProviderError, match="cuda:0 was asked for, but CUDA does not start"):
        providers.find_device("cuda")


def test_a_missing_driver_and_library_are_named(cuda, monkeypatch):
    cuda.error = RuntimeError("This session contains graph nodes that are assigned to the default CPU EP")

    def load(name, mode=0):
        if name.endswith("providers_shared.so"):
            return
        raise OSError(f"{'libcublasLt.so.13' if 'onnxruntime' in name else name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(ort, "cuda_version", "13.0", raising=False)
    with pytest.raises(ProviderError) as error:
        SAESession(TINY, "cuda")
    for part in ("cuda:0 was asked for, but CUDA does not start", "no NVIDIA driver (libcuda.so.1 is missing",
                 "libcublasLt.so.13: cannot open shared object file", "needs CUDA 13.0 and cuDNN 9",
                 'pip install "onnxruntime-gpu[cuda,cudnn]"'):  # fmt: skip
        assert part in str(error.value)


def test_what_else_goes_wrong_is_passed_on(cuda, monkeypatch):
    cuda.error = RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
    monkeypatch.setattr(ctypes, "CDLL", lambda name, mode=0: None)
    with pytest.raises(ProviderError, match="does not start: CUDA failure 100: no CUDA-capable device"):
        providers.find_device("cuda")


def test_auto_falls_to_the_cpu_and_says_so(cuda):
    cuda.error = RuntimeError("no")
    assert providers.find_device("auto").name == "cpu"


def test_a_wheel_without_cuda(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: [providers.CPU])
    message = f"cuda:1 was asked for, but the onnxruntime {ort.__version__} installed here is built without CUDA: pip"
    with pytest.raises(ProviderError, match=re.escape(message)):
        SAESession(TINY, "cuda:1")
    with SAESession(TINY, "auto") as session:
        assert session.device == "cpu"
        session(normal(6))


def test_the_log_is_as_loud_as_before_a_probe(cuda, monkeypatch):
    levels = []
    monkeypatch.setattr(ort, "set_default_logger_severity", levels.append)
    providers.find_device("auto")
    assert levels == [providers.LOG_FATAL, providers.LOG_WARNING]


@pytest.mark.gpu
def test_parity_on_cuda():
    from runtime import verify

    report = verify(TINY, "cuda")
    assert "cuda:0" in report.title
    assert report.failures == []
