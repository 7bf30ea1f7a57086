"""The intervention on which `steer` is proved, worked out by hand."""

import numpy as np
import pytest

from runtime.arrays.dtypes import rounded
from saeexport.proof.truth import typical_intervention
from tests.support.references import make_reference

KINDS = [(0, 0), (0, 1), (0.5, 0), (1, 1)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_features_that_are_on_most_often_and_the_one_least_often_are_edited(dtype):
    acts = np.zeros((10, 12), np.float32)
    for feature in range(10):
        acts[feature:, feature] = np.arange(10 - feature) + 1.0  # 0 is on for all tokens, 9 for one
    acts[:, 1] *= -1
    found = typical_intervention(make_reference(acts, acts, dtype=dtype))
    assert found.ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 11]
    size = [5.5, -5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 1.0]  # feature 11 is never on
    for token in range(10):
        kinds = [KINDS[(token + i) % 4] for i in range(8)]
        assert found.scale[token].tolist() == [scale for scale, _ in kinds]
        assert found.shift[token].tolist() == [shift * size[i] for i, (_, shift) in enumerate(kinds)]


def test_all_of_a_few_features_are_edited_by_values_of_the_dtype():
    acts = np.float32([[0, 1, 0], [1.001, 1, 0], [1.001, 1, 0], [0, 1, 0]])
    found = typical_intervention(make_reference(acts, dtype="bfloat16"))
    assert found.ids.tolist() == [1, 0, 2]
    size = rounded(np.float32(1.001), "bfloat16")
    assert found.shift[:, 1].tolist() == [size, 0, size, 0]
    assert found.scale[:, 1].tolist() == [0, 0.5, 1, 0]


@pytest.mark.parametrize(("d_sae", "ids"), [
    (1, [0]), (7, [1, 3, 5, 0, 2, 4, 6]), (8, [1, 3, 5, 7, 0, 2, 4, 6]), (9, [1, 3, 5, 7, 0, 2, 4, 8]),
    (64, [1, 3, 5, 7, 9, 11, 13, 62]),
])  # fmt: skip
def test_of_features_that_are_on_as_often_the_first_are_edited(d_sae, ids):
    acts = np.ones((4, d_sae), np.float32)
    acts[:2, ::2] = 0
    assert typical_intervention(make_reference(acts, acts)).ids.tolist() == ids
