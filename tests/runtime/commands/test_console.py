"""Both command lines with a standard output that is closed, full, read in part, or cannot encode a text."""

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from runtime.commands.main import main as runtime
from saeexport.cli import main as saeexport
from tests.support.samples import ROOT, TINY, make_sae, normal

NAME = "sæ-特征"
ESCAPED = NAME.encode("ascii", "backslashreplace").decode()


@pytest.fixture
def folder(tmp_path):
    """A folder with an artifact, activations and a checkpoint, whose names ASCII does not have."""
    shutil.copytree(TINY, tmp_path / NAME)
    np.save(tmp_path / f"{NAME}.npy", normal(20, 6))
    torch.save(make_sae().state_dict(), tmp_path / f"{NAME}.pt")
    (tmp_path / f"{NAME}.json").write_text('{"d_sae": 16, "d_in": 6, "hook_name": "blocks.0.hook_resid_pre"}')
    return tmp_path


COMMANDS = [
    (runtime, 0, ["inspect", NAME]),
    (runtime, 0, ["verify", NAME]),
    (runtime, 0, ["run", NAME, f"{NAME}.npy", f"{NAME}.safetensors"]),
    (runtime, 0, ["bench", NAME, "--tokens", "1", "--seconds", "0"]),
    (runtime, 0, ["doctor", NAME]),
    (runtime, 2, ["inspect", f"{NAME}.npy"]),
    (runtime, 2, ["verify", NAME, "--device", NAME]),
    (runtime, 2, ["run", NAME, f"{NAME}.npy", f"{NAME}.safetensors", "--hooks", NAME]),
    (saeexport, 0, ["export", f"{NAME}.pt", f"{NAME}.out"]),
    (saeexport, 0, ["verify", NAME]),
    (saeexport, 0, ["verify", NAME, "--activations", f"{NAME}.npy"]),
    (saeexport, 0, ["inspect", f"{NAME}.pt"]),
    (saeexport, 0, ["formats"]),
    (saeexport, 2, ["inspect", f"{NAME}.npy"]),
]


@pytest.mark.parametrize(("main", "code", "arguments"), COMMANDS, ids=lambda value: getattr(value, "__module__", None))
def test_what_ascii_lacks_is_escaped(folder, monkeypatch, main, code, arguments):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert main(arguments) == code
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode("ascii") for stream in streams)
    says_nothing_of_it = ["formats"], ["doctor", NAME], ["inspect", f"{NAME}.pt"], COMMANDS[2][2]
    assert ESCAPED in out + err or arguments in says_nothing_of_it
    assert "Traceback" not in err


def start(shell, folder, **environment):
    """Run a line of a shell in which `$PYTHON` is this Python, and return its exit code and standard error."""
    done = subprocess.run(
        ["bash", "-c", shell], cwd=folder, text=True, capture_output=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "PYTHONUNBUFFERED": "", **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_terminal_of_a_container_has_ascii_only(folder):
    code, out, err = start(f"$PYTHON -m runtime inspect {NAME}", folder, PYTHONIOENCODING="ascii")
    assert (code, err) == (0, "")
    assert out.startswith(f"{ESCAPED}: standard SAE")


# Both programs end in `console.run`; what that does with each redirection is tried on the one that starts soon.
@pytest.mark.parametrize(
    ("program", "redirection", "code"),
    [*(("runtime", *case) for case in ((">&-", "0"), ("2>&- >&-", "0"), ("2>&-", "0"))),
     *((program, *case) for program in ("runtime", "saeexport") for case in (("| true", "141"), ("> /dev/full", "2")))],
)  # fmt: skip
def test_standard_output_that_takes_nothing(folder, program, redirection, code):
    """The pipe's other end is gone before anything is printed: starting Python takes longer than `true`."""
    shell = f"$PYTHON -m {program} verify {NAME} {redirection}; echo ${{PIPESTATUS[0]}} >> code"
    _, _, err = start(shell, folder)
    assert (folder / "code").read_text().strip() == code
    assert err == (
        "error: standard output cannot be written: [Errno 28] No space left on device\n" if code == "2" else ""
    )


def test_help_into_a_closed_pipe_is_no_traceback(folder):
    assert start("$PYTHON -m runtime --help | true; exit ${PIPESTATUS[0]}", folder)[::2] == (141, "")


def test_a_closed_output_does_not_get_the_number_of_a_file(folder):
    """With standard output closed, the next file that a process opens would be its standard output."""
    code, _, err = start(f"$PYTHON -m runtime run {NAME} {NAME}.npy out.safetensors >&-", folder)
    assert (code, err) == (0, "")
    assert runtime(["run", str(folder / NAME), str(folder / f"{NAME}.npy"), str(folder / "again.safetensors")]) == 0
    assert (folder / "out.safetensors").read_bytes() == (folder / "again.safetensors").read_bytes()


@pytest.mark.parametrize("arguments", ["run {0} {0}.npy out.safetensors", "bench {0} --tokens 1 --seconds 0"])
def test_a_progress_bar_is_for_a_terminal(folder, arguments):
    code, out, err = start(f"$PYTHON -m runtime {arguments.format(NAME)}", folder)
    assert (code, err) == (0, "")
    assert "\r" not in out
