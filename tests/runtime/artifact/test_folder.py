"""The representations of an artifact: two lines in a terminal, a table in a notebook."""

import dataclasses
from xml.etree import ElementTree

from runtime import read_artifact
from tests.support.samples import TINY


def renamed(**changes):
    """Return the tiny artifact with another configuration."""
    artifact = read_artifact(TINY)
    sae = dataclasses.replace(artifact.manifest.sae, **changes)
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, sae=sae))


def test_its_repr_is_two_lines():
    artifact = read_artifact(TINY)
    sae, graphs, parity = artifact.manifest.sae, len(artifact.manifest.graphs), artifact.manifest.parity
    first, second = repr(artifact).split("\n")
    assert first == f"Artifact({str(TINY)!r}): standard SAE on {sae.hook_name}, 6 -> 16 features, float32"
    assert second.startswith(f"  {graphs} graphs, parity on {parity.tokens} tokens (cpu), largest")


def test_other_kinds_of_artifacts_are_distinguished(half):
    assert "6 -> 16 features -> 5, float32" in repr(renamed(d_out=5))
    assert "2 x 3 -> 16 features" in repr(renamed(head_shape=(2, 3)))
    assert "SAE on no hook," in repr(renamed(hook_name=""))
    assert "bfloat16\n" in repr(read_artifact(half))


def test_without_parity_it_shows_the_fidelity():
    tiny = read_artifact(TINY)
    lost = dataclasses.replace(tiny.manifest, parity=None, weights_dtype="int8", fidelity=tiny.manifest.parity)
    assert "graphs, int8 weights: fidelity on " in repr(dataclasses.replace(tiny, manifest=lost))


def test_its_table_for_notebooks_is_escaped():
    artifact = renamed(hook_name="<script>&")
    text = artifact._repr_html_()
    rows = {row[0].text: row[1].text for row in ElementTree.fromstring(text)}
    assert list(rows) == ["path", "architecture", "hook", "shape", "dtype", "graphs", "parity"]
    assert "<script>" not in text
    assert rows["hook"] == "<script>&"
    assert rows["path"] == str(TINY)
    assert rows["shape"] == "6 -> 16 features"
    assert rows["graphs"].startswith("model, encode, activate")
