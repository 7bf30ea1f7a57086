import pytest

from runtime import SAESession
from saeexport import export
from tests.support.life import results
from tests.support.samples import TINY, make_sae, normal


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """An artifact of the same shapes with other weights; not to be changed."""
    return export(make_sae(seed=5), tmp_path_factory.mktemp("other") / "sae", normal(40, 6)).path


@pytest.fixture(scope="module")
def wanted():
    """What the small artifact computes."""
    with SAESession(TINY, "cpu") as session:
        return results(session)
