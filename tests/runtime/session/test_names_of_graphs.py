"""The names inside a graph that somebody changed, with a new checksum, may not be text."""

import json
import shutil

import pytest

from runtime import IntegrityError, SAESession
from runtime.artifact.files import hash_file
from tests.support.manifests import sealed
from tests.support.samples import TINY, normal


@pytest.fixture
def renamed(tmp_path):
    """Return a function that replaces bytes in `encode.onnx` of an artifact by as many others, and returns its path."""
    path = tmp_path / "sae"
    shutil.copytree(TINY, path)

    def rename(before, after):
        file = path / "encode.onnx"
        content = file.read_bytes().replace(before, after)
        assert content != file.read_bytes()
        assert len(before) == len(after)
        file.write_bytes(content)
        manifest = json.loads((path / "sae.json").read_text())
        manifest["files"][file.name]["sha256"] = hash_file(file).sha256
        (path / "sae.json").write_bytes(sealed(manifest))
        return path

    return rename


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b"tokens", b"\xf4okens", "encode.onnx has inputs with names that are not text. Copy the whole folder again."),
        (b"\n\x05input", b"\n\x05\xf4nput", "encode.onnx has inputs with names that are not text"),
        (b"input", b"\xf4nput", "encode.onnx has metadata that is not text"),
        (b"tokens", b"Tokens", "encode.onnx has the inputs input float32"),
    ],
)
def test_names_that_are_not_text_are_refused(renamed, before, after, message):
    with SAESession(renamed(before, after), device="cpu") as sae, pytest.raises(IntegrityError, match=message):
        sae.run_graph("encode", {"input": normal(2, 6)})
