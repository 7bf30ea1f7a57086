"""The CPU benchmark measures what it claims to measure. No test depends on how long anything takes."""

import json
import sys
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from benchmarks.cpu import __main__ as command
from benchmarks.cpu import processes, speed, sweep
from benchmarks.cpu.contenders import names, torch_contenders
from benchmarks.cpu.contenders.cases import ARTIFACT, input_file
from benchmarks.cpu.contenders.names import (
    ALTERNATIVES,
    AUTOTUNED,
    COMPILED,
    CONTENDERS,
    COPY,
    FLOOR,
    GRID,
    MODEL_GRAPH,
    NUMPY,
    ONNXRUNTIME_PRODUCT,
    OPENVINO,
    OPENVINO_PRODUCT,
    ORIGINAL,
    PLAIN_ONNX,
    SAELENS,
    THIS,
    Contender,
    UnavailableError,
)
from benchmarks.cpu.contenders.uses import ALL_HOOKS, FEATURES, FEW, USES, WATCH
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


class InThisProcess:
    """Answers as a worker does."""

    def __init__(self, name, folder, use, inputs, change=None):
        self.runner = CONTENDERS[name].make(folder, use, 1)
        self.inputs, self.change = inputs, change

    def ask(self, request, rows, stride, target):
        assert request == "write_outputs"
        self.runner.bind(self.inputs(rows))()
        outputs = self.runner.compute(self.inputs(rows))
        if self.change:
            self.change(outputs)
        save_file({name: np.array(y[::stride]) for name, y in outputs.items()}, target)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("use", USES)
def test_contenders_agree(case, tmp_path, use, rows):
    folder, inputs = case
    here = [name for name in GRID[use] if name not in (COMPILED, AUTOTUNED) and not CONTENDERS[name].environment]
    here += [MODEL_GRAPH] * (use == ALL_HOOKS)
    workers = {name: InThisProcess(name, folder, use, inputs) for name in here}
    assert next(iter(workers)) == ORIGINAL
    assert set(speed.check(workers, tmp_path, use, rows)) == {*here} >= {PLAIN_ONNX, NUMPY, THIS, ONNXRUNTIME_PRODUCT}


@pytest.mark.parametrize("name", [OPENVINO, OPENVINO_PRODUCT, SAELENS])
@pytest.mark.parametrize("use", USES)
def test_contenders_in_other_environments_agree(case, tmp_path, use, name):
    folder, inputs = case
    try:
        worker = Worker(name, folder, use, 1)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    with worker:
        worker.ask("load")
        worker.ask("bind", rows=40)
        assert len(worker.ask("measure", seconds=0.0)) == 1
        speed.check({ORIGINAL: InThisProcess(ORIGINAL, folder, use, inputs), name: worker}, tmp_path, use, 40)


def add_to_first(output, by):
    def change(outputs):
        outputs[output].flat[0] += by

    return change


def swap_two_indices(outputs):
    outputs["indices"][:, [0, 1]] = outputs["indices"][:, [1, 0]]


def same_feature_twice(outputs):
    for array in outputs.values():
        array[:, 1] = array[:, 0]


@pytest.mark.parametrize(
    ("use", "change", "says"),
    [
        (ALL_HOOKS, add_to_first("hook_sae_recons", 0.1), "hook_sae_recons differs"),
        (FEATURES, add_to_first("values", 0.1), "values differs"),
        (FEATURES, swap_two_indices, "activations at the indices differs"),
        (FEATURES, same_feature_twice, "values differs"),
        (WATCH, add_to_first("hook_sae_acts_post", 0.1), "hook_sae_acts_post differs"),
    ],
)
def test_a_contender_that_computes_something_else_is_refused(case, tmp_path, use, change, says):
    folder, inputs = case
    workers = [(ORIGINAL, None), (NUMPY, change)]
    with pytest.raises(DisagreementError, match=f"NumPy: {says}"):
        speed.check({name: InThisProcess(name, folder, use, inputs, how) for name, how in workers}, tmp_path, use, 40)


def test_the_watched_features_are_on_for_some_tokens(case):
    folder, inputs = case
    for rows in ROWS:
        acts = CONTENDERS[ORIGINAL].make(folder, WATCH, 1).compute(inputs(rows))["hook_sae_acts_post"]
        assert acts.shape == (rows, FEW)
        assert (acts > 0).any()


@pytest.mark.parametrize(("name", "mode"), [(COMPILED, "default"), (AUTOTUNED, "max-autotune")])
def test_what_is_compiled_is_what_is_compared(case, tmp_path, monkeypatch, name, mode):
    folder, inputs = case
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled.append((function, how)) or function)
    workers = {each: InThisProcess(each, folder, ALL_HOOKS, inputs) for each in (ORIGINAL, name)}
    speed.check(workers, tmp_path, ALL_HOOKS, 40)
    assert compiled == [(torch_contenders.six_hooks, {"dynamic": False, "mode": mode})] * 2


def test_a_contender_that_cannot_be_compiled_is_left_out_with_the_reason(case, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, **how: broken)
    folder, inputs = case
    with pytest.raises(UnavailableError, match=r"^torch.compile does not work here: no C\+\+ compiler$"):
        CONTENDERS[COMPILED].make(folder, ALL_HOOKS, 1).bind(inputs(1))


def test_what_is_not_installed_is_left_out_with_a_line_that_says_what_installs_it(case, monkeypatch):
    folder, _ = case
    elsewhere = Contender("T", "onnx_contenders", "ThisProject", environment=".venv-nowhere")
    missing = Contender("M", "no_such_module", "Missing")
    here = CONTENDERS[THIS]
    monkeypatch.setattr(names, "CONTENDERS", {**CONTENDERS, "elsewhere": elsewhere, "missing": missing})
    monkeypatch.setattr("benchmarks.cpu.workers.CONTENDERS", names.CONTENDERS)
    with ExitStack() as stack:
        workers, absent = speed.start(stack, folder, WATCH, ["elsewhere", THIS], 1)
        assert (list(workers), list(absent)) == ([THIS], ["elsewhere"])
    assert absent["elsewhere"] == ".venv-nowhere is not installed; `make .venv-nowhere/ready` installs it"
    with pytest.raises(UnavailableError, match=r"no_such_module is not installed in .*; `make bench` installs it"):
        missing.make(folder, WATCH, 1)
    assert here.python == sys.executable


def test_no_contender_is_missing_in_the_committed_results():
    lines = json.loads(command.RESULTS.read_text())["grid"]
    assert {line["use"] for line in lines} == {*USES}
    for line in lines:
        assert not line["absent"]
        assert {*line["ms"]} >= {*GRID[line["use"]], FLOOR}
        assert {*line["agreement"]} == {*GRID[line["use"]]}


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
            assert (request, rows, stride) == ("write_outputs", 1000, 2)
            save_file({hook: np.full((500, 4), self.factor, np.float32) for hook in HOOKS}, target)

    found = speed.check({ORIGINAL: Fake(1.0), THIS: Fake(1 + 1e-5)}, tmp_path, ALL_HOOKS, 1000)
    assert found[ORIGINAL] == 0
    assert 0.9e-5 < found[THIS] < 1.1e-5
    with pytest.raises(DisagreementError, match="^this project: hook_sae_input differs"):
        speed.check({ORIGINAL: Fake(1.0), THIS: Fake(1.001)}, tmp_path, ALL_HOOKS, 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_fails_says_why(case, tmp_path):
    with Worker(THIS, case[0], FEATURES, 1) as worker:
        worker.ask("load")
        worker.ask("bind", rows=40)
        assert len(worker.ask("measure", seconds=0.0)) == 1
        with pytest.raises(RuntimeError, match=r"(?s)The process of this ended with 1: .*x-3.npy"):
            worker.ask("bind", rows=3)
    with Worker(THIS, tmp_path, FEATURES, 1) as worker, pytest.raises(RuntimeError, match="is not an artifact"):
        worker.ask("load")


@pytest.fixture(scope="module")
def swept():
    """Measure the sweep of a small SAE."""
    return list(sweep.measure_sweep(16, 64, [0], [1, 9], Effort(1, 0.0, 2, 0.0, 0.0)))


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


def test_before_each_turn_the_threads_of_the_contender_before_it_go_to_sleep(monkeypatch):
    seen = []
    monkeypatch.setattr(speed.time, "sleep", lambda seconds: seen.append(("rest", seconds)))

    class Timed:
        def ask(self, request, seconds):
            seen.append((request, seconds))
            return [2.0, 1.0, 4.0]

    found = speed.interleave({THIS: Timed(), NUMPY: Timed()}, Effort(1, 0.0, 2, 0.25, 0.5))
    assert found == {THIS: [2.0, 2.0], NUMPY: [2.0, 2.0]}
    assert seen == [("rest", 0.5), ("measure", 0.25)] * 4


def test_a_ratio_is_that_of_a_rounds_medians():
    rounds = {THIS: [1.0, 2.0, 4.0], ORIGINAL: [10.0, 40.0, 20.0], COPY: [0.5, 0.0, 1.0],
              ONNXRUNTIME_PRODUCT: [0.5, 1.0, 1.0], OPENVINO_PRODUCT: [0.25, 2.0, 2.0]}  # fmt: skip
    found = speed.summarize(rounds)
    assert found["over_this"][ORIGINAL] == [10.0, 7.5, 15.0]  # the median of the ratios 10, 20 and 5, not 20 / 2
    assert found["over_floor"][THIS] == [2.0, 1.5, 2.0]
    assert found["over_product"][THIS] == [2.0, 2.0, 3.0]
    assert found["ms"][FLOOR] == [1.0, 1.0, 1.5]
    assert (found["rounds"], found["best_alternative"], found["fastest_product"]) == (3, None, ONNXRUNTIME_PRODUCT)
    found = speed.summarize({**rounds, OPENVINO_PRODUCT: [0.25, 0.5, 0.5]})
    assert (found["fastest_product"], found["over_floor"][THIS]) == (OPENVINO_PRODUCT, [2.6667, 2.0, 3.3333])
    without_copy = {name: times for name, times in rounds.items() if name != COPY}
    assert speed.summarize(without_copy)["ms"][FLOOR] == [1.0, 0.75, 1.0]
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


def line(rows, frequencies="realistic", use=ALL_HOOKS, **more):
    times = {"over_this": {ORIGINAL: [5.0, 4.5, 5.5], "compiled": [2.0, 1.9, 2.125]},
             "over_floor": {THIS: [1.25, 1.2, 1.3], ORIGINAL: [6.25, 6, 7]},
             "over_product": {THIS: [1.5, 1.4, 1.6]}}  # fmt: skip
    return {"use": use, "d_in": 768, "d_sae": 24576, "frequencies": frequencies, "rows": rows,
            "l0_wanted": 50, "l0_mean": 51.25, "l0_std": 24.49, "fired_share": 0.1153,
            "ms": {THIS: [3.14159, 3, 4]}, "best_alternative": "compiled",
            "absent": {"plain_onnx": "why"}, **times, **more}  # fmt: skip


@pytest.fixture
def result(swept):
    """A file of results."""
    way = {"seconds": [0.5, 0.4, 0.6], "over_this": [1.0, 1.0, 1.0], "resident_bytes": {"1": 2.9e8, "512": 4.2e8},
           "install": {"bytes": 125_000_000, "distributions": ["numpy"]}}  # fmt: skip
    whole = {"d_in": 768, "d_sae": 24576, "weights_bytes": 151_000_000, "runs": 7,
             "ways": dict.fromkeys(processes.PROCESSES, way)}  # fmt: skip
    machine = {"date": "2026-01-02", "processor": "P", "python": "3.11", "torch": "T", "onnxruntime": "O", "numpy": "N",
               "openvino": "V", "threads": 2}  # fmt: skip
    grid = [line(1), line(64), line(1, "uniform", best_alternative=None), line(1, d_in=64), line(1, use=WATCH)]
    return {"grid": grid, "grid_measured": machine, "sweep": swept, "processes": whole}


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
    assert "2026-01-02, P, 2 threads each, Python 3.11, torch T, onnxruntime O, numpy N, openvino V." in printed
    assert "plain ONNX export is missing: why." in printed
    assert "| this project | 0.50 | 1.00 (1.00-1.00) | 290 MB | 420 MB | 125 MB |" in printed
    assert printed.count("| 16 x 64 |") == 2
    assert "| 768 x 24576 | realistic | 64 |  | 2.00 (1.90-2.12) |" in printed  # the rivals, of which one is missing
    assert "## 64 watched features" in printed
    assert tables.table({**result, "grid": [], "sweep": []}).startswith("## Whole processes")


def test_lines_that_are_measured_again_take_the_place_of_the_stored_ones():
    stored = [line(1), line(64), line(1, use=WATCH)]
    measured = [line(64, l0_mean=7), line(8), line(1, use=FEATURES)]
    merged = command.merge(stored, measured)
    assert [(one["use"], one["rows"], one["l0_mean"]) for one in merged] == [
        (ALL_HOOKS, 1, 51.25), (ALL_HOOKS, 8, 51.25), (ALL_HOOKS, 64, 7), (FEATURES, 1, 51.25), (WATCH, 1, 51.25)
    ]  # fmt: skip


def test_the_sweep_says_whether_it_is_too_slow(swept):
    slow = [{**swept[0], "over_model_graph": {THIS: [1.06, 1.05, 1.07]}}]
    assert tables.sweep_note(slow).endswith("with 1 rows: more than 5% slower.")
    fine = [{**swept[0], "over_model_graph": {THIS: [1.04, 1.0, 1.07]}}]
    assert tables.sweep_note(fine).startswith("At most 1.04 (1.00-1.07) of the dense graph's time, at L0 0 with")
    assert tables.sweep_note(fine).endswith("not more than 5% slower.")


def test_where_this_project_is_not_ahead_the_tables_say_so(result):
    watched = [line(rows, use=WATCH, over_this={NUMPY: [ratio, 0, 9], OPENVINO: [1.0, 0, 9]})
               for rows, ratio in ((1, 0.5), (8, 0.75), (64, 1.5))]  # fmt: skip
    assert tables.ahead_note([line(1), line(8), *watched]) == (
        "With all six hooks, less time is taken by no alternative, in any of 2 rows.\n\n"
        "With 64 watched features, less time is taken by NumPy in 2 of 3 rows, with 0.50 to 0.75 of this project's."
    )


def test_the_plot_has_a_panel_for_each_use_and_a_line_for_each_contender(result, tmp_path):
    assert {*plot.STYLES} == {ORIGINAL, *ALTERNATIVES, THIS}
    sizes = []
    for lines in (result["grid"][:2], result["grid"]):
        plot.plot(lines, tmp_path / "speed.png")
        sizes.append(np.frombuffer((tmp_path / "speed.png").read_bytes()[16:24], ">u4"))
    assert sizes[1][0] == 2 * sizes[0][0]
    assert sizes[1][1] == sizes[0][1]


@pytest.mark.parametrize("name", ["runtime_unchecked", "hooked_sae"])
def test_a_whole_process_returns_its_first_result(name, case, tmp_path):
    folder, _ = case
    program, bytecode = processes.PROCESSES[name].program, tmp_path / "bytecode"
    seconds, peak = processes.run_program(program, folder / ARTIFACT, input_file(folder, 1), bytecode)
    assert seconds > 0
    assert peak > 10_000_000 or sys.platform != "linux"
    assert list(bytecode.rglob("*.pyc"))


def test_a_process_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no such thing"):
        processes.run_program("raise ValueError('no such thing')", tmp_path, tmp_path, tmp_path)


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
