"""Fixtures of the tests of parity."""

import zipfile

import pytest

from tests.fixtures.__main__ import FOLDER


@pytest.fixture
def unpacked(tmp_path):
    """Return a function that unpacks an artifact of format 1, which may be changed."""

    def unpacked(name):
        with zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
            archive.extractall(tmp_path / name)
        return tmp_path / name

    return unpacked
