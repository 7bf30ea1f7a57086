"""Features and activations as Neuronpedia exports them become labels with examples."""

import json

import pytest

from runtime import Example, InputError, Label, SAESession
from saeexport import export, load_labels
from tests.support.samples import make_sae, normal

SHIP = {"tokens": ["The", " ship", " left", "\u2581the", "\n"], "values": [0, 3.5, 2.0, 0.1, 0], "maxValue": 3.5}
BOAT = {"tokens": ["a", " boat"], "values": [0, 1]}
OFF = {"tokens": ["no", " ship"], "values": [0.0, 0.0]}
FEATURE = {
    "modelId": "gpt2-small", "layer": "8-res-jb", "index": "7", "maxActApprox": 4.0,
    "explanations": [{"description": " ships ", "typeName": "np_max-act"}, {"description": "boats"}],
    "activations": [OFF, BOAT, SHIP],
}  # fmt: skip
LABEL = Label(
    7, "ships", (Example("The ship left the\n", ((4, 8), (9, 13)), 3.5), Example("a boat", ((2, 6),), 1.0))
)  # fmt: skip


def labels_of(tmp_path, content):
    (tmp_path / "labels").write_text(content)
    return load_labels(tmp_path / "labels", 16)


@pytest.mark.parametrize("form", ["{}", "[{}]", "{}\n"], ids=["object", "list", "line"])
def test_a_feature_has_its_explanation_and_its_strongest_activations(tmp_path, form):
    labels = labels_of(tmp_path, form.replace("{}", json.dumps(FEATURE)))
    assert list(labels) == [LABEL]
    assert labels.source == "https://www.neuronpedia.org/gpt2-small/8-res-jb"
    assert [str(example) for example in labels[7].examples] == ["The »ship« »left« the\n", "a »boat«"]


def test_explanations_and_activations_of_separate_files_belong_together(tmp_path):
    head = {key: FEATURE[key] for key in ("modelId", "layer", "index")}
    rows = [{**head, **BOAT}, {**head, "description": "ships"}, {**head, **SHIP}]
    assert list(labels_of(tmp_path, "\n".join(map(json.dumps, rows)))) == [LABEL]


def test_a_feature_that_nobody_explained_is_shown_by_its_tokens(tmp_path):
    labels = labels_of(tmp_path, json.dumps({**FEATURE, "explanations": []}))
    assert (labels[7].text, str(labels[7])) == (None, "ship / left / boat")


def test_a_long_activation_is_cut_around_its_strongest_token(tmp_path):
    long = {"tokens": [f" {i}" for i in range(100)], "values": [float(i == 50) for i in range(100)]}
    (label,) = labels_of(tmp_path, json.dumps([{"index": 3, "activations": [long] * 9}]))
    assert len(label.examples) == 5
    assert label.examples[0].text == "".join(f" {i}" for i in range(40, 61))
    assert str(label) == "50"


def test_results_show_them(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps([{**FEATURE, "index": j} for j in range(16)]))
    path = export(make_sae(), tmp_path / "sae", normal(40, 6), labels=tmp_path / "labels.json").path
    with SAESession(path) as sae:
        assert '"ships"' in str(sae.top_features(normal(2, 6), k=3))
        assert sae.labels[3].examples[0] == LABEL.examples[0]


WRONG = {
    "fewer values": {"activations": [{"tokens": ["a", "b"], "values": [1]}]},
    "no values": {"activations": [{"tokens": ["a", "b"]}]},
    "not numbers": {"tokens": ["a"], "values": ["1"]},
    "not finite": {"tokens": ["a"], "values": [float("nan")]},
    "infinite": {"tokens": ["a"], "values": [float("inf")]},
    "too large": {"tokens": ["a"], "values": [10**400]},
    "not texts": {"tokens": [3], "values": [1]},
    "not a list": {"tokens": "a", "values": [1]},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_activation_that_cannot_be_read_is_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="an activation of feature 7 must have as many values, finite numbers"):
        labels_of(tmp_path, json.dumps({"index": "7", **WRONG[wrong]}))


@pytest.mark.parametrize("key", ["explanations", "activations"])
@pytest.mark.parametrize("value", [{"a": 1}, ["a"], 3])
def test_parts_that_are_no_objects_are_refused(tmp_path, key, value):
    with pytest.raises(InputError, match=f"{key} of feature 7 is not a list of objects"):
        labels_of(tmp_path, json.dumps({"index": 7, key: value}))


@pytest.mark.parametrize("index", [7.5, None, [], float("inf"), "7.0", True])
def test_an_index_that_is_no_whole_number_is_refused(tmp_path, index):
    with pytest.raises(InputError, match="an index is .*; it must be a whole number"):
        labels_of(tmp_path, json.dumps({"index": index, "description": "ships"}))
