"""The outputs of another program are judged as those of this machine are."""

import shutil

import numpy as np
import onnxruntime
import pytest

import runtime
from runtime import InputError, SAESession, verify_outputs
from saeexport import export
from tests.support.samples import HOOKS, TINY, normal
from tests.support.zoo import D_IN, sae_of

ALL = ("model", "encode", "activate", "decode", "steer", "features")


@pytest.fixture
def elsewhere():
    """ONNX Runtime without this project's session, as a program of its own."""

    def run(graph, inputs):
        session = onnxruntime.InferenceSession(TINY / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        return dict(zip([tensor.name for tensor in session.get_outputs()], session.run(None, inputs), strict=True))

    return run


def test_a_correct_program_passes_with_the_verdicts_of_verify(elsewhere):
    report = verify_outputs(TINY, elsewhere, ALL)
    assert report.failures == []
    here = {(verdict.graph, verdict.hook) for verdict in runtime.verify(TINY, "cpu").verdicts}
    assert {(verdict.graph, verdict.hook) for verdict in report.verdicts} == {one for one in here if one[0] in ALL}
    assert "outputs of another program" in str(report)


def test_one_graph_is_enough(elsewhere):
    report = verify_outputs(TINY, elsewhere)
    assert [verdict.hook for verdict in report.verdicts] == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_above_the_budget_fails(elsewhere, hook):
    def wrong(graph, inputs):
        outputs = elsewhere(graph, inputs)
        outputs[hook] = outputs[hook].copy()
        outputs[hook].flat[np.abs(outputs[hook]).argmax()] *= 1 + 1e-4
        return outputs

    failures = verify_outputs(TINY, wrong).failures
    assert any(hook in failure for failure in failures)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda outputs: outputs.pop("hook_sae_error"),
        lambda outputs: outputs.update(hook_sae_recons=outputs["hook_sae_recons"][:-1]),
        lambda outputs: outputs.update(hook_sae_recons=outputs["hook_sae_recons"].astype(np.float64)),
        lambda outputs: outputs.update(hook_sae_acts_post=outputs["hook_sae_acts_pre"]),
        lambda outputs: outputs["hook_sae_output"].fill(np.nan),
    ],
    ids=["missing", "a token too few", "another dtype", "another hook", "NaN"],
)
def test_outputs_that_are_not_those_of_the_graph_fail(elsewhere, spoil):
    def wrong(graph, inputs):
        outputs = elsewhere(graph, inputs)
        spoil(outputs)
        return outputs

    assert verify_outputs(TINY, wrong).failures


def test_what_the_program_raises_passes_through(elsewhere):
    def broken(graph, inputs):
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError):
        verify_outputs(TINY, broken)


def test_a_graph_that_is_not_there_and_a_changed_file_are_refused(elsewhere, tmp_path):
    with pytest.raises(InputError, match="has no graph middle; it has model"):
        verify_outputs(TINY, elsewhere, ["middle"])
    for graphs in ([], "model"):  # without a graph, nothing could fail
        with pytest.raises(InputError, match="must be a list of one or more of model"):
            verify_outputs(TINY, elsewhere, graphs)
    copy = shutil.copytree(TINY, tmp_path / "copy")
    content = bytearray((copy / "golden.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "golden.safetensors").write_bytes(content)
    assert verify_outputs(copy, elsewhere).failures


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ["topk", "gated"])
def test_decisions_that_differ_from_the_originals_are_followed(architecture, dtype, tmp_path):
    path = export(sae_of(architecture), tmp_path / "sae", normal(40, D_IN), dtype=dtype).path
    with SAESession(path, "cpu") as session:

        def run(graph, inputs):
            inputs["input"] = inputs["input"].copy()
            cache = session.compute(inputs["input"], session.hook_names)
            return {name: np.asarray(tensor) for name, tensor in cache.items()}

        def off_by_one_feature(graph, inputs):
            outputs = run(graph, inputs)
            acts = outputs["hook_sae_acts_post"].copy()
            acts[0] = np.roll(acts[0], 1)
            return outputs | {"hook_sae_acts_post": acts}

        assert verify_outputs(path, run).failures == []
        assert verify_outputs(path, off_by_one_feature).failures
