"""The plugin of pytest: each hook of each graph of an artifact is a test, in the test suite of whoever uses it."""

import os
import re
import shutil
import subprocess
import sys

import onnx
import pytest

from runtime import SAESession, read_artifact
from runtime.parity.verify import judged_outputs
from saeexport import sign
from tests.support.breaking import claim_weights, edit_graph, edit_weight, rewrite
from tests.support.keys import make_key
from tests.support.samples import ROOT, TINY

pytest_plugins = ["pytester"]


@pytest.fixture
def suite(pytester, monkeypatch):
    """Run pytest with the plugin in an empty folder; files can be made there before."""
    for variable in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # each run would import the others anew, a second each

    def run(*arguments, device="cpu"):
        options = ["-p", "no:cacheprovider", "-p", "pytest_saeexport", "--sae-device", device, "-rA"]
        return pytester.runpytest_inprocess(*options, *map(str, arguments))

    return run


def ids_of(result, outcome):
    return re.findall(rf"^{outcome} (\S+)", result.stdout.str(), re.MULTILINE)


def test_each_hook_of_each_graph_is_a_test(suite):
    result = suite(f"--sae-artifact={TINY}")
    result.assert_outcomes(passed=36)
    expected = [f"sae-artifact::tiny::{graph}::{hook}" for graph, hook in judged_outputs(read_artifact(TINY).manifest)]
    assert ids_of(result, "PASSED") == expected
    assert result.ret == 0


def test_the_tests_of_a_suite_run_with_those_of_artifacts(suite, pytester, half):
    pytester.makepyfile("def test_own(): pass")
    result = suite(f"--sae-artifact={TINY}", f"--sae-artifact={half}")
    outcomes = result.parseoutcomes()
    assert ids_of(result, "PASSED")[0].endswith("::test_own")
    assert outcomes["passed"] > 36 + 1
    assert "a CPU does not compute in bfloat16" in result.stdout.str()
    assert outcomes["skipped"] > 0


def test_tests_can_be_chosen_and_listed_without_running_a_graph(suite, monkeypatch):
    suite(f"--sae-artifact={TINY}", "-k", "steer and recons").assert_outcomes(passed=2, deselected=34)
    monkeypatch.setattr(SAESession, "run_graph", lambda *arguments: pytest.fail("a graph was run"))
    result = suite(f"--sae-artifact={TINY}", "--collect-only", "-q")
    assert "sae-artifact::tiny::model::hook_sae_output" in result.stdout.str()
    assert result.ret == 0


def test_a_wrong_weight_fails_where_it_is_with_the_numbers(suite, artifact):
    rewrite(artifact, "weights.safetensors", edit_weight("W_dec", (0, 0), 1.5))
    claim_weights(artifact)
    result = suite(f"--sae-artifact={artifact}")
    failed = ids_of(result, "FAILED")
    assert "sae-artifact::tiny::decode::hook_sae_recons" in failed
    assert "sae-artifact::tiny::encode::hook_sae_acts_pre" not in failed
    assert re.search(r"decode: hook_sae_recons: the token error is \S+, its budget \S+\. Worst at", result.stdout.str())
    assert "Traceback" not in result.stdout.str()
    assert result.ret == 1


def test_a_graph_with_another_output_fails_in_all_its_tests(suite, artifact):
    def add(model):
        model.graph.node.append(onnx.helper.make_node("Identity", [model.graph.output[0].name], ["more"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, None))

    rewrite(artifact, "encode.onnx", edit_graph(add))
    failed = ids_of(suite(f"--sae-artifact={artifact}"), "FAILED")
    assert failed == [f"sae-artifact::tiny::encode::hook_sae_{hook}" for hook in ("acts_pre", "acts_post")]


@pytest.mark.parametrize(
    ("spoil", "failed", "message"),
    [
        (lambda folder: (folder / "acts.onnx").unlink(), 1, "acts.onnx is missing"),
        (lambda folder: (folder / "sae.json").unlink(), 1, "is not an artifact"),
        (shutil.rmtree, 1, "it does not exist"),
    ],
)
def test_an_artifact_that_is_damaged_fails(suite, artifact, spoil, failed, message):
    spoil(artifact)
    result = suite(f"--sae-artifact={artifact}")
    result.assert_outcomes(failed=failed)
    assert message in result.stdout.str()


def test_a_graph_that_does_not_load_fails_in_all_its_tests(suite, artifact):
    rewrite(artifact, "decode.onnx", lambda path: path.write_bytes(b"no graph"))
    result = suite(f"--sae-artifact={artifact}")
    assert "sae-artifact::tiny::decode::hook_sae_recons" in ids_of(result, "FAILED")
    assert "sae-artifact::tiny::encode::hook_sae_acts_pre" in ids_of(result, "PASSED")


def test_an_unusable_device_fails(suite):
    suite(f"--sae-artifact={TINY}", device="gpu").assert_outcomes(failed=1)


def test_the_fixture_hands_out_a_session_of_each_artifact(suite, pytester, artifact):
    pytester.makepyfile("""
        import numpy

        def test_width(sae_session):
            assert sae_session.device == "cpu"
            assert sae_session(numpy.ones((2, 6), "float32")).shape == (2, 6)
    """)
    copy = shutil.copytree(artifact, artifact.with_name("copy"))
    result = suite(f"--sae-artifact={artifact}", f"--sae-artifact={copy}", "-k", "width")
    assert [name.partition("::")[2] for name in ids_of(result, "PASSED")] == ["test_width[tiny]", "test_width[copy]"]
    result = suite()
    result.assert_outcomes(skipped=1)
    assert "needs --sae-artifact PATH" in result.stdout.str()


def test_a_signature_can_be_asked_for(suite, artifact, tmp_path):
    private, public = make_key(tmp_path)
    result = suite(f"--sae-artifact={artifact}", f"--sae-public-key={public}")
    result.assert_outcomes(failed=1)
    assert "is not signed" in result.stdout.str()
    sign(artifact, private)
    suite(f"--sae-artifact={artifact}", f"--sae-public-key={public}").assert_outcomes(passed=36)


def test_a_test_that_changes_the_working_directory_is_not_in_the_way(suite, pytester, artifact, tmp_path, monkeypatch):
    private, public = make_key(tmp_path)
    sign(artifact, private)
    shutil.copy(public, "release.pub")
    pytester.makepyfile(test_first="def test_it(tmp_path): __import__('os').chdir(tmp_path)")
    monkeypatch.chdir(".")  # which is restored at the end
    suite(f"--sae-artifact={artifact}", "--sae-public-key=release.pub").assert_outcomes(passed=37)


def test_it_costs_a_run_that_does_not_use_it_nothing(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_it():\n"
        "    assert 'pytest_saeexport' in sys.modules\n"
        "    assert not {'numpy', 'onnxruntime', 'runtime', 'saeexport', 'torch'} & set(sys.modules)\n"
    )
    # The plugins that happen to be installed here may import anything.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pytest_saeexport", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_pytest_finds_it_by_its_entry_point():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(
        r'^\[project\.entry-points\.pytest11\].*\npytest_saeexport = "pytest_saeexport"$', text, re.MULTILINE
    )
    assert '"pytest_saeexport"]' in re.search(r"packages\.find\]\ninclude = .*", text)[0]
