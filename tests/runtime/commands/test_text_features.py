"""`python -m runtime features` on texts: a grafted host gives a row for each text, or for each of its tokens."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime import HostSession, InputError, UnknownHookError
from runtime.commands import text_columns
from runtime.commands.main import main
from runtime.commands.text_columns import TEXTS, TOKENS, largest_over_tokens, write_text_columns
from tests.support.commands import said
from tests.support.grafted import ATOL, POST, PRE, graft_tiny, rewrite_manifest
from tests.support.samples import TINY

D_SAE = 24
SPECIAL = ("w38", "w39")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A host whose tokenizer puts a special token before and after each text."""
    folder = graft_tiny(tmp_path_factory.mktemp("grafted"), [PRE], tokenizer=True).path
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": SPECIAL[1], "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {word: {"id": word, "ids": [int(word[1:])], "tokens": [word]} for word in SPECIAL},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    rewrite_manifest(folder, lambda manifest: None)
    return folder


@pytest.fixture(scope="module")
def host(folder):
    with HostSession(folder, "cpu", threads=1) as host:
        yield host


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(text_columns, "PART", 8)
    monkeypatch.setattr(text_columns, "BATCH_BYTES", 4 * D_SAE * 30)
    monkeypatch.setattr("runtime.commands.texts.AT_ONCE", 5)
    monkeypatch.setattr("runtime.commands.texts.INDEXED", 4)


def words(count, seed=0, most=12):
    """Return texts of 1 to `most` words, separated by one space or two."""
    draws = np.random.default_rng(seed)
    return [
        "  ".join(f"w{draws.integers(1, 38)}" for _ in range(draws.integers(1, most + 1))).replace("  ", " ", 3)
        for _ in range(count)
    ]


def lines(path, texts):
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return path


def acts_of(host, text):
    """Return the activations of the tokens of a text, without the special ones."""
    return host.encode(text)[PRE][0, 1:-1]


def dense(table):
    found = np.zeros((table.num_rows, D_SAE), np.float32)
    for row, (indices, values) in enumerate(
        zip(*(table[name].to_pylist() for name in ("indices", "values")), strict=True)
    ):
        found[row, indices] = values
    return found


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 9, 40])
def test_a_row_for_each_text(host, tmp_path, count):
    texts, done = words(count), []
    source = lines(tmp_path / "in.txt", texts)
    write_text_columns(host, source, tmp_path / "f.parquet", progress=lambda *at: done.append(at))
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["row", "indices", "values", "l0"]
    assert table["row"].to_pylist() == list(range(count))
    expected = np.array([acts_of(host, text).max(axis=0) for text in texts]).reshape(-1, D_SAE)
    np.testing.assert_allclose(dense(table), expected, rtol=0, atol=ATOL)
    assert table["l0"].to_pylist() == (dense(table) != 0).sum(-1).tolist()
    for values in table["values"].to_pylist():
        assert values == sorted(values, reverse=True)
    assert done[-1] == (count, count)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.parquet", "in.txt"]


@pytest.mark.parametrize("count", [0, 1, 9, 23])
def test_a_row_for_each_token(host, tmp_path, count):
    texts = words(count, seed=3)
    write_text_columns(host, lines(tmp_path / "in.txt", texts), tmp_path / "f.parquet", rows=TOKENS)
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["row", "token", "start", "end", "indices", "values", "l0"]
    tokens = [(row, word) for row, text in enumerate(texts) for word in text.split()]
    assert list(zip(table["row"].to_pylist(), table["token"].to_pylist(), strict=True)) == tokens
    for row, token, start, end in zip(*(table[name].to_pylist() for name in table.column_names[:4]), strict=True):
        assert texts[row][start:end] == token
    expected = np.concatenate([np.zeros((0, D_SAE)), *(acts_of(host, text) for text in texts)])
    np.testing.assert_allclose(dense(table), expected, rtol=0, atol=ATOL)


def test_lines_as_editors_write_them(host, tmp_path):
    content = "\ufeffw1 w2\r\n\nw3\u2028w4\n   \nw5"
    (tmp_path / "in.txt").write_bytes(content.encode())
    write_text_columns(host, tmp_path / "in.txt", tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    expected = [acts_of(host, "w1 w2").max(0), np.zeros(D_SAE), acts_of(host, "w3 w4").max(0), np.zeros(D_SAE),
                acts_of(host, "w5").max(0)]  # fmt: skip
    np.testing.assert_allclose(dense(table), expected, rtol=0, atol=ATOL)
    assert table["l0"].to_pylist()[1::2] == [0, 0]
    write_text_columns(host, tmp_path / "in.txt", tmp_path / "t.parquet", rows=TOKENS)
    assert pq.read_table(tmp_path / "t.parquet")["row"].to_pylist() == [0, 0, 2, 2, 4]


def test_a_tokenizer_without_special_tokens_has_texts_without_tokens(tmp_path):
    grafted = graft_tiny(tmp_path, [PRE], tokenizer=True)
    with HostSession(grafted.path, "cpu") as host:
        for rows, expected in ((TEXTS, [0, 1, 2]), (TOKENS, [1, 1])):
            write_text_columns(host, lines(tmp_path / "in.txt", ["", "w1 w2", ""]), tmp_path / rows, rows=rows)
            table = pq.read_table(tmp_path / rows)
            assert table["row"].to_pylist() == expected
        assert pq.read_table(tmp_path / TEXTS)["l0"].to_pylist()[::2] == [0, 0]


def test_a_parquet_file_of_texts_keeps_its_columns(host, tmp_path):
    texts = words(23, seed=5)
    ids = [f"id{i}" for i in range(23)]
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ids, "text": texts, "n": range(23)}), source, row_group_size=7)
    write_text_columns(host, source, tmp_path / "f.parquet", column="text", keep=("n", "id"))
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["n", "id", "row", "indices", "values", "l0"]
    assert table["id"].to_pylist() == ids
    write_text_columns(host, lines(tmp_path / "in.txt", texts), tmp_path / "l.parquet")
    from_lines = pq.read_table(tmp_path / "l.parquet")
    assert table.select(["row", "indices", "values", "l0"]).cast(from_lines.schema).equals(from_lines)
    write_text_columns(host, source, tmp_path / "t.parquet", column="text", keep=("id",), rows=TOKENS)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["id"].to_pylist() == [ids[row] for row in table["row"].to_pylist()]
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "id": pa.array([], pa.int8())}), source)
    write_text_columns(host, source, tmp_path / "e.parquet", keep=("id",))
    assert pq.read_schema(tmp_path / "e.parquet").names == ["id", "row", "indices", "values", "l0"]


def test_the_metadata_says_whose_features_these_are(host, tmp_path):
    source = lines(tmp_path / "in.txt", words(3))
    write_text_columns(host, source, tmp_path / "f.parquet", rows=TOKENS, k=2, max_length=5)
    assert json.loads(pq.read_schema(tmp_path / "f.parquet").metadata[b"saeexport"]) == {
        "artifact_sha256": host.host.saes[PRE].sha256, "host_sha256": host.host.sha256, "hook_name": PRE,
        "d_sae": D_SAE, "k": 2, "rows": "tokens", "max_length": 5,
    }  # fmt: skip
    table = pq.read_table(tmp_path / "f.parquet")
    assert max(map(len, table["indices"].to_pylist())) == 2
    assert max(table["row"].value_counts().field(1).to_pylist()) == 3, "five tokens with two special ones"


class StoppedError(Exception):
    pass


def stop_after(count):
    def progress(done, total):
        if done > count:
            raise StoppedError

    return progress


@pytest.mark.parametrize("rows", [TEXTS, TOKENS])
def test_after_a_stop_it_goes_on_and_gives_the_same(host, tmp_path, rows):
    source = lines(tmp_path / "in.txt", words(40, seed=7))
    write_text_columns(host, source, tmp_path / "whole.parquet", rows=rows)
    with pytest.raises(StoppedError):
        write_text_columns(host, source, tmp_path / "f.parquet", rows=rows, progress=stop_after(20))
    assert not (tmp_path / "f.parquet").exists()
    runs = []
    write_text_columns(host, source, tmp_path / "f.parquet", rows=rows, progress=lambda done, total: runs.append(done))
    assert runs[:3] == [8, 16, 21], "two parts were done"
    assert (tmp_path / "f.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize("changed", [{"rows": TOKENS}, {"max_length": 4}, {"k": 1}])
def test_parts_of_something_else_are_not_used(host, tmp_path, changed):
    source = lines(tmp_path / "in.txt", words(40))
    with pytest.raises(StoppedError):
        write_text_columns(host, source, tmp_path / "f.parquet", progress=stop_after(20))
    write_text_columns(host, source, tmp_path / "f.parquet", **changed)
    write_text_columns(host, source, tmp_path / "g.parquet", **changed)
    assert (tmp_path / "f.parquet").read_bytes() == (tmp_path / "g.parquet").read_bytes()


def test_a_host_without_a_mask_runs_each_text_alone(host, monkeypatch):
    features = text_columns._Features(host, PRE, TEXTS, None, None)
    encoded = host.tokenizer.encode_each(["w1", "w2 w3", "w4"])
    assert list(features._groups(encoded)) == [[0, 2, 1]]
    monkeypatch.setattr(features, "_inputs", ["input_ids"])
    assert list(features._groups(encoded)) == [[0], [2], [1]]


def test_the_largest_over_tokens_keeps_its_sign_and_leaves_other_tokens_out():
    acts = np.array([[[1, -3, 0, 9], [2, 2, -1, 9], [50, -50, 50, np.nan]]], np.float32)
    is_word = np.array([[True, True, False]])
    assert largest_over_tokens(acts, is_word).tolist() == [[2, -3, -1, 9]]
    assert np.isnan(largest_over_tokens(acts, ~is_word)[0, 3])
    assert largest_over_tokens(acts, np.zeros((1, 3), bool)).tolist() == [[0, 0, 0, 0]]


WRONG = {
    "bytes": (lambda path: path.write_bytes(b"w1\nw2\n\xff\n") and path, {}, r"text file in UTF-8 \(line 3: invalid"),
    "activations": (lambda path: path.write_bytes(b"\x93NUMPY\x01") and path, {}, "give the folder of one of its SAEs"),
    "missing": (lambda path: path, {}, "x does not exist. Give a file with a text on each line"),
    "too long": (lambda path: lines(path, ["w1", "w1 " * 80, "w2"]), {}, "row 1, has 82 tokens; max_length"),
    "keep": (
        lambda path: lines(path, ["w1"]),
        {"keep": ("a",)},
        "does not have columns. Leave out --column and --keep",
    ),
    "no texts": (lambda path: pq.write_table(pa.table({"a": [1]}), path) or path, {}, "has 0 columns of texts. Choose"),
    "not texts": (
        lambda path: pq.write_table(pa.table({"a": [1], "b": ["w1"]}), path) or path,
        {"column": "a"},
        "Column a of .* is int64; texts are strings",
    ),
    "two": (
        lambda path: pq.write_table(pa.table({"a": ["w1"], "b": ["w1"]}), path) or path,
        {},
        "has 2 columns of texts: a, b. Choose the column with --column",
    ),
    "null": (lambda path: pq.write_table(pa.table({"a": ["w1", None]}), path) or path, {}, "Column a of .* has a null"),
    "taken": (
        lambda path: pq.write_table(pa.table({"a": ["w1"], "row": [1]}), path) or path,
        {"keep": ("row",)},
        "row cannot be kept: the features take that name",
    ),
    "kept twice": (
        lambda path: pq.write_table(pa.table({"a": ["w1"], "id": [1]}), path) or path,
        {"keep": ("id", "id")},
        "id is to be kept twice. Name each column once",
    ),
    "of one name": (
        lambda path: pq.write_table(pa.table([["w1"], [1], [2]], names=["a", "id", "id"]), path) or path,
        {"keep": ("id",)},
        "has several columns id. Give each of them a name",
    ),
    "the source": (lambda path: path.with_name("f.parquet"), {}, "f.parquet is the file that is read, and would be"),
    "rows": (lambda path: lines(path, ["w1"]), {"rows": "words"}, "rows is 'words'; it must be one of texts, tokens"),
    "k": (lambda path: lines(path, ["w1"]), {"k": 25}, r"k is 25; it must be from 1 to d_sae = 24"),
    "max_length": (lambda path: lines(path, ["w1"]), {"max_length": 2}, "2 of the tokens are special ones"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_and_the_target_stays(host, tmp_path, wrong):
    make, options, message = WRONG[wrong]
    (tmp_path / "f.parquet").write_text("old")
    with pytest.raises(InputError, match=message):
        write_text_columns(host, make(tmp_path / "x"), tmp_path / "f.parquet", overwrite=True, **options)
    assert (tmp_path / "f.parquet").read_text() == "old"
    assert not (tmp_path / ".f.parquet.saeexport-parts").exists()


def test_the_command(folder, tmp_path, capsys):
    source, target = lines(tmp_path / "in.txt", words(9)), tmp_path / "f.parquet"
    command = ["features", folder, source, target, "--device", "cpu"]
    said(capsys, 0, *command, "--rows", "tokens", "--hook", PRE, "--max-length", "6", "--k", "3")
    assert pq.read_schema(target).names[:2] == ["row", "token"]
    assert "exists. Choose another file" in said(capsys, 2, *command)
    said(capsys, 0, *command, "--overwrite")
    assert pq.read_metadata(target).num_rows == 9
    assert "--precision cannot be given" in said(capsys, 2, *command, "--overwrite", "--precision", "tf32")
    for options in (["--rows", "texts"], ["--hook", PRE], ["--max-length", "9"]):
        err = said(capsys, 2, "features", TINY, source, tmp_path / "g.parquet", *options)
        assert f"{options[0]} cannot be given: {TINY} is an SAE, which takes activations. Leave it out." in err
    assert "texts need the folder of a grafted host" in said(
        capsys, 2, "features", TINY, source, tmp_path / "g.parquet"
    )


def test_a_host_with_several_saes_needs_a_hook(tmp_path, capsys):
    grafted = graft_tiny(tmp_path, [POST, PRE], tokenizer=True)
    command = ["features", str(grafted.path), str(lines(tmp_path / "in.txt", ["w1"])), str(tmp_path / "f.parquet")]
    assert f"choose one (hook=, --hook) of {POST}, {PRE}" in said(capsys, 2, *command)
    assert main([*command, "--hook", POST]) == 0
    assert json.loads(pq.read_schema(tmp_path / "f.parquet").metadata[b"saeexport"])["hook_name"] == POST
    with HostSession(grafted.path, "cpu") as host:
        assert list(host.encode("w1 w2", PRE)) == [PRE]
        np.testing.assert_array_equal(host.encode("w1 w2", [PRE])[PRE], host.encode("w1 w2")[PRE])
        with pytest.raises(UnknownHookError, match="no SAE"):
            host.encode("w1", "blocks.9.hook")


def test_a_host_without_a_tokenizer_says_so(tmp_path, capsys):
    grafted = graft_tiny(tmp_path, [PRE])
    err = said(capsys, 2, "features", grafted.path, lines(tmp_path / "in.txt", ["w1"]), tmp_path / "f.parquet")
    assert "does not have a tokenizer.json, so it does not take text" in err
