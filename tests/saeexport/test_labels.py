"""Labels are read from an artifact's `labels.json` and from what Neuronpedia exports, and exported with an SAE."""

import gzip
import json

import pytest

from runtime import InputError, Label, Labels, read_artifact
from saeexport import export, load_labels
from saeexport.cli import main
from tests.support.samples import make_sae, normal

ROWS = [
    {
        "modelId": "gpt2-small",
        "layer": "8-res-jb",
        "index": str(j),
        "description": f" about {j}",
        "explanationModelName": "a",
    }
    for j in (7, 2, 2)
]
ROWS[2] = ROWS[2] | {"description": "another"}
EXPECTED = [Label(2, "about 2"), Label(7, "about 7")]


def write(path, content, packed=False):
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", [json.dumps, lambda rows: "\n".join(map(json.dumps, rows)) + "\n"])
def test_an_export_of_neuronpedia(tmp_path, form, packed):
    labels = load_labels(write(tmp_path / "labels", form(ROWS), packed), 16)
    assert list(labels) == EXPECTED
    assert labels.source == "https://www.neuronpedia.org/gpt2-small/8-res-jb"


def test_a_single_explanation_on_a_line(tmp_path):
    assert list(load_labels(write(tmp_path / "labels", json.dumps(ROWS[0])), 16)) == [Label(7, "about 7")]


def test_explanations_that_do_not_name_their_sae(tmp_path):
    rows = [{"index": "7", "description": "about 7"}, ROWS[1]]
    assert load_labels(write(tmp_path / "labels", json.dumps(rows)), 16).source is not None
    assert load_labels(write(tmp_path / "labels", json.dumps(rows[:1])), 16).source is None


def test_labels_of_an_artifact(tmp_path):
    artifact = export(make_sae(), tmp_path / "sae", normal(40, 6), labels=Labels(16, EXPECTED, "people", "CC0"))
    labels = load_labels(artifact.path / "labels.json", 16)
    assert (list(labels), labels.source, labels.license) == (EXPECTED, "people", "CC0")


def test_the_command(tmp_path):
    export(make_sae(), tmp_path / "sae", normal(40, 6))
    path = write(tmp_path / "labels.jsonl", json.dumps(ROWS))
    assert main(["export", str(tmp_path / "sae"), str(tmp_path / "out"), "--labels", str(path)]) == 0
    assert list(read_artifact(tmp_path / "out").read_labels()) == EXPECTED


def test_an_artifact_that_is_exported_again_keeps_its_labels(tmp_path):
    path = str(export(make_sae(), tmp_path / "sae", normal(40, 6), labels=Labels(16, EXPECTED)).path)
    assert main(["export", path, path, "--overwrite"]) == 0
    assert list(read_artifact(path).read_labels()) == EXPECTED
    assert main(["export", path, str(tmp_path / "half"), "--dtype", "float16"]) == 0
    assert list(read_artifact(tmp_path / "half").read_labels()) == EXPECTED
    export(make_sae(), tmp_path / "without", normal(40, 6))
    assert main(["export", str(tmp_path / "without"), str(tmp_path / "again")]) == 0
    assert "labels.json" not in read_artifact(tmp_path / "again").manifest.files


WRONG = {
    "several SAEs": (
        [ROWS[0], ROWS[1] | {"layer": "9-res-jb"}],
        "about features of several SAEs: gpt2-small/8-res-jb, gpt",
    ),
    "index": ([ROWS[0] | {"index": "x"}], "an index is 'x'; it must be a whole number"),
    "too large": ([ROWS[0] | {"index": "16"}], "index is 16; it must be from 0 to d_sae - 1 = 15"),
    "no description": ([{"index": 3}], "Give labels.json of an artifact, or an export of Neuronpedia"),
    "numbers": ([1, 2], "Give labels.json of an artifact, or an export of Neuronpedia"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_before_the_export(tmp_path, wrong):
    rows, message = WRONG[wrong]
    path = write(tmp_path / "labels.json", json.dumps(rows))
    with pytest.raises(InputError, match=message):
        export(make_sae(), tmp_path / "sae", normal(40, 6), labels=path)
    assert not (tmp_path / "sae").exists()


@pytest.mark.parametrize("content", [b"text", b"\x1f\x8bno", b"\xff\xfe", b"[" * 100_000])
def test_what_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(InputError, match=r"labels (does not hold labels|cannot be read)"):
        load_labels(tmp_path / "labels", 16)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="labels does not exist, or is not a file"):
        load_labels(tmp_path / "labels", 16)


def test_labels_of_another_sae_are_refused(tmp_path):
    with pytest.raises(InputError, match="The labels are those of 15 features, and the SAE has 16"):
        export(make_sae(), tmp_path / "sae", normal(40, 6), labels=Labels(15))
