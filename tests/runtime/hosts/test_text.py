"""Text becomes the inputs of the host, and its padding does not change what a sentence gives."""

import json
import shutil
import sys

import numpy as np
import pytest

from runtime import HostSession, InputError, SAEError
from tests.support.grafted import PRE, graft_tiny, rewrite_manifest


def test_texts_are_padded_on_the_right(host):
    feeds = host.tokenize(["w1 w2 w3", "w4"])
    assert list(feeds) == ["input_ids", "attention_mask"]
    assert feeds["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert host.tokenize("w1 w2 w3", max_length=2)["input_ids"].tolist() == [[1, 2]]


def test_a_text_that_is_cut_off_keeps_its_special_tokens(grafted, tmp_path):
    folder = shutil.copytree(grafted.path, tmp_path / "copy")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "w38", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "w39", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {word: {"id": word, "ids": [int(word[1:])], "tokens": [word]} for word in ("w38", "w39")},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    rewrite_manifest(folder, lambda manifest: None)
    with HostSession(folder, "cpu") as host:
        texts = ["w1 w2 w3", "w4"]
        whole = host.tokenize(texts)["input_ids"].tolist()
        assert whole == [[38, 1, 2, 3, 39], [38, 4, 39, 0, 0]]
        assert host.tokenize(texts, max_length=5)["input_ids"].tolist() == whole
        assert host.tokenize(texts, max_length=4)["input_ids"].tolist() == [[38, 1, 2, 39], [38, 4, 39, 0]]
        assert host.tokenize(texts, max_length=4)["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
        with pytest.raises(InputError, match="max_length is 2, and 2 of the tokens are special ones"):
            host.tokenize(texts, max_length=2)


def test_padding_does_not_change_what_a_text_gives(host):
    together = host(["w1 w2 w3 w4 w5", "w6 w7"])
    alone = host("w6 w7")
    np.testing.assert_allclose(together.logits[1, :2], alone.logits[0], atol=1e-5)
    top = host.top_features(["w1 w2 w3 w4 w5", "w6 w7"], PRE, 2)
    assert (top.l0[1, 2:] == 0).all()
    assert (top.indices[1, :2] == host.top_features("w6 w7", PRE, 2).indices[0]).all()


@pytest.mark.parametrize("text", ["", [], ["w1", 3], [""], b"w1", None, 3])
def test_what_is_not_text_is_refused(host, text):
    with pytest.raises(InputError):
        host.tokenize(text)


def test_a_folder_without_a_tokenizer_takes_arrays_only(tmp_path):
    grafted = graft_tiny(tmp_path, [PRE])
    with (
        HostSession(grafted.path, "cpu") as host,
        pytest.raises(InputError, match="does not have a tokenizer.json, so it does not take text. Pass its inputs"),
    ):
        host("w1")


def test_without_tokenizers_the_error_names_the_extra(grafted, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with HostSession(grafted.path, "cpu") as host:
        with pytest.raises(SAEError, match=r'pip install "saeexport\[text\]"'):
            host("w1")
        assert host({"input_ids": np.array([[1, 2]])}).logits.shape == (1, 2, 40)
