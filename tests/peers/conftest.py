import importlib.util

import pytest


def pytest_addoption(parser):
    parser.addoption("--require-peers", action="store_true", help="a test that needs another library fails without it")


def pytest_runtest_setup(item):
    for marker in item.iter_markers("peers"):
        missing = [library for library in marker.args if importlib.util.find_spec(library) is None]
        if missing and item.config.getoption("--require-peers", default=False):
            pytest.fail(f"--require-peers: {', '.join(missing)} cannot be imported")
        if missing:
            pytest.skip(f"needs {', '.join(missing)}; make test-peers has them")
