"""Finding a device: it works, or an error says what is missing. Fakes stand for ONNX Runtime and the driver."""

import ctypes
import re
import sys

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from runtime import ProviderError, SAESession
from runtime.devices import select as providers
from runtime.devices.start import LOG_FATAL, PROVIDERS, Device
from tests.support.samples import TINY, normal
from tests.support.simulated_cuda import Machine


def test_the_probe_is_the_model_that_onnx_builds():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model.SerializeToString() == providers.PROBE.read_bytes()
    onnx.checker.check_model(providers.PROBE, full_check=True)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "", "cuda:0:1", "cpu:0", "tensorrt:-1"])
def test_unknown_names_are_refused(name):
    with pytest.raises(
        ProviderError, match=f'device is {name!r}; it must be "auto", "cpu", "cuda", "cuda:N", "tensorrt"'
    ):
        SAESession(TINY, name)


class FakeSession:
    """Stands for ONNX Runtime's session, which would need a GPU. It reports the provider that it runs on."""

    made: list = []  # noqa: RUF012
    runs_on = None
    error = None

    def __init__(self, model, options, providers, enable_fallback, disabled_optimizers):
        assert not enable_fallback
        type(self).made.append((model, options, providers))
        if self.error:
            raise self.error
        self.model = model

    def get_providers(self):
        return [self.runs_on or self.made[-1][2][0][0]]


def no_driver():
    raise ProviderError("no NVIDIA driver (libcuda.so.1 is missing)")


@pytest.fixture
def gpu(monkeypatch):
    """Make this machine look as if it had onnxruntime-gpu and a GPU, with fake sessions."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write("Failed to load it"), raising=False)
    monkeypatch.setattr(ort, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(providers, "driver", Machine)
    monkeypatch.setattr(ctypes, "CDLL", lambda name, mode=0: None)
    fake = type("Fake", (FakeSession,), {"made": []})
    monkeypatch.setattr(ort, "InferenceSession", fake)
    return fake


@pytest.mark.parametrize(
    ("name", "kind", "index"),
    [("cuda", "cuda", 0), ("cuda:0", "cuda", 0), ("cuda:3", "cuda", 3), ("auto", "cuda", 0),
     ("tensorrt", "tensorrt", 0), ("tensorrt:1", "tensorrt", 1)],
)  # fmt: skip
def test_a_gpu_is_probed_without_a_fallback(gpu, capsys, name, kind, index):
    device = providers.find_device(name)
    assert device == Device(kind, index)
    assert device.name == f"{kind}:{index}"
    ((model, options, asked),) = gpu.made
    assert model == providers.PROBE.read_bytes()
    assert asked == [(PROVIDERS[kind], {"device_id": str(index)})]
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert capsys.readouterr().out == ""  # the output of preload_dlls is hidden


def test_a_session_that_ends_up_elsewhere_is_an_error(gpu):
    gpu.runs_on = PROVIDERS["cpu"]
    with pytest.raises(ProviderError, match="A session for cuda:0 started on CPUExecutionProvider instead"):
        providers.start_session("model.onnx", Device("cuda"))
    with pytest.raises(ProviderError, match="cuda:0 was asked for, but cuda does not start"):
        providers.find_device("cuda")


def loader_without(*missing):
    """Return a loader of libraries that fails for the names with these endings."""

    def load(name, mode=0):
        for library, reason in missing:
            if str(name).endswith(library):
                raise OSError(f"{reason}: cannot open shared object file")

    return load


def test_a_missing_driver_and_library_are_named(gpu, monkeypatch):
    gpu.error = RuntimeError("This session contains graph nodes that are assigned to the default CPU EP")
    monkeypatch.setattr(providers, "driver", no_driver)
    monkeypatch.setattr(ctypes, "CDLL", loader_without(("providers_cuda.so", "libcublasLt.so.13")))
    with pytest.raises(ProviderError) as error:
        SAESession(TINY, "cuda")
    for part in ("cuda:0 was asked for, but cuda does not start", "no NVIDIA driver (libcuda.so.1 is missing",
                 "libcublasLt.so.13: cannot open shared object file", "needs CUDA 13.0 and cuDNN 9",
                 'pip install "onnxruntime-gpu[cuda,cudnn]"'):  # fmt: skip
        assert part in str(error.value)


def test_the_error_lists_the_gpus_that_were_found(gpu, monkeypatch):
    gpu.error = RuntimeError("no")
    monkeypatch.setattr(ctypes, "CDLL", loader_without(("providers_cuda.so", "libcudnn.so.9")))
    with pytest.raises(ProviderError) as error:
        SAESession(TINY, "cuda")
    assert "libcudnn.so.9: cannot open" in str(error.value)
    found = "(found: a driver for CUDA up to 13.0; Simulated GPU with compute capability 9.0)"
    assert str(error.value).endswith(found)


def test_a_missing_tensorrt_is_named(gpu, monkeypatch):
    gpu.error = RuntimeError("no")
    monkeypatch.setattr(ctypes, "CDLL", loader_without(("libnvinfer.so.10", "libnvinfer.so.10")))
    with pytest.raises(ProviderError, match=r"tensorrt:0 was asked for.*libnvinfer.so.10.*needs TensorRT 10: pip"):
        SAESession(TINY, "tensorrt")


def test_a_driver_that_is_too_old_is_named_with_its_version(gpu, monkeypatch):
    gpu.error = RuntimeError("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version")
    old = Machine()
    old.version = "12.4"
    monkeypatch.setattr(providers, "driver", lambda: old)
    with pytest.raises(ProviderError, match=r"runs CUDA up to 12.4, onnxruntime .* needs 13.0: install a newer"):
        providers.find_device("cuda")


def test_a_driver_runs_newer_minor_versions_of_cuda(gpu, monkeypatch):
    gpu.error = RuntimeError("something else")
    monkeypatch.setattr(ort, "cuda_version", "13.2", raising=False)
    with pytest.raises(ProviderError, match="cuda does not start: something else"):
        providers.find_device("cuda")


def test_an_index_beyond_the_gpus_is_an_error_with_their_number(gpu):
    gpu.error = RuntimeError("CUDA failure 101: invalid device ordinal")
    with pytest.raises(ProviderError, match=r"cuda:3 was asked.*there is no GPU 3; the driver \(CUDA 13.0\) finds 1"):
        providers.find_device("cuda:3")


def test_other_errors_are_quoted(gpu):
    gpu.error = RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
    with pytest.raises(ProviderError, match="does not start: CUDA failure 100: no CUDA-capable device"):
        providers.find_device("cuda")


def test_auto_is_the_cpu_if_no_session_starts_on_the_gpu(gpu):
    gpu.error = RuntimeError("no")
    assert providers.find_device("auto").name == "cpu"
    assert len(gpu.made) == 1


def test_auto_is_the_cpu_without_a_probe_if_there_is_no_driver(gpu, monkeypatch):
    monkeypatch.setattr(providers, "driver", no_driver)
    assert providers.find_device("auto").name == "cpu"
    assert gpu.made == []  # a failed probe would write to ONNX Runtime's log


@pytest.mark.parametrize(
    ("name", "provider"), [("cuda:1", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_a_wheel_without_the_provider(monkeypatch, name, provider):
    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDERS["cpu"]])
    message = f"was asked for, but the onnxruntime {ort.__version__} installed here is built without {provider}: pip"
    with pytest.raises(ProviderError, match=re.escape(message)):
        SAESession(TINY, name)
    with SAESession(TINY, "auto") as session:
        assert session.device == "cpu"
        session(normal(6))


@pytest.mark.parametrize("error", [None, RuntimeError("no")])
def test_the_severity_of_the_process_wide_log_stays_as_the_user_set_it(gpu, monkeypatch, error):
    def touched(value):
        raise AssertionError("ONNX Runtime cannot tell the severity that the user had set, so it cannot be restored")

    for name in ("set_default_logger_severity", "set_default_logger_verbosity"):
        monkeypatch.setattr(ort, name, touched)
    gpu.error = error
    assert providers.find_device("auto").kind == ("cpu" if error else "cuda")
    assert bool(providers.unavailable_reason(Device("tensorrt"))) == bool(error)
    (_, options, _), *_ = gpu.made
    assert options.log_severity_level == LOG_FATAL  # of the session alone
