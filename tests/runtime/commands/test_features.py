"""`python -m runtime features`: from a file of activations to columns of features, also after a stop."""

import dataclasses
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime import InputError, SAESession
from runtime.artifact.writing import lock
from runtime.commands import columns
from runtime.commands.columns import write_columns
from runtime.commands.main import main
from saeexport import export
from tests.support.samples import TINY, make_sae, normal


@pytest.fixture(scope="module")
def session():
    with SAESession(TINY, "cpu") as session:
        yield session


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(columns, "PART", 8)
    monkeypatch.setattr("runtime.commands.sources.BATCH", 3)


def npy(path, x):
    path = path.with_suffix(".npy")
    np.save(path, x)
    return path


def parquet(path, x, fixed=True, group=5, **more):
    values = pa.array(x.reshape(-1))
    lists = (
        pa.FixedSizeListArray.from_arrays(values, x.shape[1])
        if fixed
        else pa.ListArray.from_arrays(np.arange(0, x.size + 1, x.shape[1]).astype("int32"), values)
    )
    pq.write_table(pa.table({**more, "activation": lists}), path, row_group_size=group)
    return path


def dense(path):
    table = pq.read_table(path)
    found = np.zeros((table.num_rows, 16), np.float32)
    for row, (indices, values) in enumerate(
        zip(table["indices"].to_pylist(), table["values"].to_pylist(), strict=True)
    ):
        found[row, indices] = values
    return found


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 40])
@pytest.mark.parametrize("write", [npy, parquet])
def test_all_features_that_are_on_are_written(session, tmp_path, rows, write, monkeypatch):
    monkeypatch.setattr(columns, "FIRST_K", 2)
    x = normal(rows, 6)
    done = []
    write_columns(session, write(tmp_path / "x", x), tmp_path / "f.parquet", progress=lambda *at: done.append(at))
    acts = session.encode(x)
    np.testing.assert_array_equal(dense(tmp_path / "f.parquet"), acts)
    assert pq.read_table(tmp_path / "f.parquet")["l0"].to_pylist() == (acts != 0).sum(-1).tolist()
    assert done[-1] == (rows, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["f.parquet", "x"], ["f.parquet", "x.npy"])


def test_the_k_strongest(session, tmp_path):
    x = normal(20, 6)
    write_columns(session, npy(tmp_path / "x.npy", x), tmp_path / "f.parquet", k=3)
    np.testing.assert_array_equal(dense(tmp_path / "f.parquet"), session.top_features(x, 3).dense(16))


def test_columns_are_kept_and_the_metadata_says_whose_features_these_are(session, tmp_path):
    x = normal(20, 6)
    source = parquet(tmp_path / "x", x, fixed=False, id=pa.array(range(20)), text=pa.array(map(str, range(20))))
    write_columns(session, source, tmp_path / "f.parquet", keep=("id", "text"))
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["id", "text", "indices", "values", "l0"]
    assert table["id"].to_pylist() == list(range(20))
    np.testing.assert_array_equal(dense(tmp_path / "f.parquet"), session.encode(x))
    assert json.loads(table.schema.metadata[b"saeexport"]) == {
        "artifact_sha256": session.artifact.sha256,
        "hook_name": session.cfg.hook_name,
        "d_sae": 16,
        "k": None,
    }


def test_a_token_with_nan_has_null(session, tmp_path):
    x = normal(9, 6)
    x[4] = np.nan
    write_columns(session, npy(tmp_path / "x.npy", x), tmp_path / "f.parquet")
    l0 = pq.read_table(tmp_path / "f.parquet")["l0"].to_pylist()
    assert l0[4] is None
    assert None not in l0[:4] + l0[5:]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("write", [npy, parquet])
def test_after_a_stop_it_goes_on(session, tmp_path, write):
    x = normal(40, 6)
    source, runs = write(tmp_path / "x", x), []

    def stop(done, total):
        if done > 20:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_columns(session, source, tmp_path / "f.parquet", progress=stop)
    assert not (tmp_path / "f.parquet").exists()
    write_columns(session, source, tmp_path / "f.parquet", progress=lambda done, total: runs.append(done))
    assert runs[:3] == [8, 16, 18 if write is parquet else 19], "two parts were done"
    np.testing.assert_array_equal(dense(tmp_path / "f.parquet"), session.encode(x))


@pytest.mark.parametrize("change", ["k", "source", "artifact"])
def test_parts_of_something_else_are_not_used(session, tmp_path, change):
    x = normal(40, 6)
    source, target = npy(tmp_path / "x.npy", x), tmp_path / "f.parquet"

    def stop(done, total):
        if done > 20:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_columns(session, source, target, progress=stop)
    options = {}
    if change == "k":
        options["k"] = 2
    elif change == "source":
        x = normal(40, 6, seed=9)
        npy(source, x)
        os.utime(source, ns=(1, 1))
    else:
        session = SAESession(export(make_sae(seed=5), tmp_path / "other", normal(40, 6)).path, "cpu")
    write_columns(session, source, target, **options)
    k = options.get("k", 16)
    np.testing.assert_array_equal(dense(target), session.top_features(x, k).dense(16))


def test_parts_of_another_precision_or_of_a_broken_plan_are_not_used(session, tmp_path, monkeypatch):
    source, target, done = npy(tmp_path / "x.npy", normal(40, 6)), tmp_path / "f.parquet", []

    def stop(at, total):
        done.append(at)
        if at > 20:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_columns(session, source, target, progress=stop)
    with monkeypatch.context() as changed, pytest.raises(StoppedError):
        changed.setattr(session, "_options", dataclasses.replace(session._options, precision="tf32"))
        write_columns(session, source, target, progress=stop)
    assert done.count(3) == 2
    (tmp_path / ".f.parquet.saeexport-parts" / "plan.json").write_bytes(b"\xff")
    write_columns(session, source, target, progress=lambda at, total: done.append(at))
    assert done.count(3) == 3


def test_two_processes_do_not_write_the_same_file(session, tmp_path):
    import contextlib

    source = npy(tmp_path / "x.npy", normal(4, 6))
    folder = tmp_path / ".f.parquet.saeexport-parts"
    folder.mkdir()
    with contextlib.ExitStack() as locks:
        lock(folder, locks)
        with pytest.raises(InputError, match="Another process is writing"):
            write_columns(session, source, tmp_path / "f.parquet")


WRONG = {
    "no such column": (
        lambda path: parquet(path, normal(4, 6)),
        {"column": "x"},
        "does not have a column x; it has act",
    ),
    "no lists": (lambda path: pq.write_table(pa.table({"a": [1]}), path) or path, {}, "has 0 columns of lists"),
    "not a list": (
        lambda path: parquet(path, normal(4, 6), id=pa.array(range(4))),
        {"column": "id"},
        "Column id of .* is int64; activations are lists of numbers",
    ),
    "width": (lambda path: parquet(path, normal(4, 5)), {}, "must have 6 numbers in every row.*row 0 has 5"),
    "ragged": (
        lambda path: pq.write_table(pa.table({"a": [[1.0] * 6, [1.0] * 5]}), path) or path,
        {},
        "row 1 has 5",
    ),
    "null": (lambda path: pq.write_table(pa.table({"a": [[1.0] * 6, None]}), path) or path, {}, "rows with nulls"),
    "dtype": (
        lambda path: parquet(path, normal(4, 6).astype("float64")),
        {},
        "holds float64, and .* Write it as list<float>",
    ),
    "column of npy": (lambda path: npy(path.with_suffix(".npy"), normal(4, 6)), {"column": "a"}, "not a Parquet file"),
    "missing": (lambda path: path, {}, "x does not exist"),
    "FIFO": (lambda path: os.mkfifo(path) or path, {}, "x is not an ordinary file"),
    "other": (
        lambda path: path.write_text("text") and path,
        {},
        "neither a .npy file nor a Parquet file. An SAE",
    ),
    "broken": (lambda path: path.write_bytes(b"PAR1" * 9) and path, {}, "not a Parquet file that pyarrow reads"),
    "k": (lambda path: parquet(path, normal(4, 6)), {"k": 17}, r"k is 17; it must be from 1 to d_sae = 16"),
    "the source": (lambda path: path.with_name("f.parquet"), {}, "f.parquet is the file that is read, and would be"),
    "kept twice": (
        lambda path: parquet(path, normal(4, 6), id=pa.array(range(4))),
        {"keep": ("id", "id")},
        "id is to be kept twice",
    ),
    "taken": (
        lambda path: parquet(path, normal(4, 6), l0=pa.array(range(4))),
        {"keep": ("l0",)},
        "l0 cannot be kept",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_and_the_target_stays(session, tmp_path, wrong):
    make, options, message = WRONG[wrong]
    (tmp_path / "f.parquet").write_text("old")
    with pytest.raises(InputError, match=message):
        write_columns(session, make(tmp_path / "x"), tmp_path / "f.parquet", overwrite=True, **options)
    assert (tmp_path / "f.parquet").read_text() == "old"
    assert not (tmp_path / ".f.parquet.saeexport-parts").exists()


def test_the_command(tmp_path, capsys):
    x = normal(9, 6)
    source, target = npy(tmp_path / "x.npy", x), tmp_path / "f.parquet"
    command = ["features", str(TINY), str(source), str(target), "--device", "cpu"]
    assert main(command) == 0
    assert main(command) == 2
    assert "exists. Choose another file" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--k", "2"]) == 0
    assert pq.read_table(target)["indices"].combine_chunks().value_lengths().to_numpy().max() == 2
