"""A `.npy` file that is damaged is read or refused with an error of ours."""

import contextlib
import os
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import InputError
from runtime.arrays.npyfile import map_npy
from tests.support.fuzzing import fuzz
from tests.support.samples import normal

BYTES = st.sampled_from(b"0123456789,()[]{}'<>|fiOVTe:.-# \n\0\xff")


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "x.npy", normal(3, 6))
    return tmp_path / "x.npy"


def test_an_array_is_mapped(path):
    assert isinstance(map_npy(path), np.memmap)
    np.testing.assert_array_equal(map_npy(os.fspath(path)), normal(3, 6))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': T3, 6), }",
        "{'descr': '<,4', 'fortran_order': False, 'shape': (3, 6), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 10**30), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 6), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999999, 6), }",
        "{'descr': None, 'fortran_order': False, 'shape': (3, 6), }",
        "[" * 90,
    ],
)
def test_a_damaged_header_is_refused(path, header):
    """Python's parser reads the header, and raises errors of its own."""
    content = path.read_bytes()
    path.write_bytes(content[:10] + header.encode().ljust(117) + b"\n" + content[128:])
    with pytest.raises(InputError, match="is not a .npy file of numbers"):
        map_npy(path)


@given(st.data())
@fuzz(300)
def test_changed_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    np.save(path, normal(3, 6))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 100))] = data.draw(
            st.sampled_from(b"0123456789,()[]{}'<>|fiOVTe:.-# \n\0\xff")
        )
    path.write_bytes(content[: len(content) - data.draw(st.sampled_from([0, 0, 0, 1, 72]))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 2's headers
        with contextlib.suppress(InputError):
            map_npy(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_not_an_ordinary_file_is_refused(path, make):
    path.unlink()
    make(path)
    with pytest.raises(InputError, match=r"x\.npy is not an ordinary file. Pass the path of a .npy file"):
        map_npy(path)
