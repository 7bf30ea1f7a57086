"""Both command lines, as a user types them."""

import dataclasses
import importlib.metadata
import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file

import runtime
from runtime.commands import inspect
from runtime.commands.main import main as run
from saeexport.cli import main as saeexport
from tests.support.breaking import claim_weights, edit_weight, rewrite
from tests.support.commands import said
from tests.support.samples import HOOKS, TINY, make_sae, normal

COMMANDS = ("inspect", "verify", "report", "run", "features", "bench", "doctor")


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(make_sae(d_in=12, hook_name="blocks.0.attn.hook_z").state_dict(), tmp_path / "my-sae.pt")
    config = {"d_sae": 16, "d_in": 12, "hook_name": "blocks.0.attn.hook_z"}
    (tmp_path / "my-sae.json").write_text(json.dumps(config))
    return tmp_path / "my-sae.pt"


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


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_explains_every_option_in_80_columns(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        run([*command, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    if not command:
        assert "2    the command could not be carried out" in text
        assert all(f"\n    {name} " in text for name in COMMANDS)
    if command == ["bench"]:
        assert "numbers of tokens per call (default: 1 8 64 512)" in " ".join(text.split())


@pytest.mark.parametrize(("main", "name"), [(run, "python -m runtime"), (saeexport, "saeexport")])
def test_version_names_the_package_and_onnxruntime(capsys, main, name):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    own = importlib.metadata.version("saeexport")
    assert capsys.readouterr().out == f"{name} {own}, onnxruntime {onnxruntime.__version__}\n"


def test_verify_prints_the_table(capsys):
    out = said(capsys, 0, "verify", TINY, "--device", "cpu", "--all")
    assert out.count(" ok") == 36
    assert "FAIL" not in out


def test_verify_prints_each_output_of_its_worst_graph(capsys, artifact):
    rows = [line.split() for line in said(capsys, 0, "verify", artifact, "--device", "cpu").splitlines()[3:]]
    report = runtime.verify(artifact, "cpu")
    names = dict.fromkeys(verdict.hook for verdict in report.verdicts)
    assert [row[0] for row in rows] == list(names)
    assert sum(int(row[1]) for row in rows) == 36
    for name, row in zip(names, rows, strict=True):
        own = [verdict for verdict in report.verdicts if verdict.hook == name]
        worst = next(verdict for verdict in own if verdict.graph == row[2])
        assert worst.used == max(verdict.used for verdict in own)
        assert row[-1] == "ok"
        assert row[3] == ("exact" if worst.errors is None else f"{worst.errors.token:.2e}")
    rewrite(artifact, "weights.safetensors", edit_weight("W_dec", (0, 0), 1.5))
    claim_weights(artifact)
    out = said(capsys, 1, "verify", artifact, "--device", "cpu")
    failing = {verdict.hook for verdict in runtime.verify(artifact, "cpu").verdicts if verdict.failures}
    assert {line.split()[0] for line in out.splitlines() if line.endswith(" FAIL")} == failing
    assert out.count("\nFAIL: ") == len(runtime.verify(artifact, "cpu").failures)


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


def test_bench_refuses_batches_that_do_not_fit_in_memory(capsys):
    assert run(["bench", str(TINY), "--tokens", str(10**13), "--device", "cpu"]) == 2
    assert "A batch of 10000000000000 tokens would take" in capsys.readouterr().err


def test_bench_refuses_zero_tokens(capsys):
    assert "--tokens is 0; it must be at least 1" in said(capsys, 2, "bench", TINY, "--tokens", "5", "0")


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
    assert said(capsys, 0, "verify", tmp_path / "out", "--device", "cpu", "--all", command=saeexport).count(" ok") == 36
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
        ("broken.npy", "broken.npy is not a .npy file of numbers: the magic string is not correct"),
        ("x.csv", "ends in '.csv'; activations are read from .npy, .npz and .safetensors"),
        ("none.npy", "none.npy does not exist. Pass the path of a .npy file"),
    ):
        error = said(
            capsys, 2, "export", checkpoint, tmp_path / "out", "--activations", tmp_path / name, command=saeexport
        )
        assert message in error
