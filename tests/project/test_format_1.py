"""Format 1 is frozen: artifacts and grafted hosts that an earlier release wrote are opened, run and verified."""

import dataclasses
import hashlib
import json
import zipfile
from typing import get_origin, get_type_hints

import numpy as np
import pytest
from safetensors.numpy import load_file

import runtime
import runtime.artifact.manifest as manifest_module
import runtime.hosts.manifest as host_manifest_module
import saeexport
from runtime import HostSession, ManifestError, SAESession
from runtime.arrays.dtypes import DTYPES, widened
from runtime.artifact.budgets import FLOOR
from runtime.artifact.files import hash_file
from runtime.artifact.folder import HOST_MANIFEST, read_artifact
from runtime.artifact.manifest import FORMAT_VERSION, MANIFEST
from runtime.artifact.parse import parse_manifest
from runtime.hosts.folder import read_host
from runtime.hosts.manifest import FORMAT_VERSION as HOST_FORMAT_VERSION
from runtime.hosts.manifest import KINDS
from saeexport.original.architectures import ARCHITECTURES
from tests.fixtures.__main__ import FOLDER, HASHES
from tests.support.manifests import edited, sealed

NAMES = sorted(path.stem for path in FOLDER.glob("*.zip"))
HOSTS = [name for name in NAMES if name.startswith("host-")]
ARTIFACTS = [name for name in NAMES if name not in HOSTS]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A read-only folder with every fixture."""
    folder = tmp_path_factory.mktemp("format-1")
    for name in NAMES:
        unpack(name, folder)
    return folder


def unpack(name, folder):
    with zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
        archive.extractall(folder / name)
    return folder / name


def test_the_fixtures_are_those_that_were_made_first():
    """A fixture that is made again does not show that old artifacts can be read."""
    recorded = dict(reversed(line.split("  ", 1)) for line in HASHES.read_text().splitlines())
    found = {}
    for name in NAMES:
        with zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
            found |= {f"{name}/{e}": hashlib.sha256(archive.read(e)).hexdigest() for e in archive.namelist()}
    assert found == recorded


def test_there_is_one_of_each_architecture_dtype_and_kind(unpacked):
    artifacts = [read_artifact(unpacked / name) for name in ARTIFACTS]
    configs = [artifact.manifest.sae for artifact in artifacts]
    assert {config.architecture for config in configs} == set(ARCHITECTURES)
    assert {artifact.manifest.weights_dtype for artifact in artifacts} == {*FLOOR, "int8"}
    assert any(config.head_shape for config in configs)
    assert any(config.feature_ids for config in configs)
    assert any(artifact.read_labels() for artifact in artifacts)
    assert {config.use_error_term for config in configs if config.d_out} == {True, False}
    assert {read_host(unpacked / name).manifest.host.kind for name in HOSTS} == set(KINDS)
    assert {artifact.manifest.format_version for artifact in artifacts} == {1}


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_is_opened_run_and_verified(unpacked, name):
    path = unpacked / name
    report = runtime.verify(path, "cpu")
    assert report.failures == []
    assert report.verdicts
    golden = load_file(path / "golden.safetensors")
    with SAESession(path, "cpu") as session:
        dtype = DTYPES[session.cfg.dtype].numpy
        target = golden["target"].astype(dtype) if "target" in golden else None
        output, cache = session.run_with_cache(golden["hook_sae_input"].astype(dtype), target=target)
        loose = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}[session.cfg.dtype]
    if not name.endswith("int8"):
        for hook, y in cache.items():
            np.testing.assert_allclose(widened(np.asarray(y)), golden[hook], rtol=loose, atol=loose, err_msg=hook)
        saeexport.assert_parity(path, saeexport.load(path), device="cpu")
    assert np.isfinite(widened(np.asarray(output)).astype(np.float32)).all()


@pytest.mark.parametrize("name", HOSTS)
def test_a_grafted_host_is_opened_run_and_verified(unpacked, name):
    path = unpacked / name
    assert runtime.verify(path, "cpu").failures == []
    golden = load_file(path / "golden.safetensors")
    feeds = {key.removeprefix("feeds/"): value for key, value in golden.items() if key.startswith("feeds/")}
    with HostSession(path, "cpu") as session:
        outputs = session(feeds)
    assert all(np.isfinite(np.asarray(y)).all() for y in outputs.values())


def objects(value):
    """Yield every object in a manifest."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


NAMED = {
    field.name
    for module in (manifest_module, host_manifest_module)
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind)
    if get_origin(get_type_hints(kind)[field.name]) is dict
}
"""Keys of objects whose keys are names: a new one there is another name, and not a new key."""


def extended(value, key=""):
    """Return a manifest with a key in every object that no release has defined."""
    if isinstance(value, list):
        return [extended(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    inner = {name: extended(part, name) for name, part in value.items()}
    return inner if key in NAMED else {**inner, "of_a_later_release": {"it": [1, None, "says"]}}


@pytest.mark.parametrize("name", ["standard", "gated-float16", "standard-int8", "host-decoder"])
def test_keys_that_a_later_release_adds_are_ignored(tmp_path, name):
    path = unpack(name, tmp_path)
    file = path / (HOST_MANIFEST if name in HOSTS else MANIFEST)
    content = json.loads(file.read_text("utf-8"))
    later = extended(content)
    assert len([found for found in objects(later) if "of_a_later_release" in found]) > 10
    file.write_bytes(sealed(later))
    assert runtime.verify(path, "cpu").failures == []


def test_a_graph_that_a_later_release_adds_is_ignored(tmp_path):
    path = unpack("standard", tmp_path)
    (path / "later.onnx").write_bytes(b"a graph of a later release")
    content = json.loads((path / MANIFEST).read_text("utf-8"))
    content["graphs"]["later"] = {**content["graphs"]["decode"], "file": "later.onnx"}
    record = hash_file(path / "later.onnx")
    content["files"]["later.onnx"] = {"sha256": record.sha256, "bytes": record.bytes}
    (path / MANIFEST).write_bytes(sealed(content))
    assert parse_manifest((path / MANIFEST).read_bytes()).sae.architecture == "standard"
    assert runtime.verify(path, "cpu").failures == []


@pytest.mark.parametrize(
    ("name", "file", "version"),
    [("standard", MANIFEST, FORMAT_VERSION), ("host-decoder", HOST_MANIFEST, HOST_FORMAT_VERSION)],
)
def test_a_newer_format_is_refused_by_its_number(tmp_path, name, file, version):
    path = unpack(name, tmp_path)
    (path / file).write_bytes(edited((path / file).read_text("utf-8"), "format_version", value=version + 1))
    message = f"{file} has format version {version + 1}; this release reads {version}. Upgrade: pip install --upgrade"
    for read in (lambda: runtime.verify(path, "cpu"), lambda: (HostSession if name in HOSTS else SAESession)(path)):
        with pytest.raises(ManifestError, match=message):
            read()
