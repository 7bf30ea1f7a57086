"""The TensorRT libraries: loading, version and what is missing, with a fake dynamic linker."""

import ctypes
from types import SimpleNamespace

import onnxruntime as ort
import pytest

from runtime.devices.tensorrt import library

NEEDS = {
    "libnvinfer_plugin.so.10": {"libnvinfer.so.10"},
    "libnvonnxparser.so.10": {"libnvinfer.so.10", "libnvinfer_plugin.so.10"},
}
"""The libraries that each one is linked to."""


class FakeLibraries:
    """Replaces the dynamic linker: some libraries can be found, and those that were loaded are recorded."""

    def __init__(self, there, number=100900):
        self.there, self.number, self.loaded = there, number, []

    def __call__(self, name, mode=ctypes.DEFAULT_MODE):
        if not any(name.endswith(known) for known in self.there):
            raise OSError(f"{name}: cannot open shared object file")
        loaded = {known.rpartition("/")[2] for known, _ in self.loaded}
        if "/" in name and (missing := NEEDS.get(name.rpartition("/")[2], set()) - loaded):
            raise OSError(f"{min(missing)}: cannot open shared object file")
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
    """The folder of an installed pip package with the TensorRT libraries."""
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('the package must not be imported')")
    (folder / "libnvinfer.so.10").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_libraries_of_the_package_are_loaded_each_after_those_it_needs(linker, package):
    fake = linker(*library.LIBRARIES)
    assert library.preload_tensorrt()
    names = {"libnvinfer.so.10", *NEEDS}  # the linker refuses another order
    assert sorted(fake.loaded) == sorted((str(package / name), ctypes.RTLD_GLOBAL) for name in names)


def test_the_package_of_another_major_version_is_not_loaded(linker, package):
    fake = linker(*library.LIBRARIES)
    (package / "libnvinfer.so.10").rename(package / "libnvinfer.so.11")
    assert not library.preload_tensorrt()
    assert fake.loaded == []


def test_a_package_that_does_not_load_is_not_yet_an_error(linker, package):
    linker()
    assert not library.preload_tensorrt()


@pytest.mark.parametrize(("number", "version"), [(100900, "10.9.0"), (101401, "10.14.1")])
def test_the_version_comes_from_the_library(linker, number, version):
    linker("libnvinfer.so.10", number=number)
    assert library.tensorrt_version() == version


def test_without_the_library_there_is_no_version(linker):
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
