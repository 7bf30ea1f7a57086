"""SAESession.from_pretrained: what is downloaded, from which commit, offline, and every way to fail."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from runtime import HubConnectionError, HubEntryError, HubError, IntegrityError, SAEError, SAESession, read_artifact
from tests.support.hub_protocol import TOKEN
from tests.support.samples import ROOT, TINY, contents, normal

X = normal(5, 6)


def expected():
    with SAESession(TINY, "cpu") as session:
        return session(X)


def test_it_runs_what_it_downloads(hub):
    with SAESession.from_pretrained("ada/tiny", "cpu", threads=1) as session:
        np.testing.assert_array_equal(session(X), expected())
        assert session.device == "cpu"
        assert session.artifact.path.name == hub.tiny
    assert sorted(hub.downloaded) == sorted(["sae.json", *read_artifact(TINY).manifest.files])


def test_the_files_of_the_cache_are_links_and_run(hub):
    with SAESession.from_pretrained("ada/tiny", "cpu") as session:
        folder = session.artifact.path
        assert all(file.is_symlink() and file.resolve().parent.name == "blobs" for file in folder.iterdir())
        assert contents(folder) == contents(TINY)
        for graph in session.artifact.manifest.graphs:
            if graph.partition(".")[0] == "model":
                inputs = {"input": X}
                np.testing.assert_allclose(session.run_graph(graph, inputs)["hook_sae_output"], expected(), atol=1e-6)


def test_nothing_is_downloaded_twice(hub):
    SAESession.from_pretrained("ada/tiny", "cpu").close()
    hub.log.clear()
    SAESession.from_pretrained("ada/tiny", "cpu").close()
    assert not hub.downloaded


def test_only_the_artifact_is_downloaded(hub):
    files = {f"{layer}/{name}": data for layer in ("layer_0", "layer_1") for name, data in contents(TINY).items()}
    hub.add("ada/many", files | {"layer_0/notes.bin": b"0" * 5000, "README.md": b"# many\n"})
    with SAESession.from_pretrained("ada/many", "cpu", subfolder="layer_0") as session:
        assert session.artifact.path.name == "layer_0"
    assert {path.partition("/")[0] for path in hub.downloaded} == {"layer_0"}
    assert "layer_0/notes.bin" not in hub.downloaded


def test_a_revision(hub):
    repo = hub.repos["ada/tiny"]
    old = hub.tiny
    repo.commit({"README.md": b"emptied"})
    with pytest.raises(HubEntryError, match=rf"hf://ada/tiny@{repo.branches['main']} is not an artifact: it has no "
                                            r"sae.json. It holds README.md\."):  # fmt: skip
        SAESession.from_pretrained("ada/tiny", "cpu")
    SAESession.from_pretrained("ada/tiny", "cpu", revision=old).close()
    repo.branches["v1"] = old
    SAESession.from_pretrained("ada/tiny", "cpu", revision="v1").close()


def test_many_artifacts_are_listed(hub):
    hub.add("ada/many", {f"layer_{i}/sae.json": b"{}" for i in range(8)})
    with pytest.raises(HubEntryError, match=r"one of its artifacts as `subfolder`: 'layer_0', .*'layer_5', \.\.\."):
        SAESession.from_pretrained("ada/many")


def test_errors_say_what_to_do(hub):
    hub.add("ada/gated", {"sae.json": b"{}"}, gated=True)
    hub.add("ada/private", contents(TINY), private=True)
    for repo_id, options, message in (
        ("ada/none", {}, r"hf://ada/none was not found on the Hub, or it is private\. Check the name;.* HF_TOKEN"),
        ("ada/private", {}, "or it is private"),
        ("ada/private", {"token": "hf_of_another"}, "or it is private"),
        ("ada/tiny", {"revision": "v9"}, r"hf://ada/tiny@v9 does not exist: the repository has no such branch, tag or"),
        ("ada/gated", {}, r"is gated\. Ask for access on its page.*hf auth login.*Access to model ada/gated is restr"),
        ("ada/tiny/layer_0", {}, "is not an address on the Hub"),
    ):
        with pytest.raises(HubError, match=message) as error:
            SAESession.from_pretrained(repo_id, "cpu", **options)
        assert isinstance(error.value, SAEError)
        assert "\n" not in str(error.value)
    SAESession.from_pretrained("ada/private", "cpu", token=TOKEN).close()


def test_a_token_in_the_environment(hub, monkeypatch):
    hub.add("ada/private", contents(TINY), private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    SAESession.from_pretrained("ada/private", "cpu").close()


def test_what_is_damaged_on_the_hub_is_refused(hub):
    weights = bytearray(contents(TINY)["weights.safetensors"])
    weights[-1] ^= 1
    hub.add("ada/broken", contents(TINY) | {"weights.safetensors": bytes(weights)})
    with pytest.raises(IntegrityError, match="weights.safetensors has sha256"):
        SAESession.from_pretrained("ada/broken", "cpu")(X)


def test_a_file_that_the_repository_lacks(hub):
    files = contents(TINY)
    del files["steer.onnx"]
    hub.add("ada/broken", files)
    with pytest.raises(HubEntryError, match=r"hf://ada/broken@[0-9a-f]{40}/steer.onnx does not exist"):
        SAESession.from_pretrained("ada/broken", "cpu")


@pytest.mark.parametrize("why", ["offline", "no server", "down"])
def test_without_a_connection_the_cache_is_used(hub, monkeypatch, why):
    from huggingface_hub import constants

    SAESession.from_pretrained("ada/tiny", "cpu").close()
    if why == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif why == "down":
        hub.down = True
    else:
        hub.stop()
    with SAESession.from_pretrained("ada/tiny", "cpu") as session:
        np.testing.assert_array_equal(session(X), expected())
    if why == "offline":
        with pytest.raises(HubConnectionError, match="hf://ada/other is not in the cache, .* unset HF_HUB_OFFLINE"):
            SAESession.from_pretrained("ada/other", "cpu")


def test_another_process_with_the_variables_of_the_hub(hub, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, and no PyTorch."""
    code = """
import sys
import numpy, runtime
assert "huggingface_hub" not in sys.modules
with runtime.SAESession.from_pretrained("ada/tiny", "cpu") as sae:
    print(sae(numpy.ones((2, 6), "float32")).shape, sae.artifact.path)
assert "torch" not in sys.modules
"""
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run([sys.executable, "-c", code], env=environment | more, capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"(2, 6) {tmp_path / 'home'}")
    assert hub.downloaded.count("sae.json") == 1


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r'huggingface_hub, which is not installed: pip install "saeexport\[hub\]"'):
        SAESession.from_pretrained("ada/tiny")


def test_a_manifest_that_is_damaged(hub):
    hub.add("ada/broken", {"sae.json": json.dumps({"format_version": 1}).encode()})
    with pytest.raises(SAEError, match="sae"):
        SAESession.from_pretrained("ada/broken")
