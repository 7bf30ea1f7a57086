"""What the manifest says about engines is what the engines did, and the survey of engines finds differences."""

import json
import subprocess
import sys

import pytest

from runtime.artifact.folder import read_artifact
from saeexport import export
from tests.support.samples import MINILM, ROOT, TINY, make_sae, normal

FOLDER = ROOT / "examples" / "engines"
SURVEYED = json.loads((FOLDER / "engines.json").read_text())
GRAPHS = read_artifact(MINILM).manifest.graphs
ONNXRUNTIMES = [name for name in SURVEYED if name.startswith("onnxruntime ")]
REFUSED = {("tract 0.23.9", "features")}
"""Portable graphs that an engine does not run; examples/engines/README.md says why."""


def release(text):
    return [int(part) for part in text.split(".")[:2]]


@pytest.mark.parametrize("engine", SURVEYED)
def test_every_engine_was_tried_with_every_graph_and_runs_the_portable_ones(engine):
    found = SURVEYED[engine]
    assert list(found) == list(GRAPHS)
    if engine in ONNXRUNTIMES:
        return
    for graph, spec in GRAPHS.items():
        if spec.requires.portable:
            assert (found[graph] == "ok") == ((engine, graph) not in REFUSED), graph


def test_onnx_runtime_takes_a_graph_from_the_release_on_that_the_manifest_says():
    releases = sorted(ONNXRUNTIMES, key=lambda name: release(name.split()[1]))
    for graph, spec in GRAPHS.items():
        takes = {name: SURVEYED[name][graph] == "ok" for name in releases}
        assert takes == {name: release(name.split()[1]) >= release(spec.requires.onnxruntime) for name in releases}
    assert any(release(name.split()[1]) == release(GRAPHS["model"].requires.onnxruntime) for name in releases)
    assert release(releases[0].split()[1]) == [1, 17]  # the one before the first


def test_no_other_engine_has_to_take_what_is_not_portable():
    """Each CPU variant of a reconstruction is refused by some engine, so that the difference is not an empty one."""
    for graph, spec in GRAPHS.items():
        if not spec.requires.portable and graph != "acts":
            assert any(found[graph] != "ok" for name, found in SURVEYED.items() if name not in ONNXRUNTIMES), graph


@pytest.fixture
def survey(tmp_path):
    """Return a function that runs a copy of the survey in ONNX Runtime, whose recorded result is given."""
    for name in ("survey.py", "engines.py", "golden.py"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())

    def run(artifact, *options, recorded=None):
        if recorded is not None:
            (tmp_path / "engines.json").write_text(json.dumps(recorded))
        command = [sys.executable, tmp_path / "survey.py", "onnxruntime", artifact, *options]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def test_a_result_that_differs_from_the_recorded_one_is_found(survey, tmp_path):
    done = survey(TINY, "--record")
    assert done.returncode == 0, done.stderr
    ((engine, found),) = json.loads((tmp_path / "engines.json").read_text()).items()
    assert set(found.values()) == {"ok"}
    assert "model.sparse     ONNX Runtime only  ok" in done.stdout
    assert "model            any engine         ok" in done.stdout
    assert survey(TINY, "--compare").returncode == 0
    for changed in ({**found, "model": "refused: why"}, {"model": "ok"}):
        done = survey(TINY, "--compare", recorded={engine: changed})
        assert (done.returncode, "engines.json has" in done.stderr) == (1, True)
        assert survey(TINY, recorded={engine: changed}).returncode == 0  # somebody's own artifact is only shown


def test_an_artifact_that_the_rule_is_not_for_is_refused(survey, tmp_path):
    int8 = export(make_sae(), tmp_path / "int8", normal(40, 6), weights="int8").path
    done = survey(int8)
    assert done.returncode == 2
    assert "has int8 weights; the rule of golden.py is for float32. Use python -m runtime verify." in done.stderr
