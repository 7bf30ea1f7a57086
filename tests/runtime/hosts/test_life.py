"""A session of a host keeps the files that it opened, works without PyTorch, and does not work after a fork."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from runtime import (
    ArtifactError,
    HostSession,
    IntegrityError,
    Label,
    Labels,
    ProviderError,
    SAEError,
    SAESession,
    read_host,
)
from runtime.hosts import graphs
from tests.project.test_torch_free import BLOCK, HEAVY
from tests.support.grafted import PRE, Z, rewrite_manifest
from tests.support.samples import ROOT, TINY

IDS = {"input_ids": np.array([[5, 11, 3]])}


@pytest.fixture
def copied(grafted, tmp_path):
    return shutil.copytree(grafted.path, tmp_path / "copy")


def test_a_session_goes_on_when_its_folder_is_deleted(copied, host):
    with HostSession(copied, "cpu", threads=1) as session:
        shutil.rmtree(copied)
        for hook in (PRE, Z):
            expected = host.run_with_saes(IDS, hook, False).logits
            np.testing.assert_array_equal(session.run_with_saes(IDS, hook, False).logits, expected)


def test_an_sae_that_was_replaced_after_the_host_was_opened_is_refused(copied):
    with HostSession(copied, "cpu") as session:
        shutil.rmtree(copied / "saes" / Z)
        shutil.copytree(copied / "saes" / PRE, copied / "saes" / Z)
        for call in (session.sae, lambda hook: session.run_with_hooks_with_saes(IDS, saes=[hook])):
            with pytest.raises(IntegrityError, match="holds another SAE now than when the host was opened"):
                call(Z)


def test_weights_that_are_written_to_are_found(copied):
    weights = copied / "saes" / Z / "weights.safetensors"
    with HostSession(copied, "cpu") as session:
        with weights.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\1")
        with pytest.raises(IntegrityError, match="weights.safetensors"):
            session(IDS)


def test_a_graph_that_refers_to_another_file_is_refused(copied):
    content = (copied / "splice.onnx").read_bytes()
    location = f"saes/{Z}/weights.safetensors".encode()
    assert location in content
    (copied / "splice.onnx").write_bytes(content.replace(location, b"/" + location[1:]))
    rewrite_manifest(copied, lambda manifest: None)
    with HostSession(copied, "cpu") as session, pytest.raises(IntegrityError, match=r"keeps .* in '/aes/"):
        session(IDS)


def test_a_graph_with_other_inputs_than_the_manifest_is_refused(copied):
    def rename(manifest):
        manifest["graphs"]["splice"]["inputs"][-1]["name"] = "something"

    rewrite_manifest(copied, rename)
    with HostSession(copied, "cpu") as session, pytest.raises(IntegrityError, match="splice.onnx has the inputs "):
        session(IDS)


def test_a_folder_that_is_replaced_again_and_again_is_refused(copied, monkeypatch):
    read = read_host

    def read_and_replace(path):
        host = read(path)
        os.utime(copied / "host.json")
        return host

    monkeypatch.setattr(graphs, "read_host", read_and_replace)
    with pytest.raises(IntegrityError, match="is being replaced again and again"):
        HostSession(copied, "cpu")


def test_an_artifact_is_not_a_host(tmp_path):
    with pytest.raises(ArtifactError, match=r"is not a grafted host, a folder with host\.json: it holds "):
        HostSession(TINY.parent)
    with pytest.raises(ArtifactError, match="it does not exist"):
        read_host(tmp_path / "nothing")


def test_devices_that_cannot_run_a_host_are_refused(grafted, monkeypatch):
    with pytest.raises(ProviderError, match="tensorrt:0 was asked for, but"):
        HostSession(grafted.path, "tensorrt")
    monkeypatch.setattr(graphs, "find_device", lambda name: graphs.Device("tensorrt"))
    with pytest.raises(ProviderError, match='holds a language model, which runs on "cpu" or "cuda"'):
        HostSession(grafted.path, "tensorrt")


def test_it_works_where_pytorch_cannot_be_imported(grafted):
    code = f"""
import runtime
from runtime.commands.main import main
with runtime.HostSession({str(grafted.path)!r}, "cpu") as host:
    with host.steering({{{PRE!r}: {{3: runtime.Clamp(2.0)}}}}):
        host("w1 w2 w3")
    host.generate("w1 w2", 3)
    host.run_with_hooks_with_saes("w1", [({PRE!r}, lambda x, hook: None)], {Z!r})
assert main(["verify", {str(grafted.path)!r}, "--device", "cpu"]) == 0
assert not set({HEAVY!r}) & set(sys.modules), sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_session_refuses_to_run_in_a_forked_process(grafted):
    code = f"""
import os, sys
import numpy, runtime
host = runtime.HostSession({str(grafted.path)!r}, "cpu")
feeds = {{"input_ids": numpy.array([[1, 2]])}}
host(feeds)
child = os.fork()
if not child:
    try:
        host(feeds)
    except runtime.SAEError as error:
        os._exit(7 if "ONNX Runtime does not work after a fork" in str(error) else 8)
    os._exit(9)
host(feeds)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 7, done.stderr


def test_a_release_frees_a_graph(host):
    host(IDS)
    host.release("splice")
    assert "splice" not in host._runner.graphs.loaded
    host(IDS)
    with pytest.raises(SAEError, match="has no graph 'steer'"):
        host.release("steer")


def test_an_artifact_and_a_grafted_host_are_told_apart(grafted):
    with pytest.raises(ArtifactError, match="it is a grafted host, which runtime.HostSession opens"):
        SAESession(grafted.path, "cpu")
    with pytest.raises(ArtifactError, match="it is an artifact, which runtime.SAESession opens"):
        HostSession(TINY, "cpu")


def test_the_labels_of_an_sae_are_printed(grafted, feeds, monkeypatch):
    with HostSession(grafted.path, "cpu") as host:
        hook = host.hook_names[0]
        labels = Labels(host.sae(hook).cfg.d_sae, [Label(j, f"label {j}") for j in range(host.sae(hook).cfg.d_sae)])
        monkeypatch.setattr(host.sae(hook), "_labels", labels)
        assert "label " in str(host.top_features(feeds, hook, 2))
