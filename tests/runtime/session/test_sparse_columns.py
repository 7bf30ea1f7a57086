"""Top features as a sparse matrix, as a table, and as what search engines take."""

import sys

import numpy as np
import pytest

from runtime import InputError, SAESession
from runtime.session.features import TopFeatures
from tests.support.samples import TINY, normal


@pytest.fixture(scope="module")
def session():
    with SAESession(TINY, "cpu") as session:
        yield session


@pytest.fixture
def found(session):
    return session.top_features(normal(4, 3, 6), 16)


def with_nan(session):
    x = normal(5, 6)
    x[2] = np.nan
    return session.top_features(x, 16)


def test_a_sparse_matrix_has_the_activations(session, found):
    matrix = found.to_scipy(16)
    assert matrix.format == "csr"
    assert matrix.has_sorted_indices
    assert matrix.nnz == found.l0.sum()
    np.testing.assert_array_equal(matrix.toarray(), session.encode(normal(4, 3, 6)).reshape(12, 16))


def test_a_result_that_is_not_lossless_has_the_strongest(session):
    found = session.top_features(normal(9, 6), 2)
    np.testing.assert_array_equal(found.to_scipy(16).toarray(), found.dense(16))


def test_a_table_has_the_strongest_first(found):
    table = found.to_arrow()
    assert [str(field.type) for field in table.schema] == ["list<item: int32>", "list<item: float>", "int32"]
    for row, indices, values, l0 in zip(
        table.to_pylist(), *(np.asarray(part).reshape(12, -1) for part in found), strict=True
    ):
        assert row == {
            "indices": indices[indices >= 0].tolist(),
            "values": values[indices >= 0].tolist(),
            "l0": int(l0[0]),
        }


def test_the_row_of_a_token_with_nan_is_null(session):
    rows = with_nan(session).to_arrow().to_pylist()
    assert rows[2] == {"indices": None, "values": None, "l0": None}
    assert all(row["l0"] == len(row["indices"]) for place, row in enumerate(rows) if place != 2)


def test_vectors_are_in_the_order_of_ids(session, found):
    dense = session.encode(normal(4, 3, 6)).reshape(12, 16)
    for vector, row in zip(found.to_vectors(), dense, strict=True):
        assert vector == {"indices": np.flatnonzero(row).tolist(), "values": row[row != 0].tolist()}


def test_no_tokens():
    none = TopFeatures(np.zeros((0, 4), np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert none.to_scipy(16).shape == (0, 16)
    assert none.to_arrow().num_rows == 0
    assert none.to_vectors() == []


@pytest.mark.parametrize("convert", [lambda found: found.to_scipy(16), TopFeatures.to_vectors])
def test_nan_is_refused_where_it_cannot_be_represented(session, convert):
    with pytest.raises(InputError, match=r"1 of 5 tokens have NaN.*Leave out the tokens whose l0 is -1"):
        convert(with_nan(session))


def test_indices_beyond_the_width_are_refused(found):
    with pytest.raises(InputError, match="The indices range from .* but d_sae is 3"):
        found.to_scipy(3)


@pytest.mark.parametrize(
    ("package", "convert"), [("scipy", lambda found: found.to_scipy(16)), ("pyarrow", TopFeatures.to_arrow)]
)
def test_without_the_package_the_error_names_the_extra(found, package, convert, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'needs {package}.*pip install "saeexport\[tables\]"'):
        convert(found)
