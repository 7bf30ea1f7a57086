import pytest

from runtime import HostSession
from tests.support.grafted import graft_tiny


@pytest.fixture(scope="session")
def grafted(tmp_path_factory):
    return graft_tiny(tmp_path_factory.mktemp("grafted"), tokenizer=True)


@pytest.fixture(scope="session")
def opened(grafted):
    with HostSession(grafted.path, "cpu", threads=1) as host:
        yield host


@pytest.fixture
def host(opened):
    yield opened
    opened.reset_saes()


@pytest.fixture(scope="session")
def feeds(grafted):
    return {name: array for name, array in grafted.model.feeds().items() if not name.startswith("past")}


@pytest.fixture(scope="session")
def mask(feeds):
    return feeds["attention_mask"] != 0
