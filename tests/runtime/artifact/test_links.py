"""Links, as in the cache of the Hugging Face Hub, in the hands of ONNX Runtime alone, as other languages call it."""

import hashlib
import os
import shutil

import numpy as np
import onnxruntime
import pytest

from runtime import read_artifact
from tests.support.samples import TINY, normal

X = normal(5, 6)


@pytest.fixture
def snapshot(tmp_path):
    """The artifact as huggingface_hub lays it out: links to blobs that are named by their content."""
    snapshot, blobs = tmp_path / "snapshots" / "1234", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in TINY.iterdir():
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def run(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["hook_sae_output"], {"input": X})[0]


def test_every_graph_of_the_cache_runs_by_its_own_name(snapshot):
    np.testing.assert_array_equal(run(snapshot / "model.onnx"), run(TINY / "model.onnx"))
    for graph in read_artifact(snapshot).manifest.graphs.values():
        onnxruntime.InferenceSession(snapshot / graph.file, providers=["CPUExecutionProvider"])


def test_the_file_that_a_link_leads_to_does_not_find_its_weights(snapshot):
    with pytest.raises(Exception, match="weights.safetensors"):
        run((snapshot / "model.onnx").resolve())
