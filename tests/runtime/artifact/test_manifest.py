"""sae.json: the texts that are read, those that are refused, and the error messages."""

import json
import re

import pytest

import runtime
from runtime import ArtifactError, ManifestError
from runtime.artifact.manifest import FORMAT_VERSION
from runtime.artifact.parse import parse_manifest
from tests.support.samples import TINY

OPTIONAL = ("model_name", "neuronpedia_id")
BUDGETS = ("hooks", "steered", "tf32", "tf32_steered")
TEXT = (TINY / "sae.json").read_text()


def edited(*keys, value=None, remove=False):
    data = json.loads(TEXT)
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    if remove:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return json.dumps(data)


def paths(value, prefix=()):
    """Yield the path of every key that the format prescribes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if prefix and prefix[0] in ("provenance", "files") and len(prefix) == 1:
                if prefix[0] == "files":
                    yield from paths(inner, (*prefix, key))
                continue
            # A hook without budgets is the subject of test_gates.py; options are the architecture's own.
            if prefix not in {*(("parity", of) for of in BUDGETS), ("sae", "options")} and key not in OPTIONAL:
                yield (*prefix, key)
            yield from paths(inner, (*prefix, key))
    if isinstance(value, list):
        for i, inner in enumerate(value):
            yield from paths(inner, (*prefix, i))


def test_it_survives_a_round_trip():
    assert parse_manifest(TEXT).to_json() == TEXT


def test_a_newer_format_is_refused():
    message = f"has format version {FORMAT_VERSION + 1}; this release reads {FORMAT_VERSION}. Upgrade: pip install"
    with pytest.raises(ManifestError, match=message):
        parse_manifest(edited("format_version", value=FORMAT_VERSION + 1))


@pytest.mark.parametrize("text", [TEXT[:300], TEXT[:-3], "", "weights"])
def test_truncated_or_not_json(text):
    with pytest.raises(ManifestError, match="sae.json is not JSON .* it may be truncated"):
        parse_manifest(text)


@pytest.mark.parametrize("text", ["[]", "3", "null"])
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
    needed = list(paths(json.loads(TEXT)))
    assert len(needed) > 300
    refusals = {".".join(map(str, keys)): (keys[-1], refusal_of(edited(*keys, remove=True))) for keys in needed}
    wrong = {
        path: refusal
        for path, (key, refusal) in refusals.items()
        if refusal is None or refusal.startswith("not as") or str(key) not in refusal
    }
    assert not wrong


@pytest.mark.parametrize("key", OPTIONAL)
def test_the_names_of_the_checkpoint_are_optional(key):
    assert getattr(parse_manifest(edited("sae", key, remove=True)).sae, key) is None
    assert getattr(parse_manifest(edited("sae", key, value="gpt2-small")).sae, key) == "gpt2-small"


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
        (("graphs", "encode", "outputs", 1, "name"), "acts", "graph 'encode' is .*for this SAE it must be"),
        (("sae", "d_sae"), 17, "graph 'model' is .*for this SAE it must be"),
        (("files", "../weights"), {"sha256": "", "bytes": 1}, "files names '../weights', which is not a plain file"),
        (("files", "a\\b"), {"sha256": "", "bytes": 1}, "not a plain file name"),
        (("files", ".."), {"sha256": "", "bytes": 1}, "not a plain file name"),
        (("weights_dtype",), "int8", "weights_dtype is 'int8'; parity must be there unless it is 'int8'"),
        (("weights_dtype",), "float16", "dtype is 'float32' and weights_dtype 'float16'; this release reads"),
        (("sae", "dtype"), "float64", "graph 'model' is .*for this SAE it must be"),
        (("parity",), None, "weights_dtype is 'float32'; parity must be there"),
    ],
)
def test_other_values_are_named(keys, value, message):
    with pytest.raises(ManifestError, match=message):
        parse_manifest(edited(*keys, value=value))


def test_unknown_keys_and_graphs_are_ignored(artifact):
    data = json.loads(TEXT)
    data["mood"] = "good"
    data["graphs"]["later"] = {**data["graphs"]["model"], "file": "decode.onnx"}
    (artifact / "sae.json").write_text(json.dumps(data))
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
    with pytest.raises(ArtifactError, match="sae.json is not text"):
        runtime.read_artifact(artifact)
