"""TensorRT's libraries are found, asked, or named as missing; a fake stands for the dynamic linker."""

import ctypes
from types import SimpleNamespace

import onnxruntime as ort
import pytest

from runtime.devices.tensorrt import library


class FakeLibraries:
    """Stands for the dynamic linker: some libraries are there, and what was loaded is remembered."""

    def __init__(self, there, number=100900):
        self.there, self.number, self.loaded = there, number, []

    def __call__(self, name, mode=ctypes.DEFAULT_MODE):
        if not any(name.endswith(known) for known in self.there):
            raise OSError(f"{name}: cannot open shared object file")
        self.loaded.append((name, mode))
        return SimpleNamespace(getInferLibVersion=lambda: self.number)


@pytest.fixture
def linker(monkeypatch):
    def install(*there, **more):
        fake = FakeLibraries(there, **more)
        monkeypatch.setattr(ctypes, "CDLL", fake)
        return fake

    return install


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Pip's package of TensorRT's libraries, installed."""
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('it is found without being imported')")
    (folder / "libnvinfer.so.10").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_pips_libraries_are_loaded_for_all_in_the_order_of_their_needs(linker, package):
    fake = linker(*library.LIBRARIES)
    assert library.preload_tensorrt()
    names = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
    assert fake.loaded == [(str(package / name), ctypes.RTLD_GLOBAL) for name in names]


def test_without_the_package_or_with_another_tensorrts_nothing_is_loaded(linker, package):
    fake = linker(*library.LIBRARIES)
    (package / "libnvinfer.so.10").rename(package / "libnvinfer.so.11")
    assert not library.preload_tensorrt()
    assert fake.loaded == []


def test_a_package_that_does_not_load_is_left_for_the_message(linker, package):
    linker()
    assert not library.preload_tensorrt()


@pytest.mark.parametrize(("number", "version"), [(100900, "10.9.0"), (101401, "10.14.1")])
def test_the_version_is_the_librarys(linker, number, version):
    linker("libnvinfer.so.10", number=number)
    assert library.tensorrt_version() == version


def test_no_library_has_no_version(linker):
    linker()
    assert library.tensorrt_version() is None


@pytest.mark.parametrize(("cuda", "wheel"), [("13.0", "tensorrt-cu13<11"), ("12.8", "tensorrt-cu12<11")])
def test_a_missing_library_is_named_with_what_to_install(linker, monkeypatch, cuda, wheel):
    monkeypatch.setattr(ort, "cuda_version", cuda, raising=False)
    linker(*library.LIBRARIES)
    assert library.missing_tensorrt() == ""
    linker("libnvinfer.so.10", "libnvinfer_plugin.so.10")
    message = library.missing_tensorrt()
    for part in ("libnvonnxparser.so.10: cannot open", f"onnxruntime {ort.__version__} needs TensorRT 10", wheel):
        assert part in message
