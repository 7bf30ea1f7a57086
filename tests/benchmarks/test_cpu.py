"""The CPU benchmark measures what it claims to measure. No test depends on how long anything takes."""

import itertools
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from benchmarks.cpu import __main__ as command
from benchmarks.cpu import processes, speed, sweep
from benchmarks.cpu.contenders import torch_contenders
from benchmarks.cpu.contenders.cases import ARTIFACT, input_file
from benchmarks.cpu.contenders.names import (
    COMPILED,
    CONTENDERS,
    COPY,
    FLOOR,
    GRID,
    MODEL_GRAPH,
    ORIGINAL,
    PRODUCT,
    THIS,
    UnavailableError,
)
from benchmarks.cpu.prepare import write_case
from benchmarks.cpu.speed import Effort
from benchmarks.cpu.workers import Worker
from benchmarks.report import plot, tables
from benchmarks.shared import installed
from benchmarks.shared.agreement import DisagreementError, check_agreement
from benchmarks.shared.saes import FIRING, make_workload, measure_sparsity
from tests.support.samples import HOOKS

ROWS = (1, 40)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The folder of a small SAE, and its inputs."""
    folder, workload = tmp_path_factory.mktemp("case"), make_workload(24, 128, 10)
    write_case(folder, workload, ROWS, GRID)
    return folder, workload.inputs


@pytest.fixture(autouse=True)
def threads():
    """Contenders set PyTorch's number of threads for their whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tensors(hooks):
    return {name: torch.from_numpy(np.asarray(array)) for name, array in hooks.items()}


@pytest.mark.parametrize("rows", ROWS)
def test_contenders_agree(case, rows):
    folder, inputs = case
    reference = tensors(CONTENDERS[ORIGINAL].make(folder, 1).compute_hooks(inputs(rows)))
    assert list(reference) == HOOKS
    for name in {*GRID, MODEL_GRAPH} - {COMPILED}:
        contender = CONTENDERS[name]
        runner = contender.make(folder, 1)
        expected = {hook: reference[hook] for hook in contender.hooks}
        check_agreement(name, tensors(runner.compute_hooks(inputs(rows))), expected)
        parts = runner.bind(inputs(rows))
        assert tuple(parts) == contender.parts
        for part in parts.values():
            part()


def test_what_is_compiled_is_what_is_compared(case, monkeypatch):
    folder, inputs = case
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: compiled.append((function, dynamic)) or function)
    reference = tensors(CONTENDERS[ORIGINAL].make(folder, 1).compute_hooks(inputs(40)))
    runner = CONTENDERS[COMPILED].make(folder, 1)
    check_agreement(COMPILED, tensors(runner.compute_hooks(inputs(40))), reference)
    assert list(runner.bind(inputs(40))) == [COMPILED]
    assert compiled == [(torch_contenders.six_hooks, False)] * 2


def test_a_contender_that_cannot_be_compiled_is_left_out_with_the_reason(case, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: broken)
    folder, inputs = case
    with pytest.raises(UnavailableError, match=r"^torch.compile does not work here: no C\+\+ compiler$"):
        CONTENDERS[COMPILED].make(folder, 1).bind(inputs(1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: y * 1.001, "differs from the original's by 1.0e-03 of its norm; at most 1e-04 can be rounding"),
        (lambda y: y * torch.nan, "differs from the original's by nan"),
        (lambda y: y[:1], r"hook_sae_recons is \(1, 3\) torch.float32; it must be \(2, 3\) torch.float32"),
        (lambda y: y.double(), r"is \(2, 3\) torch.float64; it must be .* torch.float32"),
        (None, "wrong does not return hook_sae_recons"),
    ],
    ids=["scaled", "nan", "shape", "dtype", "missing"],
)
def test_a_wrong_contender_is_refused(change, says):
    right = {"hook_sae_recons": torch.arange(6.0).reshape(2, 3)}
    wrong = {hook: change(y) for hook, y in right.items()} if change else {}
    assert check_agreement("right", right, right) == 0
    with pytest.raises(DisagreementError, match=says):
        check_agreement("wrong", wrong, right)


def test_where_nothing_is_on_nothing_may_be():
    none = {"hook_sae_acts_post": torch.zeros(2, 3)}
    assert check_agreement("right", none, none) == 0
    with pytest.raises(DisagreementError, match="by inf"):
        check_agreement("wrong", {"hook_sae_acts_post": torch.full((2, 3), 1e-20)}, none)


def test_a_wrong_contender_is_refused_before_it_is_timed(tmp_path):
    class Fake:
        def __init__(self, factor):
            self.factor = factor

        def ask(self, request, rows, stride, target):
            assert (request, rows, stride) == ("write_hooks", 1000, 2)
            save_file({hook: np.full((500, 4), self.factor, np.float32) for hook in HOOKS}, target)

    found = speed.check({ORIGINAL: Fake(1.0), THIS: Fake(1 + 1e-5)}, tmp_path, 1000)
    assert found[ORIGINAL] == 0
    assert 0.9e-5 < found[THIS] < 1.1e-5
    with pytest.raises(DisagreementError, match="^this project: hook_sae_input differs"):
        speed.check({ORIGINAL: Fake(1.0), THIS: Fake(1.001)}, tmp_path, 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_fails_says_why(case, tmp_path):
    with Worker(THIS, case[0], 1) as worker:
        assert worker.ask("bind", rows=40) == [THIS]
        assert len(worker.ask("measure", seconds=0.0)[THIS]) == 1
        with pytest.raises(RuntimeError, match=r"(?s)The process of this ended with 1: .*x-3.npy"):
            worker.ask("bind", rows=3)
    with Worker(THIS, tmp_path, 1) as worker, pytest.raises(RuntimeError, match="is not an artifact"):
        worker.ask("ready")


@pytest.fixture(scope="module")
def swept():
    """Measure the sweep of a small SAE."""
    return list(sweep.measure_sweep(16, 64, [0], [1, 9], Effort(1, 0.0, 2, 0.0)))


def test_the_sweep_compares_the_sessions_choice_with_the_dense_graph(swept):
    assert [(line["rows"], line["l0_wanted"]) for line in swept] == [(1, 0), (9, 0)]
    assert [line["l0_mean"] for line in swept] == [0.0, 0.0]
    for line in swept:
        assert set(line["ms"]) == {MODEL_GRAPH, THIS}
        assert line["rounds"] == 2
        assert line["over_this"][MODEL_GRAPH][0] > 0
    assert sweep.slowest(swept)["over_model_graph"][THIS][0] == max(line["over_model_graph"][THIS][0] for line in swept)
    assert sweep.default_l0s(24576) == [0, 10, 50, 200, 1000, 4000, 12288, 24576]
    assert sweep.default_l0s(64) == [0, 10, 32, 64]


def test_a_ratio_is_that_of_a_rounds_medians():
    rounds = {THIS: [1.0, 2.0, 4.0], ORIGINAL: [10.0, 40.0, 20.0], PRODUCT: [0.5, 1.0, 1.0], COPY: [0.5, 0.0, 1.0]}
    found = speed.summarize(rounds)
    assert found["over_this"][ORIGINAL] == [10.0, 7.5, 15.0]  # the median of the ratios 10, 20 and 5, not 20 / 2
    assert found["over_floor"][THIS] == [2.0, 1.5, 2.0]
    assert found["over_product"][THIS] == [2.0, 2.0, 3.0]
    assert found["ms"][FLOOR] == [1.0, 1.0, 1.5]
    assert (found["rounds"], found["best_alternative"]) == (3, None)
    assert (
        speed.summarize(rounds | {"compiled": [3.0] * 3, "plain_onnx": [2.9] * 3})["best_alternative"] == "plain_onnx"
    )


@pytest.mark.parametrize("l0", [5, 20])
def test_a_realistic_sae_is_as_uneven_as_the_measured_one(l0):
    known = json.loads(FIRING.read_text())
    workload = make_workload(64, 1024, l0)
    x = workload.inputs(4000)
    facts = measure_sparsity(workload.sae, x)
    assert facts["l0_mean"] == pytest.approx(l0, rel=0.05)
    assert facts["l0_std"] / facts["l0_mean"] == pytest.approx(known["l0_std_over_mean"], abs=0.08)
    with torch.no_grad():
        frequency = (workload.sae.encode(torch.from_numpy(x)) > 0).double().mean(0)
    logs = frequency[frequency > 0].log10()
    assert logs.std().item() == pytest.approx(known["log10_frequency_std"], abs=0.1)
    assert facts == measure_sparsity(make_workload(64, 1024, l0).sae, x)
    assert measure_sparsity(workload.sae, workload.inputs(16))["l0_mean"] == pytest.approx(l0, rel=0.25)


def test_a_uniform_sae_has_every_feature_on_equally_often():
    workload = make_workload(64, 1024, 20, "uniform")
    facts = measure_sparsity(workload.sae, workload.inputs(4000))
    assert facts["l0_mean"] == pytest.approx(20, rel=0.1)
    uneven = measure_sparsity((realistic := make_workload(64, 1024, 20)).sae, realistic.inputs(100))
    assert measure_sparsity(workload.sae, workload.inputs(100))["fired_share"] > uneven["fired_share"]


@pytest.mark.parametrize(("l0", "exactly"), [(0, 0), (128, 128), (64, None)])
def test_no_feature_on_half_of_them_and_all(l0, exactly):
    workload = make_workload(24, 128, l0)
    for rows in (1, 50):
        facts = measure_sparsity(workload.sae, workload.inputs(rows))
        assert facts["l0_mean"] == pytest.approx(l0, abs=0 if exactly is not None else 6)


def line(rows, frequencies="realistic", **more):
    times = {"over_this": {ORIGINAL: [5.0, 4.5, 5.5], "compiled": [2.0, 1.9, 2.125]},
             "over_floor": {THIS: [1.25, 1.2, 1.3], ORIGINAL: [6.25, 6, 7]},
             "over_product": {THIS: [1.5, 1.4, 1.6]}}  # fmt: skip
    return {"d_in": 768, "d_sae": 24576, "frequencies": frequencies, "rows": rows, "l0_wanted": 50, "l0_mean": 51.25,
            "l0_std": 24.49, "fired_share": 0.1153, "ms": {THIS: [3.14159, 3, 4]}, "best_alternative": "compiled",
            "absent": {"plain_onnx": "why"}, **times, **more}  # fmt: skip


@pytest.fixture
def result(swept):
    """A file of results."""
    way = {"seconds": [0.5, 0.4, 0.6], "over_this": [1.0, 1.0, 1.0], "resident_bytes": {"1": 2.9e8, "512": 4.2e8},
           "install": {"bytes": 125_000_000, "distributions": ["numpy"]}}  # fmt: skip
    whole = {"d_in": 768, "d_sae": 24576, "weights_bytes": 151_000_000, "runs": 7,
             "ways": dict.fromkeys(processes.PROCESSES, way)}  # fmt: skip
    machine = {"date": "2026-01-02", "processor": "P", "python": "3.11", "torch": "T", "onnxruntime": "O", "numpy": "N"}
    grid = [line(1), line(64), line(1, "uniform", best_alternative=None), line(1, d_in=64)]
    return {**machine, "threads": 2, "grid": grid, "sweep": swept, "processes": whole}


def test_the_tables_are_made_from_the_file(result, tmp_path, monkeypatch, capsys):
    file = tmp_path / "speed.json"
    file.write_text(json.dumps(result))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--table", "--results", str(file)])
    command.main()
    printed = capsys.readouterr().out
    assert printed == tables.table(result) + "\n"
    assert (
        "| 768 x 24576 | realistic | 64 | 51.2 ± 24.5 | 11.5% | 5.00 (4.50-5.50) | 2.00 (1.90-2.12) torch.compile "
        "| 1.25 (1.20-1.30) | 1.50 (1.40-1.60) | 3.14 |" in printed
    )
    assert "2026-01-02, P, 2 threads each, Python 3.11, torch T, onnxruntime O, numpy N." in printed
    assert "plain ONNX export is missing: why." in printed
    assert "| this project | 0.50 | 1.00 (1.00-1.00) | 290 MB | 420 MB | 125 MB |" in printed
    assert printed.count("| 16 x 64 |") == 2
    assert tables.table({**result, "grid": [], "sweep": []}).startswith("## Whole processes")


def test_the_sweep_says_whether_it_is_too_slow(swept):
    slow = [{**swept[0], "over_model_graph": {THIS: [1.06, 1.05, 1.07]}}]
    assert tables.sweep_note(slow).endswith("with 1 rows: more than 5% slower.")
    fine = [{**swept[0], "over_model_graph": {THIS: [1.04, 1.0, 1.07]}}]
    assert tables.sweep_note(fine).startswith("At most 1.04 (1.00-1.07) of the dense graph's time, at L0 0 with")
    assert tables.sweep_note(fine).endswith("not more than 5% slower.")


def test_the_plot_has_a_panel_for_each_size(result, tmp_path):
    plot.plot(result["grid"], tmp_path / "speed.png")
    width, height = np.frombuffer((tmp_path / "speed.png").read_bytes()[16:24], ">u4")
    assert width > 2 * height


def test_labels_are_set_apart():
    heights = plot.move_apart([0.1, 0.11, 0.115, 0.5, 0.9, 0.91])
    assert all(b - a >= plot.LABEL_GAP - 1e-9 for a, b in itertools.pairwise(heights))
    assert heights[3] == 0.5
    assert np.mean(heights[:3]) == pytest.approx(np.mean([0.1, 0.11, 0.115]))


@pytest.mark.parametrize("name", ["runtime_unchecked", "hooked_sae"])
def test_a_whole_process_returns_its_first_result(name, case):
    folder, _ = case
    seconds, peak = processes.run_program(processes.PROCESSES[name].program, folder / ARTIFACT, input_file(folder, 1))
    assert seconds > 0
    assert peak > 10_000_000 or sys.platform != "linux"


def test_a_process_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no such thing"):
        processes.run_program("raise ValueError('no such thing')", tmp_path, tmp_path)


def test_what_has_to_be_installed():
    roots = [processes.installed_distribution(root) for root in processes.PROCESSES[processes.THIS].roots]
    needed = installed.required_distributions(roots)
    assert {"numpy", "safetensors", "protobuf"} <= needed
    assert not {"torch", "onnx", "tqdm"} & needed
    assert {"torch", "sympy"} <= installed.required_distributions(["torch"])  # which torch's own metadata names
    one, two = (installed.installed_size(names)["bytes"] for names in (["safetensors"], ["safetensors", "numpy"]))
    assert 0 < one < two


def test_the_load_of_other_programs_is_a_share():
    assert 0 <= command.measure_load(0.05) <= 1
