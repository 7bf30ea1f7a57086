"""The figures that the GPU benchmark counts, compares and judges, tested with values computed by hand."""

import numpy as np
import pytest
import torch

from benchmarks.gpu.contenders import agreement
from benchmarks.gpu.contenders.names import (
    COMPILED,
    COPY,
    DECODE_PRODUCT,
    ENCODE_PRODUCT,
    ORIGINAL,
    REDUCED,
    THIS,
    THIS_ENCODE,
    THIS_GRAPH,
    THIS_HOST,
    THIS_TOP,
    Contender,
)
from benchmarks.gpu.measure import candidates, grid, limit, nodes, timing
from benchmarks.gpu.measure.limit import Work
from benchmarks.gpu.report import goals, tables
from benchmarks.shared.node_times import node_times

WORK = Work(d_in=2, d_sae=3, rows=5, itemsize=4)


def test_operations_and_bytes_are_counted():
    assert WORK.operations == 2 * 2 * 5 * 2 * 3
    weights, x, wide, narrow = 2 + 3 + 6 + 6, 10, 15, 10
    assert WORK.least_bytes == 4 * (weights + x + (2 * wide + 3 * narrow) + wide)
    assert WORK.bytes_beside_products == 4 * (2 * narrow + 2 * wide + 4 * narrow)


def test_a_candidate_without_the_bias_moves_two_wide_tensors_less():
    moved = candidates.moved_bytes(WORK)
    assert moved["as_is"] == moved["gemm"] == 4 * (17 + 6 * 15 + 14 * 10)
    assert moved["as_is"] - moved["rides"] == 4 * (2 * 15 - 2 * 10 - 7 * 3 - 4 * 8 * 5)


def test_the_limit_is_the_longer_one_and_the_sum_has_both():
    times = {ENCODE_PRODUCT: np.array([1.0, 1.0]), DECODE_PRODUCT: np.array([2.0, 2.0]), COPY: np.array([1.0, 100.0])}
    found = limit.limits(WORK, times, copied=204)
    # 408 bytes in 1 ms are all that has to move; in 100 ms it is what takes longest.
    assert found["limit"].tolist() == [3.0, 100.0]
    assert found["sum"] == pytest.approx([3 + 360 / 408, 3 + 100 * 360 / 408])


def test_ratios_are_those_of_a_round_to_the_faster_of_our_settings():
    times = {ORIGINAL: [10.0, 40.0, 20.0], THIS: [5.0, 5.0, 5.0], THIS_GRAPH: [1.0, 2.0, 4.0], COMPILED: [3.0] * 3,
             REDUCED: [2.0] * 3, THIS_ENCODE: [4.0] * 3, THIS_TOP: [8.0] * 3}  # fmt: skip
    found = timing.ratios({name: np.array(values) for name, values in times.items()})
    assert found[ORIGINAL] == [10.0, 7.5, 15.0]  # the median of the ratios 10, 20 and 5, not 20 / 2
    assert found["compile"] == found[REDUCED] == [1.0, 0.75, 1.5]
    assert found["saved"] == [0.5, 0.5, 0.5]
    assert timing.ratios({ORIGINAL: np.ones(3), THIS_HOST: np.ones(3)}) == {}


def line(rows, original_ratio, wall_ratio, of_limit, **ms):
    return {"d_in": 768, "d_sae": 24576, "precision": "tf32", "rows": rows, "ms": {THIS: [1, 1, 1], **ms},
            "ratios": {ORIGINAL: [original_ratio] * 3, "compile": [1.1] * 3}, "of_limit": [of_limit] * 3,
            "wall_ratios": {ORIGINAL: [wall_ratio] * 3, "compile": [1.0] * 3}}  # fmt: skip


def test_goals_take_the_hosts_clock_for_one_row_and_the_devices_for_more():
    lines = [line(1, 9.0, 2.9, 0.5, this_graph=[1, 1, 1]), line(1024, 2.49, 9.0, 0.8), {"rows": 8192, "skipped": "why"}]
    found = [(goal.least, of["rows"], verdict) for goal, of, _, verdict in goals.verdicts(lines)]
    assert found == [(2.5, 1, "yes"), (2.5, 1024, "no"), (1.1, 1, "no"), (1.1, 1024, "yes"), (0.8, 1024, "yes"),
                     (3.0, 1, "no")]  # fmt: skip
    assert "| 2.90 (2.90-2.90) | no |" in tables.goal_table(lines[:1], rehearsal=False)
    assert [verdict for *_, verdict in goals.verdicts([line(1, 9.0, 9.0, 1.0)])] == ["yes", "no", "not measured"]


def test_a_contender_that_repeats_its_last_result_or_fails_is_left_out_with_the_reason():
    inputs = [torch.ones(2, 3), 2 * torch.ones(2, 3)]

    def unable():
        raise RuntimeError("no compiler\nand more")

    def named(y):
        return {"hook_sae_input": y}

    factories = {
        "right": lambda: Contender(inputs, lambda x: x, named),
        "stale": lambda: Contender(inputs, lambda x: inputs[0], named),
        "unable": unable,
    }
    expected = [named(x) for x in inputs]
    ways, found, absent = agreement.bind_contenders(factories, expected, torch.float32, agreement.TOLERANCES["float32"])
    assert (list(ways), found) == (["right"], {"right": 0.0})
    assert absent["stale"].startswith("wrong: stale: hook_sae_input differs")
    assert absent["unable"] == "RuntimeError: no compiler"


def test_what_is_wrong_or_missing_of_ours_is_a_failure():
    place = {"d_in": 2, "d_sae": 3, "precision": "tf32", "rows": 1}
    absent = {ORIGINAL: "RuntimeError: out of memory", COMPILED: "wrong: by nan", THIS: "SAEError: none",
              THIS_HOST: grid.TOO_LARGE}  # fmt: skip
    found = grid.failures({"broken": ["nodes: why"], "grid": [{**place, "absent": absent}, {**place, "skipped": ""}]})
    assert found == ["nodes: why", "2 x 3, tf32, 1 rows, torch.compile: wrong: by nan",
                     "2 x 3, tf32, 1 rows, this project: SAEError: none"]  # fmt: skip


def test_which_of_two_equals_is_among_the_strongest_does_not_matter():
    indices, values = torch.tensor([[3, 0, 1], [3, 0, 2]]), torch.tensor([[5.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    one, other = agreement.scatter_top(indices, values, 4)
    assert one.tolist() == other.tolist() == [1.0, 0.0, 0.0, 4.0]


def test_nodes_are_the_medians_of_the_last_runs():
    events = [{"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": "Relu"}}
              for name, dur in (("a", 9000), ("b", 1), ("a", 2000), ("b", 5000), ("a", 4000), ("b", 7000))]  # fmt: skip
    times = node_times([*events, {"cat": "Session", "name": "model_run", "dur": 1}])
    found = nodes.median_times(times, runs=2)
    assert list(found.items()) == [("Relu b", 6.0), ("Relu a", 3.0)]
