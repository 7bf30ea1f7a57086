import pytest

from tests.support.hub_server import HubServer
from tests.support.samples import TINY


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with the artifact `ada/tiny`, which huggingface_hub in this process uses."""
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "cache")
        server.tiny = server.add_folder("ada/tiny", TINY)
        yield server
