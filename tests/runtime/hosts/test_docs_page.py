"""The blocks of docs/grafting.md, and the one of docs/columns.md for texts, run on a grafted host."""

import numpy as np
import pytest

from docs.blocks import blocks_of
from runtime import HostSession
from runtime.hosts.feeds import complete_feeds
from tests.support.samples import ROOT


@pytest.fixture
def folder(grafted, tmp_path, monkeypatch):
    (tmp_path / "my-host").symlink_to(grafted.path)
    monkeypatch.chdir(tmp_path)


def run_blocks(page):
    """Run the `py` blocks of a page in order, and return their names.

    What the decoder takes and a tokenizer does not give, `position_ids` and an empty cache, is added to `feeds`.
    """
    names = {}
    for block in blocks_of(ROOT / "docs" / page):
        if block.language == "py":
            exec(compile(block.code, page, "exec"), names)
            names["feeds"] = complete_feeds(names["host"].host.manifest.host, names["feeds"])
    return names


@pytest.mark.usefixtures("folder")
def test_the_blocks_of_the_page_run():
    names = run_blocks("grafting.md")
    with names["host"] as host:
        assert isinstance(host, HostSession)
        assert host.attached == {}
        assert isinstance(names["text"], str)
        clean = host(names["texts"])  # with the error term, steering a feature that is off gives the same
        assert np.abs(names["steered"].logits - clean.logits).max() > 0.01
        assert np.abs(names["edited"][0] - names["plain"][0]).max() > 0.01


@pytest.mark.usefixtures("folder")
def test_a_text_has_the_largest_activations_of_its_words():
    names = run_blocks("columns.md")
    with names["host"] as host:
        feeds, hook = host.tokenize(names["texts"]), host.hook_names[0]
        lengths = feeds["attention_mask"].sum(axis=1)
        assert len(set(lengths)) > 1  # one of the texts is padded
        for acts, length, vector in zip(host.encode(feeds)[hook], lengths, names["vectors"], strict=True):
            expected = acts[1 : length - 1].max(axis=0)  # without the first and the last token, [CLS] and [SEP]
            assert vector["indices"] == np.flatnonzero(expected).tolist()
            assert vector["values"] == expected[expected != 0].tolist()
