import importlib.util

import pytest


def pytest_addoption(parser):
    parser.addoption("--require-hosts", action="store_true", help="a test that needs another exporter fails without it")
    parser.addoption("--record", action="store_true", help="write what was found to benchmarks/results/hosts.json")


def pytest_runtest_setup(item):
    for marker in item.iter_markers("hosts"):
        missing = [package for package in marker.args if importlib.util.find_spec(package) is None]
        if missing and item.config.getoption("--require-hosts", default=False):
            pytest.fail(f"--require-hosts: {', '.join(missing)} cannot be imported")
        if missing:
            pytest.skip(f"needs {', '.join(missing)}; make test-hosts has them")
