"""The blocks of docs/grafting.md run on a grafted host."""

import numpy as np

from docs.blocks import blocks_of
from runtime import HostSession
from tests.support.samples import ROOT


def test_the_blocks_of_the_page_run(grafted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-host").symlink_to(grafted.path)
    feeds = grafted.model.feeds()
    namespace = {"feeds": feeds}
    blocks = [block for block in blocks_of(ROOT / "docs" / "grafting.md") if block.language == "py"]
    for block in blocks:
        exec(compile(block.code, "grafting.md", "exec"), namespace)
    assert isinstance(namespace["host"], HostSession)
    assert namespace["host"].attached == {}
    assert isinstance(namespace["text"], str)
    assert np.abs(namespace["steered"][0] - namespace["plain"][0]).max() > 0.01
    namespace["host"].close()
