"""What a manifest says about the engines of a graph is checked, and a manifest may say nothing."""

import copy
import json
import shutil

import numpy as np
import onnxruntime
import pytest

from runtime import ManifestError, ProviderError, SAESession
from runtime.artifact.card import model_card
from runtime.artifact.folder import read_artifact
from runtime.artifact.parse import parse_manifest
from runtime.commands.doctor import diagnose
from runtime.commands.inspect import describe
from runtime.commands.main import main
from tests.support.manifests import edited, sealed
from tests.support.samples import TINY, normal

TEXT = (TINY / "sae.json").read_bytes()
MODEL = ("graphs", "model", "requires")
SPARSE = ("graphs", "model.sparse", "requires")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ((*MODEL, "ir_version"), 0, "requires: ir_version is 0; it must be at least 1"),
        ((*MODEL, "ir_version"), "10", "ir_version is '10', expected int"),
        ((*MODEL, "opset_import"), {}, "requires: opset_import is 'empty'; it must be with ai.onnx"),
        ((*MODEL, "opset_import"), {"com.microsoft": 1}, "opset_import is 'com.microsoft'; it must be with ai.onnx"),
        ((*MODEL, "opset_import", "ai.onnx"), 0, r"opset_import\['ai.onnx'\] is 0; it must be at least 1"),
        ((*MODEL, "operators"), [], r"requires: operators is \[\]; it must be names in alphabetical order"),
        ((*MODEL, "operators"), ["Sub", "Add"], "operators is .*; it must be names in alphabetical order, each once"),
        ((*MODEL, "operators"), ["Add", "Add"], "operators is .*; it must be names in alphabetical order, each once"),
        ((*MODEL, "operators"), ["mine.Twice"], "operators is .*; it must be of the domains ai.onnx"),
        ((*MODEL, "onnxruntime"), "new", "requires: onnxruntime is 'new'; it must be a release such as 1.18"),
        ((*MODEL, "onnxruntime"), "1.18.1", "requires: onnxruntime is '1.18.1'; it must be a release such as 1.18"),
        ((*SPARSE, "portable"), True, "'model.sparse': requires: portable is True; it must be false with If, Loop"),
        ((*SPARSE, "portable"), 1, "portable is 1, expected bool"),
    ],
)
def test_a_value_that_cannot_be_is_named(keys, value, message):
    with pytest.raises(ManifestError, match=rf"^sae.json.*{message}.* Export the SAE again\.$"):
        parse_manifest(edited(TEXT, *keys, value=value))


def test_a_missing_part_is_named():
    data = json.loads(TEXT)
    del data["graphs"]["model"]["requires"]["operators"]
    with pytest.raises(ManifestError, match=r"graphs\['model'\]: requires has no key 'operators'"):
        parse_manifest(sealed(data))


def test_graphs_of_a_later_release_are_checked_too():
    data = json.loads(TEXT)
    data["graphs"]["later"] = copy.deepcopy(data["graphs"]["model"])
    data["graphs"]["later"]["requires"] |= {"operators": ["Scan"]}
    with pytest.raises(ManifestError, match="'later': requires: portable is True; it must be false with Scan"):
        parse_manifest(sealed(data))


@pytest.fixture(params=["missing", "null"])
def older(request, tmp_path):
    """An artifact of a release that did not write down what its graphs need."""
    folder = tmp_path / "sae"
    shutil.copytree(TINY, folder)
    data = json.loads(TEXT)
    for spec in data["graphs"].values():
        if request.param == "null":
            spec["requires"] = None
        else:
            del spec["requires"]
    (folder / "sae.json").write_bytes(sealed(data))
    return folder


def test_an_artifact_that_does_not_say_it_works_as_before(older, capsys):
    x = normal(5, 6)
    with SAESession(older) as sae, SAESession(TINY) as new:
        assert np.array_equal(sae(x), new(x))
    assert "any engine" not in describe(read_artifact(older))
    assert main(["verify", str(older)]) == 0


def test_a_manifest_that_does_not_say_it_is_written_without_the_key(older):
    assert '"requires"' not in read_artifact(older).manifest.to_json()


def test_inspect_says_which_graphs_are_for_onnx_runtime_only():
    text = " ".join(describe(read_artifact(TINY)).split())
    assert (
        "any engine with ONNX opset 20, IR version 10, float32, such as ONNX Runtime from 1.18 on: model, encode, "
        "activate, decode, steer, features ONNX Runtime only, from 1.18 on: acts, model.sparse, "
    ) in text


def test_inspect_says_where_the_release_is_not_known(tmp_path):
    shutil.copytree(TINY, tmp_path / "sae")
    (tmp_path / "sae" / "sae.json").write_bytes(edited(TEXT, *SPARSE, "onnxruntime", value=None))
    text = " ".join(describe(read_artifact(tmp_path / "sae")).split())
    assert (
        "from 1.18 on: acts, decode.sparse, steer.sparse, features.sparse; in a release that is not known: mod" in text
    )


def test_the_card_on_the_hub_says_which_engines_run_the_sae(older):
    def card(*keys, value=None):
        text = edited(TEXT, *keys, value=value) if keys else TEXT
        return model_card(parse_manifest(text), "ada/new")

    assert "| runs in | ONNX Runtime 1.18 or later, or another engine with ONNX opset 20, IR version 10 |" in card()
    own = card(*MODEL, "portable", value=False)
    assert "| runs in | ONNX Runtime 1.18 or later, and no other engine |" in own
    assert "| runs in | ONNX Runtime, or another engine" in card(*MODEL, "onnxruntime", value=None)
    assert "runs in" not in model_card(read_artifact(older).manifest, "ada/new")


@pytest.mark.parametrize("version", ["1.17.3", "1.9.0", "0.99.0.dev1"])
def test_an_onnx_runtime_that_is_too_old_is_refused_before_anything_is_loaded(monkeypatch, version):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(ProviderError, match=rf"needs ONNX Runtime 1.18 or later; {version} is installed: pip install"):
        SAESession(TINY, device="cpu")
    assert "no: " in diagnose(read_artifact(TINY))


@pytest.mark.parametrize("version", ["1.18.0", "1.100.0", "2.0.0"])
def test_the_first_onnx_runtime_and_later_ones_are_taken(monkeypatch, version):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    SAESession(TINY, device="cpu").close()
