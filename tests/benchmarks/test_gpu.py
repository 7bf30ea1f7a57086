"""The GPU benchmark, rehearsed on a CPU: it runs and checks its results. No test depends on a time."""

import json
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import run
from benchmarks.gpu.contenders import agreement, runtime_contenders
from benchmarks.gpu.contenders.names import (
    COPY,
    DECODE_PRODUCT,
    ENCODE_PRODUCT,
    ORIGINAL,
    THIS,
    THIS_ENCODE,
    THIS_HOST,
    THIS_TOP,
    TORCH_HOST,
)
from benchmarks.gpu.device import Cpu, Cuda
from benchmarks.gpu.measure import grid
from benchmarks.gpu.measure.timing import Effort
from benchmarks.gpu.prepared import artifacts
from benchmarks.gpu.prepared.prepare import make_sae
from benchmarks.gpu.report import tables
from benchmarks.shared.agreement import DisagreementError
from benchmarks.shared.equations import original_hooks
from benchmarks.shared.machine import ROOT
from tests.support.samples import HOOKS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the artifacts of a small SAE."""
    folder = tmp_path_factory.mktemp("prepared")
    call(["--prepare", str(folder), "--shapes", "24x128", "--precisions", "bfloat16"])
    return folder


def call(arguments):
    before, sys.argv = sys.argv, ["benchmarks.gpu", *arguments]
    try:
        return command.main()
    finally:
        sys.argv = before


def test_a_rehearsal_measures_everything_and_says_that_it_is_not_a_gpu(prepared, tmp_path, capsys):
    options = ["--device", "cpu", "--quick", "--no-compile", "--seconds", "0", "--rounds", "1"]
    what = ["--shapes", "24x128", "--rows", "8", "1", "--precisions", "float32", "bfloat16"]
    assert call([*options, *what, "--prepared", str(prepared), "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("**These are not GPU figures.**")
    file = tmp_path / "gpu-rehearsal.json"
    result = json.loads(file.read_text())
    assert (result["rehearsal"], result["not_reached"], result["broken"]) == (True, [], [])
    found = [(line["precision"], line["rows"]) for line in result["grid"]]
    assert found == [("float32", 1), ("float32", 8), ("bfloat16", 1), ("bfloat16", 8)]
    for line in result["grid"]:
        assert line["absent"] == {}
        assert {ORIGINAL, THIS, TORCH_HOST, THIS_HOST, THIS_ENCODE, THIS_TOP} <= set(line["agreement"])
        assert {ENCODE_PRODUCT, DECODE_PRODUCT, COPY} <= set(line["ms"])
        assert line["ratios"][ORIGINAL][0] > 0
        assert line["of_limit"][0] > 0
        assert 25 < line["l0_mean"] < 75
    assert [line["rows"] for line in result["candidates"]] == [1, 8]
    for line in result["candidates"]:
        assert set(line["agreement"]) == set(artifacts.CANDIDATES)
        assert line["over_as_is"]["as_is"] == [1, 1, 1]
    (profile,) = result["nodes"]
    assert sum(name.startswith("MatMul ") for name in profile["nodes"]) == 2
    assert (tmp_path / "gpu-rehearsal.png").stat().st_size > 10_000
    assert call(["--table", str(file)]) == 0
    again = capsys.readouterr().out
    assert printed.out == again
    assert again.startswith("**These are not GPU figures.**")
    assert "No goal is judged." in again
    assert "| yes |" not in again


def test_the_riding_bias_is_a_row_of_a_matrix_that_is_made_once(prepared, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    file = artifacts.candidate_file(prepared / "24x128" / "float32", artifacts.RIDES)
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    (product,) = (node for node in graph.node if node.op_type == "MatMul")
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert shapes[product.input[1]] == [24 + artifacts.BIAS_ROWS, 128]


def test_inputs_that_switch_nothing_on_are_refused():
    weights = {name: torch.from_numpy(array) for name, array in artifacts.draw_weights(8, 32).items()}
    (x,) = artifacts.draw_inputs(weights, 4, 1)
    agreement.compute_reference(x, weights)
    with pytest.raises(DisagreementError, match=r"0.0% of the features are on"):
        agreement.compute_reference(x, weights | {"b_enc": torch.full((32,), -1e3)})


def test_the_saes_are_as_sparse_as_they_say():
    weights = {name: torch.from_numpy(array) for name, array in artifacts.draw_weights(128, 4096).items()}
    (x,) = artifacts.draw_inputs(weights, 256, 1)
    assert (original_hooks(x, *weights.values())[2] > 0).sum(1).double().mean().item() == pytest.approx(
        artifacts.L0, rel=0.1
    )


def test_the_stand_in_computes_what_the_original_computes():
    sae = make_sae(24, 128)
    weights = {name: getattr(sae, name).detach() for name in artifacts.PARAMETERS}
    (x,) = artifacts.draw_inputs(weights, 5, 1)
    with torch.no_grad():
        _, cache = sae.run_with_cache(x)
        for hook, tensor in zip(HOOKS, original_hooks(x, *weights.values()), strict=True):
            assert torch.equal(cache[hook], tensor), hook


def test_weights_that_were_left_out_are_drawn_again(prepared, tmp_path):
    artifact = tmp_path / "float32"
    artifact.mkdir()
    for name in (artifacts.WEIGHTS, "golden.safetensors"):
        (artifact / name).write_bytes((prepared / "24x128" / "float32" / name).read_bytes())
    before = (artifact / artifacts.WEIGHTS).read_bytes()
    artifacts.leave_weights_out(artifact)
    assert [path.name for path in artifact.iterdir()] == [artifacts.WEIGHTS]
    assert (artifact / artifacts.WEIGHTS).stat().st_size < 1000
    artifacts.fill_in_weights(artifact)
    assert (artifact / artifacts.WEIGHTS).read_bytes() == before
    artifacts.fill_in_weights(artifact)  # whole already
    assert (artifact / artifacts.WEIGHTS).read_bytes() == before


def test_a_run_that_reaches_its_time_limit_or_fails_says_so(prepared, tmp_path, monkeypatch):
    options = grid.Options(Effort(0.0, 1), compiled=False, tuned=())
    plan = run.Plan(prepared, [(24, 128)], ["float32"], [1], 0.0, options)
    result = run.run(plan, Cpu(), True, tmp_path / "none.json")
    assert result["not_reached"] == [f"24 x 128, float32, {part}" for part in ("grid", "candidates", "nodes")]
    assert "24 x 128, float32, grid: the time limit was reached" in tables.left_out(result)

    def broken(*arguments):
        raise ValueError("no such thing")

    monkeypatch.setattr(run, "measure_part", broken)
    plan = run.Plan(prepared, [(24, 128)], ["float32"], [1], 1.0, options)
    result = run.run(plan, Cpu(), True, tmp_path / "broken.json")
    assert result["broken"][0] == "24 x 128, float32, grid: ValueError: no such thing"
    assert len(grid.failures(result)) == 3
    assert json.loads((tmp_path / "broken.json").read_text()) == result


def test_what_does_not_fit_is_skipped_with_the_reason(prepared, monkeypatch):
    device = Cpu()
    monkeypatch.setattr(device, "free_bytes", lambda: 1000)
    options = grid.Options(Effort(0.0, 1), compiled=False, tuned=())
    (found,) = grid.measure(prepared, (24, 128), "float32", [1], device, options)
    assert found["skipped"] == "needs about 0 GB of memory, 0 were free"


def test_on_a_gpu_sessions_take_its_stream_its_precision_and_the_graphs(monkeypatch, tmp_path):
    opened = []

    class Fake:
        def __init__(self, path, device, **options):
            opened.append((device, options))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            opened.append("closed")

    monkeypatch.setattr(runtime_contenders, "SAESession", Fake)
    device = Cuda.__new__(Cuda)
    device.torch, device.stream = torch.device("cuda", 0), "stream"
    with runtime_contenders.Sessions(tmp_path, device, "tf32", [1, 64]) as sessions:
        assert sessions.session() is sessions.session()
        sessions.session(graphed=True)
    common = {"check_integrity": False, "precision": "tf32", "stream": "stream"}
    assert opened[:2] == [("cuda:0", {**common, "cuda_graph": ()}), ("cuda:0", {**common, "cuda_graph": (1, 64)})]
    assert opened[2:] == ["closed", "closed"]


def test_a_gpu_is_timed_by_events_around_a_call_that_is_queued_while_it_waits(monkeypatch):
    happened = []

    class Event:
        def __init__(self, name):
            self.record = lambda: happened.append(name)

        def synchronize(self):
            happened.append("wait")

        def elapsed_time(self, end):
            return 1.5

    class Buffer:
        def zero_(self):
            happened.append("flush")

    device = Cuda.__new__(Cuda)
    device._flushed, device._begin, device._end = Buffer(), Event("begin"), Event("end")
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: happened.append("sleep"))
    assert device.time_queued(lambda: happened.append("call")) == 1.5
    assert happened == ["flush", "sleep", "begin", "call", "end", "wait"]


def test_without_transformer_lens_it_names_the_original_and_what_is_missing(tmp_path):
    program = (
        "import sys; sys.modules['transformer_lens'] = None\n"
        "from benchmarks.gpu import __main__ as command\n"
        "from benchmarks.gpu.contenders import torch_contenders\n"
        "print(torch_contenders.ORIGINAL_IS)\n"
        f"sys.argv += ['--device', 'cpu', '--shapes', '24x128', '--prepared', {str(tmp_path)!r}]\n"
        "command.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == "its equations in plain PyTorch\n"
    assert "lacks artifacts of 24x128" in done.stderr
    assert "python -m benchmarks.gpu --prepare FOLDER --shapes 24x128" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_rehearse():
    with pytest.raises(SystemExit, match="does not see an NVIDIA GPU here.*rehearse with --device cpu"):
        call(["--shapes", "24x128"])
