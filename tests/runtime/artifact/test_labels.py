"""Labels of features: what `labels.json` may hold, what is refused, and how they are shown."""

import json
import pickle
import shutil

import numpy as np
import pytest

from runtime import ArtifactError, Example, InputError, IntegrityError, Label, Labels, SAESession, read_artifact
from runtime.artifact.labels import read_labels
from saeexport import export
from tests.support.samples import TINY, make_sae, normal

SHIP = Label(3, "ships", (Example("the ship left the ship", ((4, 8), (18, 22)), 5.25), Example("a boat", ((2, 6),))))
EGG = Label(11, None, (Example("an egg, eggs", ((3, 6), (8, 11))), Example("a nest", ((2, 6),))))


@pytest.fixture(scope="module")
def labels():
    return Labels(16, [EGG, SHIP], "people", "CC0")


@pytest.fixture(scope="module")
def artifact(labels, tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled") / "sae"
    return export(make_sae(), path, normal(40, 6), labels=labels).path


def test_a_feature_has_its_label(labels):
    assert labels[3] is SHIP
    assert labels[4] == Label(4)
    assert 3 in labels
    assert 4 not in labels
    assert (len(labels), [label.index for label in labels]) == (2, [3, 11])
    assert repr(labels) == "Labels of 2 of 16 features, from people"


def test_a_label_is_shown_as_its_text_or_the_tokens_of_its_examples(labels):
    assert [str(labels[j]) for j in (3, 11, 0)] == ["ships", "egg / nest", ""]
    assert str(SHIP.examples[0]) == "the »ship« left the »ship«"


def test_what_is_written_is_read_again(labels):
    text = labels.to_json()
    again = read_labels(text.encode(), 16)
    assert list(again) == list(labels)
    assert (again.source, again.license) == ("people", "CC0")
    assert again.to_json() == text
    assert len(text.splitlines()) == 4


def test_no_labels_can_be_written():
    assert len(read_labels(Labels(16).to_json().encode(), 16)) == 0


def test_they_are_a_file_of_the_artifact(artifact, labels):
    manifest = read_artifact(artifact).manifest
    assert "labels.json" in manifest.files
    assert list(read_artifact(artifact).read_labels()) == list(labels)
    with SAESession(artifact, "cpu") as session:
        assert session.labels[3] == SHIP
        assert session.labels is session.labels


def test_an_artifact_without_labels_has_none():
    assert "labels.json" not in read_artifact(TINY).manifest.files
    with SAESession(TINY, "cpu") as session:
        assert (len(session.labels), str(session.labels[3])) == (0, "")


def test_a_file_that_was_changed_is_refused(artifact, tmp_path):
    copied = shutil.copytree(artifact, tmp_path / "sae")
    text = (copied / "labels.json").read_text()
    (copied / "labels.json").write_text(text.replace("boat", "goat"))
    with SAESession(copied, "cpu") as session, pytest.raises(IntegrityError, match="labels.json has sha256"):
        session.labels  # noqa: B018
    with pytest.raises(IntegrityError, match="labels.json has sha256"):
        read_artifact(copied).check_files()


@pytest.mark.parametrize("index", [-1, 16])
def test_a_feature_that_the_sae_does_not_have(labels, index):
    with pytest.raises(InputError, match=f"index is {index}; it must be from 0 to d_sae - 1 = 15"):
        labels[index]


def test_a_large_file_is_not_read(artifact, monkeypatch):
    opened = read_artifact(artifact)
    monkeypatch.setattr("runtime.artifact.labels.LARGEST", 100)
    monkeypatch.setattr("runtime.artifact.files.OpenedFile.read", lambda *_, **options: pytest.fail("read"))
    with pytest.raises(ArtifactError, match=r"labels.json has [\d,]+ bytes; labels have at most 100"):
        opened.read_labels()


WRONG = {
    "format": {"format": "x"},
    "version": {"format_version": 2},
    "no labels": {"labels": None},
    "not a list": {"labels": 3},
    "source": {"source": 3},
    "index": {"labels": [{"index": 16}]},
    "index as a text": {"labels": [{"index": "3"}]},
    "no index": {"labels": [{"text": "a"}]},
    "twice": {"labels": [{"index": 3}, {"index": 3}]},
    "text": {"labels": [{"index": 3, "text": 4}]},
    "example": {"labels": [{"index": 3, "examples": [{"text": 4}]}]},
    "no text": {"labels": [{"index": 3, "examples": [{}]}]},
    "span": {"labels": [{"index": 3, "examples": [{"text": "abc", "spans": [[1, 4]]}]}]},
    "empty span": {"labels": [{"index": 3, "examples": [{"text": "abc", "spans": [[1, 1]]}]}]},
    "overlap": {"labels": [{"index": 3, "examples": [{"text": "abc", "spans": [[0, 2], [1, 3]]}]}]},
    "three numbers": {"labels": [{"index": 3, "examples": [{"text": "abc", "spans": [[0, 1, 2]]}]}]},
    "infinite": {"labels": [{"index": 3, "examples": [{"text": "abc", "activation": float("inf")}]}]},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused(labels, wrong):
    content = json.dumps(json.loads(labels.to_json()) | WRONG[wrong])
    with pytest.raises(
        ArtifactError, match=r"labels.json does not hold labels of 16 features \(saeexport.labels 1\): "
    ):
        read_labels(content.encode(), 16)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"\xff", b"{", b"[" * 100_000, b"null"])
def test_what_is_not_json_of_labels_is_refused(content):
    with pytest.raises(ArtifactError, match="does not hold labels"):
        read_labels(content, 16)


def test_top_features_are_printed_with_labels(artifact):
    with SAESession(artifact, "cpu") as session:
        found = session.top_features(normal(12, 6), 16)
        lines = str(found).splitlines()
        assert lines[0].split() == ["token", "l0", "strongest", "features"]
        assert len(lines) == 12
        assert lines[-1] == "and 2 more tokens"
        on = found.indices == 3
        token = int(np.flatnonzero(on[:10, :5].any(axis=1))[0])
        assert f'3 {found.values[token][on[token]][0]:.2f} "ships"' in lines[1 + token]
        assert "ships" in found._repr_html_()
        assert "ships" not in str(pickle.loads(pickle.dumps(found))), "a copy does not hold the session"
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).indices, found.indices)


def test_labels_are_escaped_in_html(tmp_path):
    labels = Labels(16, [Label(j, "<script>") for j in range(16)])
    with SAESession(export(make_sae(), tmp_path / "sae", normal(40, 6), labels=labels).path, "cpu") as session:
        assert "<script>" not in session.top_features(normal(2, 6), 3)._repr_html_()


def test_top_features_without_labels_are_printed():
    with SAESession(TINY, "cpu") as session:
        x = normal(2, 6)
        x[1] = np.nan
        lines = str(session.top_features(x, 2)).splitlines()
    assert [line.split()[1] for line in lines[1:]] == [lines[1].split()[1], "NaN"]
    assert '"' not in lines[1]
