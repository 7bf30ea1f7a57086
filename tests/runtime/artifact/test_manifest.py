"""sae.json: the texts that are read, those that are refused, and the error messages."""

import json
import re

import pytest

import runtime
from runtime import ArtifactError, ManifestError
from runtime.artifact.manifest import FORMAT_VERSION
from runtime.artifact.parse import parse_manifest
from tests.support.manifests import edited, sealed
from tests.support.samples import TINY

OPTIONAL = ("model_name", "neuronpedia_id")
TEXT = (TINY / "sae.json").read_bytes()


def paths(value, prefix=()):
    """Yield the path of every key that the format prescribes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if prefix and prefix[0] in ("provenance", "files") and len(prefix) == 1:
                if prefix[0] == "files":
                    yield from paths(inner, (*prefix, key))
                continue
            # options are the architecture's own, and an earlier release did not write what graphs require
            if prefix != ("sae", "options") and key not in (*OPTIONAL, "requires"):
                yield (*prefix, key)
            yield from paths(inner, (*prefix, key))
    if isinstance(value, list):
        for i, inner in enumerate(value):
            yield from paths(inner, (*prefix, i))


def test_it_survives_a_round_trip():
    assert parse_manifest(TEXT).to_json().encode() == TEXT


def test_a_newer_format_is_refused():
    message = f"has format version {FORMAT_VERSION + 1}; this release reads {FORMAT_VERSION}. Upgrade: pip install"
    with pytest.raises(ManifestError, match=message):
        parse_manifest(edited(TEXT, "format_version", value=FORMAT_VERSION + 1))


@pytest.mark.parametrize("version", [0, -1, None, True, "1", 1.0, []])
def test_a_format_version_that_does_not_exist_is_refused(version):
    with pytest.raises(ManifestError, match=f"format_version is {re.escape(repr(version))}; it must be an integer"):
        parse_manifest(edited(TEXT, "format_version", value=version))


@pytest.mark.parametrize("text", [TEXT[:300], TEXT[:-3], b"", b"weights"])
def test_truncated_or_not_json(text):
    with pytest.raises(ManifestError, match="sae.json is not JSON .* it may be truncated"):
        parse_manifest(text)


@pytest.mark.parametrize("text", [b"[]", b"3", b"null"])
def test_json_of_another_kind(text):
    with pytest.raises(ManifestError, match=f"sae.json is {re.escape(repr(json.loads(text)))}, expected an object"):
        parse_manifest(text)


def refusal_of(text):
    """Return why a manifest is refused, or the error if it is not a ManifestError; None if the manifest is read."""
    try:
        parse_manifest(text)
    except ManifestError as error:
        return str(error)
    except Exception as error:
        return f"not as a manifest: {error!r}"
    return None


def test_every_key_is_needed():
    needed = [keys for keys in paths(json.loads(TEXT)) if keys != ("checksum",)]
    assert len(needed) > 300
    refusals = {".".join(map(str, keys)): (keys[-1], refusal_of(edited(TEXT, *keys, remove=True))) for keys in needed}
    wrong = {
        path: refusal
        for path, (key, refusal) in refusals.items()
        if refusal is None or refusal.startswith("not as") or str(key) not in refusal
    }
    assert not wrong


@pytest.mark.parametrize("key", OPTIONAL)
def test_the_names_of_the_checkpoint_are_optional(key):
    assert getattr(parse_manifest(edited(TEXT, "sae", key, remove=True)).sae, key) is None
    assert getattr(parse_manifest(edited(TEXT, "sae", key, value="gpt2-small")).sae, key) == "gpt2-small"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("sae", "d_in"), "6", "sae.json: sae: d_in is '6', expected int"),
        (("sae", "use_error_term"), 1, "use_error_term is 1, expected bool"),
        (("sae", "seed"), "a", "seed is 'a', expected int"),
        (("sae", "model_name"), 2, "sae.json: sae: model_name is 2, expected str"),
        (("sae", "neuronpedia_id"), ["6-res-jb"], r"neuronpedia_id is \['6-res-jb'\], expected str"),
        (("graphs", "model", "inputs"), {}, r"graphs\['model'\]: inputs is {}, expected a list"),
        (("graphs",), [], r"graphs is \[\], expected an object"),
        (("graphs", "model", "outputs", 2, "shape"), [1.5], r"outputs\[2\]: shape\[0\] is 1.5, expected int or str"),
        (("weights",), "other.safetensors", "'other.safetensors' is used but has no entry in files"),
        (
            ("graphs", "encode", "outputs", 1, "name"),
            "acts",
            r"graph 'encode': outputs\[1\] is .*'acts'.*for this SAE it must be",
        ),
        (("sae", "d_sae"), 17, r"graph 'model': outputs\[1\] is .*for this SAE it must be"),
        (("files", "../weights"), {"sha256": "", "bytes": 1}, "files names '../weights', which is not a plain file"),
        (("files", "a\\b"), {"sha256": "", "bytes": 1}, "not a plain file name"),
        (("files", ".."), {"sha256": "", "bytes": 1}, "not a plain file name"),
        (("weights_dtype",), "int8", "weights_dtype is 'int8'; parity must be there unless it is 'int8'"),
        (("weights_dtype",), "float16", "dtype is 'float32' and weights_dtype 'float16'; this release reads"),
        (("sae", "dtype"), "float64", "dtype is 'float64' and weights_dtype 'float32'; this release reads"),
        (("parity",), None, "weights_dtype is 'float32'; parity must be there"),
    ],
)
def test_other_values_are_named(keys, value, message):
    with pytest.raises(ManifestError, match=message):
        parse_manifest(edited(TEXT, *keys, value=value))


def test_unknown_keys_and_graphs_are_ignored(artifact):
    data = json.loads(TEXT)
    data["mood"] = "good"
    data["graphs"]["later"] = {**data["graphs"]["model"], "file": "decode.onnx"}
    (artifact / "sae.json").write_bytes(sealed(data))
    assert runtime.verify(artifact, "cpu").failures == []


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda folder: folder / "nothing", "it does not exist"),
        (lambda folder: folder / "a.txt", "it is a file"),
        (lambda folder: folder, "it holds a.txt, b.txt, c.txt, d.txt, e.txt, f.txt, ..."),
    ],
)
def test_a_path_that_is_not_an_artifact(tmp_path, make, found):
    for name in "abcdefg":
        (tmp_path / f"{name}.txt").write_text("")
    with pytest.raises(ArtifactError, match=rf"is not an artifact, a folder with sae.json: {re.escape(found)}"):
        runtime.SAESession(make(tmp_path))


def test_a_manifest_that_is_not_text(artifact):
    (artifact / "sae.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="sae.json is not text .invalid start byte at byte 0.*Copy"):
        runtime.read_artifact(artifact)
