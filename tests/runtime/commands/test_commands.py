"""Both command lines, as a user types them."""

import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file

import runtime
from runtime import SAESession
from runtime.commands import inspect, stream
from runtime.commands.main import main as run
from saeexport import export
from saeexport.cli import main as saeexport
from tests.support.samples import HOOKS, TINY, make_sae, normal
from tests.support.zoo import D_IN, D_OUT, sae_of


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(make_sae(d_in=12, hook_name="blocks.0.attn.hook_z").state_dict(), tmp_path / "my-sae.pt")
    config = {"d_sae": 16, "d_in": 12, "hook_name": "blocks.0.attn.hook_z"}
    (tmp_path / "my-sae.json").write_text(json.dumps(config))
    return tmp_path / "my-sae.pt"


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "x.npy", normal(7, 11, 6))
    return tmp_path / "x.npy"


def said(capsys, code, *arguments, command=run):
    """Run a command, check its exit code, and return what it printed."""
    assert command([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert not (code == 2 and captured.out)
    return captured.out if code != 2 else captured.err


# python -m runtime


def test_inspect_says_what_an_artifact_is(capsys):
    out = said(capsys, 0, "inspect", TINY)
    for part in ("standard SAE on blocks.0.attn.hook_z, 6 -> 16 features, float32", "on: output = recons + error",
                 *HOOKS, "16 tokens, activations", "torch 2", "input -> all hooks", "input, k -> indices, values, l0",
                 "input               float32  [tokens, 6]", "hook_sae_acts_post  float32  [tokens, 16]",
                 "weights.safetensors", "parity at export, 16 tokens on cpu; largest errors"):  # fmt: skip
        assert part in out
    lines = out.splitlines()
    manifest = runtime.read_artifact(TINY).manifest
    for graph in manifest.graphs.values():
        assert any(f"{graph.file} " in line and f"{manifest.files[graph.file].bytes:,} bytes" in line for line in lines)
    recons = manifest.parity.steered["hook_sae_recons"]
    errors = [recons.original.token, recons.artifact.token, recons.original.element, recons.artifact.element]
    assert ["hook_sae_recons,", "steered", *(f"{error:.2e}" for error in errors)] in [line.split() for line in lines]
    assert len(lines) <= 60
    assert max(map(len, lines[1:])) <= 100  # the first has the path


def test_inspect_says_how_many_tokens_were_left_out_and_names_the_model(monkeypatch):
    artifact = runtime.read_artifact(TINY)
    parity = dataclasses.replace(artifact.manifest.parity, left_out=3)
    sae = SimpleNamespace(
        **{name: getattr(artifact.manifest.sae, name) for name in dir(artifact.manifest.sae) if name[0] != "_"}
    )
    sae.model_name, sae.neuronpedia_id = "gpt2-small", "gpt2-small/2-res-jb"
    text = inspect.describe(
        dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, sae=sae, parity=parity))
    )
    assert "16 tokens on cpu (3 left out because PyTorch itself is inexact on them)" in text
    assert "model         gpt2-small\n" in text
    assert "neuronpedia   gpt2-small/2-res-jb\n" in text
    plain = inspect.describe(artifact)
    assert "left out" not in plain
    assert "neuronpedia" not in plain


@pytest.mark.parametrize("command", [[], ["inspect"], ["verify"], ["run"], ["bench"], ["doctor"]])
def test_help_explains_every_option_in_80_columns(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        run([*command, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    if not command:
        assert "2    the command could not be carried out" in text
        assert all(f"\n    {name} " in text for name in ("inspect", "verify", "run", "bench", "doctor"))
    if command == ["bench"]:
        assert "numbers of tokens per call (default: 1 8 64 512)" in " ".join(text.split())


@pytest.mark.parametrize(("main", "name"), [(run, "python -m runtime"), (saeexport, "saeexport")])
def test_version_names_the_package_and_onnxruntime(capsys, main, name):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    own = importlib.metadata.version("saeexport")
    assert capsys.readouterr().out == f"{name} {own}, onnxruntime {onnxruntime.__version__}\n"


def test_verify_prints_the_table(capsys):
    out = said(capsys, 0, "verify", TINY, "--device", "cpu")
    assert out.count(" ok") == 36
    assert "FAIL" not in out


def test_errors_exit_2_with_one_line(capsys, tmp_path):
    assert said(capsys, 2, "verify", tmp_path / "none") == (
        f"error: {tmp_path}/none is not an artifact, a folder with sae.json: it does not exist.\n"
    )
    assert "it must be" in said(capsys, 2, "verify", TINY, "--device", "gpu")


def test_ctrl_c_exits_130(capsys, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.commands.verify.verify", interrupt)
    assert run(["verify", str(TINY)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("batch", [[], ["--batch", "10"], ["--batch", "1"], ["--batch", "1000"]])
def test_run_streams_what_the_session_computes(capsys, tmp_path, source, batch):
    said(capsys, 0, "run", TINY, source, tmp_path / "out.safetensors", *batch)
    out = load_file(tmp_path / "out.safetensors")
    x = np.load(source)
    rows = x.reshape(-1, 6)
    at_once = int(batch[1]) if batch else len(rows)
    with SAESession(TINY, "cpu") as session:
        blocks = [session.compute(rows[i : i + at_once], HOOKS) for i in range(0, len(rows), at_once)]
    assert set(out) == set(HOOKS)
    for name in HOOKS:
        expected = np.concatenate([block[name] for block in blocks])
        np.testing.assert_array_equal(out[name], expected.reshape(*x.shape[:-1], -1))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("shape", "dtype"), [((6,), "f4"), ((0, 6), "f4"), ((5, 2, 3), "f4"), ((4, 6), "f2"), ((4, 6), "i8")]
)
def test_run_takes_every_shape_and_dtype_of_the_session(capsys, tmp_path, shape, dtype):
    x = (normal(*shape) * 3).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    said(capsys, 0, "run", TINY, tmp_path / "x.npy", tmp_path / "out.safetensors")
    out = load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(out["hook_sae_input"], x)
    assert out["hook_sae_input"].dtype == x.dtype
    assert out["hook_sae_recons"].shape == x.shape
    assert out["hook_sae_acts_pre"].shape[-1] == 16


def test_run_writes_the_hooks_that_are_asked_for(capsys, tmp_path, source):
    said(capsys, 0, "run", TINY, source, tmp_path / "out.safetensors", "--hooks", "hook_sae_acts_post")
    assert set(load_file(tmp_path / "out.safetensors")) == {"hook_sae_acts_post"}


def test_run_lists_the_hooks_if_one_is_unknown(capsys, tmp_path, source):
    for command in (["run", TINY, source, tmp_path / "out.safetensors"], ["bench", TINY]):
        message = said(capsys, 2, *command, "--hooks", "hook_sae_acts_post", "hook_mlp_out")
        assert message == f"error: hook_mlp_out: no such hook. There are {', '.join(HOOKS)}.\n"
    assert not (tmp_path / "out.safetensors").exists()


def test_run_does_not_replace_a_file_without_overwrite(capsys, tmp_path, source):
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    assert "exists. Choose another file, or overwrite it (overwrite=True, --overwrite)" in said(
        capsys, 2, "run", TINY, source, out
    )
    assert out.read_text() == "precious"
    said(capsys, 0, "run", TINY, source, out, "--overwrite")
    assert set(load_file(out)) == set(HOOKS)


def test_run_that_fails_leaves_what_was_there(capsys, tmp_path, source, monkeypatch):
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    compute, calls = SAESession.compute, []

    def fail(self, x, names, target):
        calls.append(len(x))
        if len(calls) == 3:
            raise OSError("No space left on device")
        return compute(self, x, names)

    monkeypatch.setattr(SAESession, "compute", fail)
    assert "No space left" in said(capsys, 2, "run", TINY, source, out, "--overwrite", "--batch", "9")
    assert calls == [9, 9, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "x.npy"]
    assert out.read_text() == "precious"


@pytest.mark.parametrize("target", ["folder", "fifo"])
def test_run_refuses_a_target_that_is_not_a_file(capsys, tmp_path, source, target):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    error = said(capsys, 2, "run", TINY, source, tmp_path / target, "--overwrite")
    assert "is not an ordinary file. Choose another path" in error


def test_run_keeps_a_file_that_appears_during_the_run(capsys, tmp_path, source, monkeypatch):
    out, compute = tmp_path / "out.safetensors", SAESession.compute

    def appear(self, x, names, target):
        out.write_text("precious")
        return compute(self, x, names)

    monkeypatch.setattr(SAESession, "compute", appear)
    assert "exists" in said(capsys, 2, "run", TINY, source, out)
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "x.npy"]


def test_run_that_is_terminated_leaves_nothing(tmp_path, source):
    code = f"""
import os, signal, sys
from runtime import SAESession
from runtime.commands.main import main
SAESession.compute = lambda *args: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(main(["run", {str(TINY)!r}, {str(source)!r}, {str(tmp_path / "out")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 143, done.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_bench_refuses_zero_tokens(capsys):
    assert "--tokens is 0; it must be at least 1" in said(capsys, 2, "bench", TINY, "--tokens", "5", "0")


def save_several(path):
    with path.open("wb") as file:
        np.savez(file, a=normal(7, 6))


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: np.save(path, np.asfortranarray(normal(7, 6))), "is in Fortran order. Save numpy.ascont"),
        (lambda path: np.save(path, normal(7, 5)), r"x.npy has shape \(7, 5\); this SAE takes"),
        (lambda path: np.save(path, np.ones((7, 6))), "float64; this SAE is float32"),
        (lambda path: np.save(path, np.ones((7, 6), bool)), r"\(0, 6\) bool; this SAE is float32"),
        (lambda path: np.save(path, np.ones((7, 6), "c8")), "complex64; this SAE is float32"),
        (lambda path: np.save(path, np.ones((0, 6))), "float64; this SAE is float32"),
        (lambda path: np.save(path, np.full((7, 6), None)), "is not a .npy file of numbers"),
        (lambda path: path.write_text("no array"), "is not a .npy file of numbers"),
        (save_several, "holds several arrays"),
    ],
)
def test_run_refuses_other_files(capsys, tmp_path, save, message):
    save(tmp_path / "x.npy")
    error = said(capsys, 2, "run", TINY, tmp_path / "x.npy", tmp_path / "out.safetensors")
    assert re.search(message, error)
    assert not (tmp_path / "out.safetensors").exists()


def test_run_refuses_a_batch_of_zero(capsys, tmp_path, source):
    assert "batch is 0; it must be at least 1" in said(
        capsys, 2, "run", TINY, source, tmp_path / "out.safetensors", "--batch", "0"
    )


def test_run_reports_progress_and_bounds_what_it_holds(tmp_path, source):
    progress = []
    with SAESession(TINY, "cpu") as session:
        stream.stream(session, source, tmp_path / "o", batch=30, progress=lambda *call: progress.append(call))
    assert progress == [(30, 77), (60, 77), (77, 77)]


@pytest.mark.parametrize("use_error_term", [False, True])
def test_run_and_bench_of_a_transcoder(capsys, tmp_path, use_error_term):
    """Its output is not as wide as its input. `bench` takes the targets of the golden batch, `run` a file of them."""
    path = export(sae_of("transcoder", use_error_term=use_error_term), tmp_path / "sae").path
    said(capsys, 0, "bench", path, "--tokens", "3", "--seconds", "0.01", "--device", "cpu")
    x = normal(4, 5, D_IN)
    np.save(tmp_path / "x.npy", x)
    arguments = ["run", path, tmp_path / "x.npy", tmp_path / "out.safetensors", "--batch", "7", "--device", "cpu"]
    target = None
    if use_error_term:
        assert "Give their file (--targets FILE), or choose hooks of the encoder" in said(capsys, 2, *arguments)
        assert not (tmp_path / "out.safetensors").exists()
        said(capsys, 0, *arguments, "--hooks", "hook_sae_acts_post")
        np.save(tmp_path / "short.npy", normal(4, 4, D_OUT))
        assert "short.npy is (4, 4, 7) float32" in said(capsys, 2, *arguments, "--targets", tmp_path / "short.npy")
        target = normal(4, 5, D_OUT, seed=3)
        np.save(tmp_path / "y.npy", target)
        arguments += ["--targets", tmp_path / "y.npy", "--overwrite"]
    said(capsys, 0, *arguments)
    with SAESession(path, "cpu") as session:
        expected = session.compute(x, session.hook_names, target)
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(written[name], tensor, rtol=0, atol=1e-5, err_msg=name)


def test_bench_prints_a_row_per_number_of_tokens(capsys):
    out = said(capsys, 0, "bench", TINY, "--tokens", "1", "5", "--seconds", "0.01", "--threads", "1", "--device", "cpu")
    assert out.splitlines()[1].startswith("model.sparse on cpu with 1 thread, 5 tokens at once: ")
    rows = [line.split() for line in out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["1", "5"]
    assert all(int(row[1]) >= 3 for row in rows)


# saeexport


def test_export_and_verify_a_checkpoint(capsys, tmp_path, checkpoint):
    np.save(tmp_path / "x.npy", normal(50, 3, 4))
    out = said(capsys, 0, "export", checkpoint, tmp_path / "out", "--activations", tmp_path / "x.npy", "--heads", "3",
               "--error-term", command=saeexport)  # fmt: skip
    assert out.splitlines()[0].startswith(f"{tmp_path}/out: 11 graphs, ")
    assert "parity on 50 tokens (activations): largest error against float64" in out
    cfg = runtime.read_artifact(tmp_path / "out").manifest.sae
    assert (cfg.head_shape, cfg.use_error_term) == ((3, 4), True)
    assert said(capsys, 0, "verify", tmp_path / "out", "--device", "cpu", command=saeexport).count(" ok") == 36
    said(capsys, 0, "verify", tmp_path / "out", "--activations", tmp_path / "x.npy", command=saeexport)
    # The checkpoint has the error term off, this artifact on.
    out = said(capsys, 1, "verify", tmp_path / "out", "--against", checkpoint, command=saeexport)
    assert "use_error_term is True in the artifact and False in the original" in out


@pytest.mark.parametrize(("flag", "expected"), [([], False), (["--error-term"], True), (["--no-error-term"], False)])
def test_the_error_term_can_be_chosen(capsys, tmp_path, checkpoint, flag, expected):
    said(capsys, 0, "export", checkpoint, tmp_path / "out", *flag, command=saeexport)
    assert runtime.read_artifact(tmp_path / "out").manifest.sae.use_error_term is expected


def test_export_says_what_is_wrong(capsys, tmp_path, checkpoint):
    assert "--heads is 5; it must divide d_in = 12" in said(
        capsys, 2, "export", checkpoint, tmp_path / "out", "--heads", "5", command=saeexport
    )
    assert "does not exist" in said(capsys, 2, "export", tmp_path / "no", tmp_path / "out", command=saeexport)
    shutil.copytree(TINY, tmp_path / "out")
    message = said(capsys, 2, "export", checkpoint, tmp_path / "out", command=saeexport)
    assert "exists. Choose another path, or overwrite it (overwrite=True, --overwrite)" in message
    said(capsys, 0, "export", checkpoint, tmp_path / "out", "--overwrite", command=saeexport)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors"])
def test_activations_are_read_from_three_formats(capsys, tmp_path, checkpoint, name):
    x = normal(9, 12)
    {"x.npy": np.save, "x.npz": np.savez}.get(name, lambda path, x: save_file({"acts": x}, path))(tmp_path / name, x)
    said(capsys, 0, "export", checkpoint, tmp_path / "out", "--activations", tmp_path / name, command=saeexport)
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "golden.safetensors")["hook_sae_input"], x)


def test_other_activations_are_refused(capsys, tmp_path, checkpoint):
    np.savez(tmp_path / "two.npz", a=normal(3), b=normal(3))
    (tmp_path / "broken.npy").write_text("no array")
    (tmp_path / "x.csv").write_text("1,2")
    for name, message in (
        ("two.npz", "holds 2 arrays (a, b); it must hold one"),
        ("broken.npy", "cannot be read as an array:"),
        ("x.csv", "ends in '.csv'; activations are read from .npy, .npz and .safetensors"),
        ("none.npy", "No such file"),
    ):
        error = said(
            capsys, 2, "export", checkpoint, tmp_path / "out", "--activations", tmp_path / name, command=saeexport
        )
        assert message in error
