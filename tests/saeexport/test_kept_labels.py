"""The labels of an artifact stay with its SAE: loaded, exported again, in a whole tree, and from the Hub."""

import copy
import gzip
import json
import shutil

import pytest

from runtime import ArtifactError, InputError, IntegrityError, Label, Labels, read_artifact
from saeexport import export, export_all, load
from saeexport.cli import main
from tests.support.hub_server import HubServer
from tests.support.samples import make_sae, normal

LABELS = [Label(2, "two"), Label(7, "seven")]
ROWS = [{"modelId": "m", "layer": "l", "index": "3", "description": "three"}]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled") / "layer_0"
    return export(make_sae(), folder, normal(40, 6), labels=Labels(16, LABELS, "people", "CC0")).path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return export(make_sae(), tmp_path_factory.mktemp("plain") / "layer_0", normal(40, 6)).path


def has(path):
    return list(read_artifact(path).read_labels())


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_load_and_export_keep_them(labelled, tmp_path, dtype):
    sae = load(labelled)
    assert (list(sae.labels), sae.labels.source, sae.labels.license) == (LABELS, "people", "CC0")
    again = export(copy.deepcopy(sae), tmp_path / "again", normal(40, 6), dtype=dtype)
    kept = again.read_labels()
    assert (list(kept), kept.source, kept.license) == (LABELS, "people", "CC0")


def test_those_that_are_given_come_first(labelled, tmp_path):
    given = export(load(labelled), tmp_path / "given", normal(40, 6), labels=Labels(16, [Label(1, "one")]))
    assert has(given.path) == [Label(1, "one")]
    without = export(load(labelled), tmp_path / "without", normal(40, 6), labels=Labels(16))
    assert "labels.json" not in without.manifest.files


def test_an_sae_without_labels_has_none(plain, tmp_path):
    assert load(plain).labels is None
    assert make_sae().labels is None
    assert "labels.json" not in export(load(plain), tmp_path / "again", normal(40, 6)).manifest.files


def test_damaged_labels_are_not_left_out_silently(labelled, tmp_path):
    folder = shutil.copytree(labelled, tmp_path / "copy")
    (folder / "labels.json").write_text("{}")
    with pytest.raises(ArtifactError, match="labels.json"):
        load(folder)
    (folder / "labels.json").unlink()
    with pytest.raises(IntegrityError, match="labels.json is missing"):
        load(folder)


def test_export_all_keeps_them_and_notices_that_they_are_gone(labelled, plain, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(labelled, release / "layer_0")
    shutil.copytree(plain, release / "layer_1")
    (first, second) = export_all(release, tmp_path / "tree")
    assert (first.state, second.state) == ("exported", "exported")
    assert has(first.path) == LABELS
    assert has(second.path) == []
    assert [entry.state for entry in export_all(release, tmp_path / "tree")] == ["kept", "kept"]
    shutil.copytree(plain, release / "layer_0", dirs_exist_ok=True)
    (release / "layer_0" / "labels.json").unlink()
    entries = export_all(release, tmp_path / "tree", overwrite=True)
    assert [entry.state for entry in entries] == ["exported", "kept"]
    assert has(first.path) == []


def test_labels_of_a_whole_tree(plain, tmp_path):
    release, labels, tree = tmp_path / "release", tmp_path / "labels", tmp_path / "tree"
    for layer in range(2):
        shutil.copytree(plain, release / f"layer_{layer}")
    labels.mkdir()
    (labels / "layer_0.json").write_text(Labels(16, LABELS).to_json())
    arguments = ["export-all", str(release), str(tree), "--labels", str(labels)]
    assert main(arguments) == 1
    assert has(tree / "layer_0") == LABELS
    (failed,) = [entry for entry in export_all(release, tree, labels=labels) if entry.state == "failed"]
    expected = " or ".join(str(labels / f"layer_1{ending}") for ending in (".json", ".jsonl", ".json.gz", ".jsonl.gz"))
    assert failed.error == f"There are no labels for layer_1: expected {expected}."
    (labels / "layer_1.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    assert main(arguments) == 0
    assert has(tree / "layer_1") == [Label(3, "three")]
    assert {entry.state for entry in export_all(release, tree, labels=labels)} == {"kept"}
    (labels / "layer_0.json").write_text(Labels(16, LABELS[:1]).to_json())
    assert [entry.state for entry in export_all(release, tree, labels=labels, overwrite=True)] == ["exported", "kept"]
    assert has(tree / "layer_0") == LABELS[:1]


def test_one_file_for_every_checkpoint(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "release" / "layer_0")
    (tmp_path / "labels.json").write_text(json.dumps(ROWS))
    (entry,) = export_all(tmp_path / "release", tmp_path / "tree", labels=tmp_path / "labels.json")
    assert has(entry.path) == [Label(3, "three")]
    with pytest.raises(InputError, match="none does not exist; labels must be a file, or a folder of files"):
        export_all(tmp_path / "release", tmp_path / "tree", labels=tmp_path / "none")


def test_a_tree_of_an_earlier_version_is_kept(plain, tmp_path):
    """Records without labels are those that were written before labels could be given."""
    shutil.copytree(plain, tmp_path / "release" / "layer_0")
    export_all(tmp_path / "release", tmp_path / "tree")
    records = json.loads((tmp_path / "tree" / "exports.json").read_text())
    assert set(records["layer_0"]["options"]) == {"activations", "dtype", "error_term", "heads", "reading", "weights"}


def test_an_artifact_on_the_hub(labelled, tmp_path, monkeypatch):
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "cache")
        server.add_folder("ada/sae", labelled)
        sae = load("hf://ada/sae")
        assert list(sae.labels) == LABELS
        assert sorted(server.downloaded) == ["labels.json", "sae.json", "weights.safetensors"]
        assert main(["export", "hf://ada/sae", str(tmp_path / "out")]) == 0
        assert has(tmp_path / "out") == LABELS
        (tmp_path / "mine.json").write_text(json.dumps(ROWS))
        labels = ["--labels", str(tmp_path / "mine.json")]
        assert main(["export", "hf://ada/sae", str(tmp_path / "mine"), *labels]) == 0
        assert has(tmp_path / "mine") == [Label(3, "three")]
        (entry,) = export_all("hf://ada/sae", tmp_path / "tree")
        assert has(entry.path) == LABELS
