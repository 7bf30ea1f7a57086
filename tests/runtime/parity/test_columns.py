"""In half precision one wrong weight shows in its column over the batch, where no token and no element shows it."""

import dataclasses
import shutil

import numpy as np
import pytest

import runtime
from runtime.arrays.dtypes import rounded
from runtime.parity.golden import load_golden
from runtime.parity.judge import judge
from saeexport import export
from saeexport.original.exportable import in_dtype
from saeexport.proof.truth import reference_of
from tests.support.breaking import rewrite, with_weight
from tests.support.samples import HOOKS, normal
from tests.support.zoo import D_IN, sae_of

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
COLUMN = 7


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def exported(request, tmp_path_factory):
    sae = sae_of("standard", d_sae=512)
    return export(sae, tmp_path_factory.mktemp("columns") / "sae", normal(128, D_IN), dtype=request.param).path


@pytest.fixture
def artifact(exported, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(exported, tmp_path / "sae")


@pytest.mark.parametrize(("graph", "weight", "hook", "what"), [
    ("encode", "W_enc", PRE, "feature"), ("model", "W_enc", PRE, "feature"), ("steer", "W_enc", PRE, "feature"),
    ("decode", "W_dec", RECONS, "dimension"),
])  # fmt: skip
def test_a_wrong_weight_is_seen_in_its_column_only(artifact, graph, weight, hook, what):
    clean = load_golden(runtime.read_artifact(artifact)).clean
    inputs = clean.original[INPUT if hook == PRE else POST]
    scaled = inputs / clean.scale(hook)[:, :1]
    size = np.sqrt((scaled**2).mean(axis=0))
    row = int(np.argmax((inputs != 0).mean(axis=0) - (scaled.max(axis=0) > 4 * size)))  # often on, and never very large

    def off(values):
        values = values.copy()
        values[row, COLUMN] += 1.6 * clean.column_budgets(hook)[COLUMN] / size[row]
        return values

    assert runtime.verify(artifact, "cpu").failures == []
    rewrite(artifact, f"{graph}.wide.onnx", with_weight(weight, off))
    (found,) = (failure for failure in runtime.verify(artifact, "cpu").failures if f"{graph}.wide" in failure)
    assert f"{hook}: over all tokens, the error of {what} {COLUMN} is" in found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_error_of_one_rounding_is_right_in_every_column(dtype):
    """The original's error in a column may be smaller than one rounding by chance."""
    reference = reference_of(in_dtype(sae_of("standard"), dtype), rounded(normal(32, D_IN), dtype))
    y = rounded(reference.truth[PRE].astype(np.float32), dtype)
    assert judge("encode", [PRE], {PRE: y}, reference, [PRE])[0].failures == ()
    y[:, 3] += (1.5 * reference.column_budgets(PRE)[3] * reference.scale(PRE)[:, 3]).astype(np.float32)
    (failure,) = judge("encode", [PRE], {PRE: y}, reference, [PRE])[0].failures
    assert "the error of feature 3 is" in failure
    assert "more like it" not in failure
    assert judge("encode", [PRE], {PRE: y}, reference)[0].failures == ()


def test_a_few_tokens_have_no_columns():
    """The original may be exact in a column of a few tokens by chance."""
    reference = reference_of(in_dtype(sae_of("standard"), "float16"), rounded(normal(32, D_IN), "float16"))
    y = reference.original[PRE].copy()
    y[:, 3] += (1.5 * reference.column_budgets(PRE)[3] * reference.scale(PRE)[:, 3]).astype(np.float32)
    few = dataclasses.replace(reference.subset(np.arange(32) > 0), recorded=reference.budgets)
    assert judge("encode", [PRE], {PRE: y}, reference, [PRE])[0].failures
    assert judge("encode", [PRE], {PRE: y[1:]}, few, [PRE])[0].failures == ()


def test_columns_are_not_judged_in_float32():
    """There, the order of a sum matters more than the rounding of the result, and tokens and elements show a fault."""
    reference = reference_of(sae_of("standard"), normal(64, D_IN))
    y = reference.original[PRE].copy()
    y[:, 3] += (1.5 * reference.column_budgets(PRE)[3] * reference.scale(PRE)[:, 3]).astype(np.float32)
    assert judge("encode", [PRE], {PRE: y}, reference, [PRE])[0].failures == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_token_that_is_far_larger_than_the_rest_does_not_decide_about_columns(tmp_path, dtype):
    """The first token of a text often is. In one token the original is exact by chance in some column."""
    x = normal(200, D_IN)
    x[0] *= 300
    export(sae_of("standard", d_sae=512), tmp_path / "sae", x, dtype=dtype)
