"""Watched features of an SAE whose tokens have heads, in every shape that a batch may have."""

import numpy as np
import pytest

from runtime import InputError, SAESession
from saeexport import export
from tests.support.samples import make_sae, normal

D_IN, HEADS, IDS = 12, (3, 4), [5, 0, 9]
WITH_HEADS = [(5, 3, 4), (2, 5, 3, 4), (1, 2, 5, 3, 4), (3, 4), (0, 3, 4), (2, 0, 3, 4)]
FLAT = [(5, 12), (2, 5, 12), (5, 1, 12), (12,)]


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def session(request, tmp_path_factory):
    sae = make_sae(D_IN, hook_name="blocks.0.attn.hook_z")
    path = tmp_path_factory.mktemp("heads") / "sae"
    export(sae, path, normal(20, *HEADS), head_shape=HEADS, dtype=request.param)
    with SAESession(path, "cpu") as session:
        yield session


@pytest.mark.parametrize("shape", [*WITH_HEADS, *FLAT], ids=str)
def test_the_values_are_those_of_encode(session, shape):
    x = normal(*shape).astype(session.cfg.dtype)
    expected = session.encode(x)[..., IDS]
    found = session.watch(IDS)(x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 3, 3), (5, 4), (4,), ()], ids=str)
def test_tokens_of_another_shape_are_refused(session, shape):
    watch = session.watch(IDS)
    with pytest.raises(InputError, match=r"this SAE takes \(\.\.\., 12\) or \(\.\.\., n_heads, d_head\)"):
        watch(np.zeros(shape, session.cfg.dtype))
