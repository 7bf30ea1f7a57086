"""The committed artifacts pass verification, can be reproduced, and match their README."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import runtime
import saeexport
from runtime import SAESession
from runtime.artifact.contracts import CONTRACTS, graph_file
from tests.support import oracle
from tests.support.samples import HOOKS, MINILM, ROOT, TINY, normal


@pytest.fixture(params=[TINY, MINILM], ids=["tiny", "minilm"])
def path(request):
    return request.param


def test_they_pass_with_and_without_pytorch(path):
    runtime.assert_parity(path, device="cpu")
    saeexport.assert_parity(path, device="cpu")
    width = runtime.read_artifact(path).manifest.sae.d_in
    saeexport.assert_parity(path, saeexport.load(path), normal(50, width), device="cpu")


def test_they_agree_with_the_oracle_on_real_inputs(path):
    """Compare with float64 NumPy that shares no code with the exporter, the parity rule or the original."""
    golden = load_file(path / "golden.safetensors")
    cfg = runtime.read_artifact(path).manifest.sae
    truth = oracle.six_hooks(load_file(path / "weights.safetensors"), golden["hook_sae_input"], cfg.use_error_term)
    with SAESession(path, "cpu") as session:
        _, cache = session.run_with_cache(golden["hook_sae_input"])
    for hook in HOOKS:
        # The error is a small difference of large numbers, and rounds as they do.
        size = np.abs(truth["hook_sae_input" if hook == "hook_sae_error" else hook]).max()
        np.testing.assert_allclose(cache[hook], truth[hook], rtol=0, atol=2e-6 * size, err_msg=hook)
        if hook != HOOKS[0]:  # and so does the truth that the file stores
            stored = golden[hook].astype(np.float64) + golden[f"residual.{hook}"]
            np.testing.assert_allclose(stored, truth[hook], rtol=0, atol=1e-12 * size, err_msg=hook)


@pytest.mark.usefixtures("fresh_trace")
@pytest.mark.slow
def test_exported_again_graphs_and_weights_are_the_same_bytes(path, tmp_path):
    again = saeexport.export(saeexport.load(path), tmp_path / "again").path
    for name in (*map(graph_file, CONTRACTS), "weights.safetensors"):
        assert (again / name).read_bytes() == (path / name).read_bytes(), name


def test_their_golden_inputs_are_real():
    for path in (TINY, MINILM):
        assert runtime.read_artifact(path).manifest.golden.source == "activations"
    assert runtime.read_artifact(MINILM).manifest.golden.tokens == 64


def test_the_real_sae_stays_small():
    assert sum(file.stat().st_size for file in MINILM.iterdir()) < 15e6
    assert sum(file.stat().st_size for file in TINY.iterdir()) < 100e3


def test_the_readme_quotes_the_evaluation():
    measured = json.loads((ROOT / "models" / "minilm" / "evaluation.json").read_text())
    rows = re.findall(r"\| ([\d.]+) \| `(\w+)` \|", (ROOT / "models" / "README.md").read_text())
    assert {key: float(value) for value, key in rows} == {
        key: value for key, value in measured.items() if key not in ("texts", "tokens", "made_with")
    }
    assert (
        f"{measured['texts']:,} held-out texts ({measured['tokens']:,} tokens)"
        in (ROOT / "models" / "README.md").read_text()
    )


def test_the_real_sae_meets_its_quality_bounds():
    measured = json.loads((ROOT / "models" / "minilm" / "evaluation.json").read_text())
    assert 20 <= measured["l0_mean"] <= 60
    assert measured["variance_explained"] >= 0.80
    assert measured["dead_features"] < 0.05


def test_nearly_every_feature_has_examples():
    labels = runtime.read_artifact(MINILM).read_labels()
    assert len(labels) > 0.99 * labels.d_sae
    assert all(example.spans for label in labels for example in label.examples)
    assert labels.source
    assert labels.license


@pytest.mark.slow
def test_the_real_sae_is_grafted_into_its_language_model(tmp_path):
    folders = [str(tmp_path / "host"), str(tmp_path / "two")]
    command = [sys.executable, str(ROOT / "models" / "minilm" / "host.py"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "grafted at blocks.2.hook_normalized_resid_post" in done.stdout
    before, after = map(float, re.findall(r"similarity is (\S+), and without feature 1460 (\S+)\.", done.stdout)[0])
    assert before - after > 0.05
    assert list(runtime.HostSession(tmp_path / "two", "cpu").hook_names) == [
        "blocks.2.hook_normalized_resid_post", "blocks.4.hook_normalized_resid_post"
    ]  # fmt: skip
    before, after = map(float, re.findall(r"at blocks\.4\.\S+ falls from (\S+) to (\S+) at", done.stdout)[0])
    assert before - after > 0.5
    plain, both = map(float, re.findall(r"sentences is (\S+), and (\S+) of what both", done.stdout)[0])
    assert plain != both
