"""Reading safetensors files: what the library refuses is refused, with an error that names the file."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save, save_file

import runtime
from runtime import ArtifactError, IntegrityError, SAESession
from runtime.artifact import tensorfile
from runtime.artifact.tensorfile import parse_header, read_header, tensors_in
from runtime.parity.golden import load_golden
from tests.support.breaking import rewrite
from tests.support.samples import TINY, normal

TENSORS = {"a": normal(3, 4), "b": np.arange(5), "c": np.zeros((0, 7), np.float16), "d": np.array(3.0)}
PLACES = {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
Y = {"dtype": "U8", "shape": [8], "data_offsets": [24, 32]}


def content_of(header, data=b"\0" * 32, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def parse(content):
    return parse_header(np.frombuffer(content, np.uint8), "the file")


def test_it_reads_what_the_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / "file")
    content = np.frombuffer((tmp_path / "file").read_bytes(), np.uint8)
    found = tensors_in(content, tmp_path / "file")
    assert set(found) == set(TENSORS) == set(read_header(tmp_path / "file"))
    for name, tensor in load_file(tmp_path / "file").items():
        np.testing.assert_array_equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
        assert np.shares_memory(found[name], content) == bool(tensor.size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "would have 0 bytes in a file of 0"),
        (b"\1\0\0", "in a file of 3"),
        (content_of(PLACES, size=1 << 63), "would have 9,223,372,036,854,775,808 bytes"),
        (content_of(PLACES, size=1000), "would have 1,000 bytes in a file of"),
        (content_of(b"[" * 100_000), "is not a safetensors file: "),
        (content_of(b'{"x": 1' + b"0" * 5000 + b"}"), "is not a safetensors file: "),
        (content_of(b"\xff\xfe"), "UnicodeDecodeError"),
        (content_of(b"{"), "JSONDecodeError"),
        (content_of([]), "the header is not an object"),
        (content_of({"x": 1}), "TypeError"),
        (content_of({"x": {}}), "KeyError: 'dtype'"),
        (content_of({"x": {**PLACES["x"], "dtype": "F33"}}), "KeyError: 'F33'"),
        (content_of({"x": {**PLACES["x"], "dtype": ["F32"]}}), "TypeError"),
        (content_of({"x": {**PLACES["x"], "shape": 6}}), "TypeError"),
        (content_of({"x": {**PLACES["x"], "shape": [2.0, 3]}}), r"has the shape \[2.0, 3\]"),
        (content_of({"x": {**PLACES["x"], "shape": [True, 6]}}), r"has the shape \[True, 6\]"),
        (content_of({"x": {**PLACES["x"], "shape": [-2, -3]}}), r"has the shape \[-2, -3\]"),
        (content_of({"x": {**PLACES["x"], "shape": [1 << 62, 1 << 62]}}), "and has 24 bytes"),
        (content_of({"x": {**PLACES["x"], "data_offsets": [0]}}), "ValueError"),
        (content_of({"x": {**PLACES["x"], "data_offsets": [0, 24.0]}}), "offsets 0 to 24.0"),
        (content_of({"x": {**PLACES["x"], "data_offsets": [24, 0]}}), "and has -24 bytes"),
        (content_of({"x": {**PLACES["x"], "data_offsets": [-24, 0]}}), "offsets -24 to 0"),
        (content_of({"x": {**PLACES["x"], "data_offsets": [1 << 70, (1 << 70) + 24]}}), "x starts at byte"),
        (content_of({**PLACES, "y": {**Y, "data_offsets": [20, 28]}}), "y starts at byte 20, and not at 24"),
        (content_of({**PLACES, "y": {**Y, "shape": [4], "data_offsets": [28, 32]}}), "y starts at byte 28"),
        (content_of({**PLACES, "y": {**PLACES["x"]}}), "y starts at byte 0, and not at 24"),
        (content_of(PLACES), "the tensors end at byte"),
        (content_of({**PLACES, "y": {**Y, "shape": [16], "data_offsets": [24, 40]}}), "the tensors end at byte"),
        (content_of(b'{"x": %s, "x": %s}' % ((json.dumps(PLACES["x"]).encode(),) * 2)), "a name is there twice"),
    ],
)
def test_a_malformed_file_is_an_error(content, message, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_header(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)
    assert len(str(caught.value)) < 600
    with pytest.raises(SafetensorError):
        load(content)


@pytest.mark.parametrize("shape", [[2, 3, *[1] * 31], [0, 10**30], [0, 1 << 62], [0, *[2] * 62]])
def test_a_shape_that_no_array_has_is_an_error(shape):
    """An empty tensor fits into a file whatever its other dimensions are."""
    size = 24 if shape[0] else 0
    content = content_of({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}, b"\0" * size)
    with pytest.raises(ArtifactError, match=f"x has a shape of {len(shape)} dimensions that no array has"):
        tensors_in(np.frombuffer(content, np.uint8), "the file")


def test_a_large_header_is_not_parsed(monkeypatch):
    monkeypatch.setattr(tensorfile, "LARGEST_HEADER", 10)
    with pytest.raises(ArtifactError, match="at most 10 are allowed"):
        parse(content_of({**PLACES, "y": Y}))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_it_accepts_the_library_accepts(data):
    """Any change of a few bytes is refused as an ArtifactError, or gives what the library gives."""
    content = bytearray(save({"a": normal(3, 4), "b": np.arange(5)}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 180))] = data.draw(st.integers(0, 255))
    try:
        found = tensors_in(np.frombuffer(bytes(content), np.uint8), "the file")
    except ArtifactError:
        return
    expected = load(bytes(content))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].tobytes() == tensor.tobytes()


def break_header(path):
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors"])
def test_a_broken_header_with_the_right_sha256_is_an_error_of_ours(artifact, name):
    rewrite(artifact, name, break_header)
    with pytest.raises(ArtifactError, match=f"{name} is not a safetensors file"):
        if name == "golden.safetensors":
            load_golden(runtime.read_artifact(artifact))
        else:
            SAESession(artifact, "cpu").W_dec  # noqa: B018


def test_the_golden_batch_comes_from_the_file_that_was_checked(artifact, monkeypatch):
    golden, other = artifact / "golden.safetensors", artifact / "other"
    other.write_bytes(golden.read_bytes()[:-8] + b"\0" * 8)
    opened = runtime.read_artifact(artifact)
    other.rename(golden)
    with pytest.raises(IntegrityError, match="golden.safetensors has sha256 .* it was changed after the export"):
        load_golden(opened)
    assert load_golden(runtime.read_artifact(TINY)).tokens
