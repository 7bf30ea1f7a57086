"""The number of features that are on is counted for some tokens, or for all, by how many of them have k or more."""

import numpy as np
import pytest

from runtime import SAESession
from saeexport import export
from saeexport.original.architectures import ARCHITECTURES
from tests.support.samples import normal
from tests.support.zoo import D_IN, sae_of


@pytest.fixture(scope="module", params=[name for name in ARCHITECTURES if "topk" not in name])
def pools(request, tmp_path_factory):
    """A session, a k, tokens that have fewer than k features on, at least k, and exactly k."""
    path = export(sae_of(request.param), tmp_path_factory.mktemp("counting") / "sae").path
    with SAESession(path, "cpu") as session:
        x = np.concatenate([normal(200, D_IN), 0.3 * normal(200, D_IN, seed=1)])
        l0 = (session.encode(x) != 0).sum(axis=1)
        k = int(np.median(l0))
        yield session, k, x[l0 < k], x[l0 >= k], x[l0 == k]


@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
def test_whatever_part_of_the_tokens_has_more_features_than_are_asked_for(pools, tokens):
    session, k, below, above, equal = pools
    assert min(len(below), len(above)) >= 40
    draws = np.random.default_rng(tokens)
    for full in range(tokens + 1):
        x = np.concatenate([below[: tokens - full], above[:full]])[draws.permutation(tokens)]
        np.testing.assert_array_equal(session.top_features(x, k).l0, (session.encode(x) != 0).sum(axis=1))
    assert len(equal)
    assert (session.top_features(equal, k).l0 == k).all()


def test_tokens_with_nan_among_them(pools):
    session, k, below, above, _ = pools
    x = np.concatenate([below[:20], above[:10]])
    x[[3, 25], 0] = np.nan
    wanted = (session.encode(x) != 0).sum(axis=1)
    wanted[[3, 25]] = -1
    np.testing.assert_array_equal(session.top_features(x, k).l0, wanted)
