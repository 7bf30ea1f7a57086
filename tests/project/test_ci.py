"""`.ci/run` makes what a change has to pass, and fails if one of it fails."""

import os
import shutil
import subprocess

import pytest

from tests.support.samples import ROOT

EXAMPLES = [f"example-{name}" for name in ("retrieval", "mlserver", "node", "cpp", "web")]
GATES = ["check", "test", "docs", "dist", *EXAMPLES]
MAKE = """#!/bin/sh
for target; do
  echo "$target" >> made
  if [ "$target" = "$FAILS" ]; then echo "$target failed"; exit 2; fi
done
"""


@pytest.fixture
def run(tmp_path):
    """Run a copy of `.ci/run` where every program is found, and `make` makes nothing."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "programs").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    for name in ("make", "node", "npm", "cmake", "c++", "apt-get", "dpkg-deb", "chromium"):
        (tmp_path / "programs" / name).write_text(MAKE if name == "make" else "#!/bin/sh\n")
        (tmp_path / "programs" / name).chmod(0o755)

    def start(fails=""):
        environment = {**os.environ, "PATH": f"{tmp_path / 'programs'}:{os.environ['PATH']}", "FAILS": fails}
        done = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60)
        return done, (tmp_path / "made").read_text().split()

    return start


def test_every_gate_is_made(run):
    done, made = run()
    assert done.returncode == 0, done.stderr
    assert {*GATES} <= {*made}


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_that_fails_fails_the_run(run, gate):
    done, made = run(gate)
    assert done.returncode != 0
    assert gate in made
    assert f"{gate} failed" in done.stdout
