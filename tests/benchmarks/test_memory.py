"""The measurement of the memory of all kinds of calls."""

import pytest

from benchmarks.costs import memory
from benchmarks.shared.machine import process_memory
from tests.support.samples import MINILM, normal


@pytest.mark.skipif(not process_memory("self", "RssAnon"), reason="reads the memory of the process from /proc")
def test_whole_graphs_hold_more_after_every_call_but_the_first():
    x = normal(2, 384)
    shared, whole = (memory.in_new_process(MINILM, x, way) for way in ("default", "whole"))
    assert list(shared) == list(whole)
    assert list(shared)[-1] == memory.LATER == "encode(x[:1]), 9 times"
    added = {call: whole[call] - shared[call] for call in shared}
    assert added["steer"] > added["top_features"] > added["sae(x)"] > 2_000_000  # a matrix has 4.7 MB


def test_the_table_says_how_much_that_is():
    line = {"d_in": 2, "d_sae": 4, "rows": 1, "call": "encode", "bytes": 3e6, "whole_bytes": 6e6,
            "without_arena_bytes": 1e6, "weights_bytes": 2e6}  # fmt: skip
    assert "| 2 x 4 | 1 | `encode` | 3 | 1.50 | 3.00 | 0.50 |" in memory.memory_table([line])
