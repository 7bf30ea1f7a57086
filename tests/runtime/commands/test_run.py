"""`python -m runtime run`: what it writes, what it refuses, and what it leaves when it fails."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from runtime import SAESession
from runtime.commands import stream
from saeexport import export
from tests.support.commands import said
from tests.support.samples import HOOKS, TINY, normal
from tests.support.zoo import D_IN, D_OUT, sae_of


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "x.npy", normal(7, 11, 6))
    return tmp_path / "x.npy"


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


def test_run_does_not_write_over_what_it_reads(capsys, tmp_path, source):
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link"):
        assert "is the file that is read, and would be lost" in said(capsys, 2, "run", TINY, source, out, "--overwrite")
    assert source.read_bytes() == before


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
        (lambda path: None, "x.npy does not exist. Pass the path of a .npy file"),
        (os.mkfifo, "x.npy is not an ordinary file. Pass"),
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
