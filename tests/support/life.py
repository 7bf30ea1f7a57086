"""What a session computes, other artifacts at its path, and other processes."""

import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np

from runtime import Clamp
from tests.support.samples import ROOT, normal

X = normal(9, 6)


def results(session):
    """Return what every kind of graph computes."""
    return {
        **session.run_with_cache(X)[1],
        "acts": session.encode(X),
        "recons": session.decode(session.encode(X)),
        "steered": session.steer(X, {3: Clamp(2.0)})[0],
        "values": session.top_features(X, 4).values,
        "W_dec": np.array(session.W_dec),
    }


def assert_same(found, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def replace(artifact, other):
    """Put another artifact in the place of one, as `export --overwrite` does."""
    copied = shutil.copytree(other, artifact.with_name("new"))
    artifact.rename(artifact.with_name("old"))
    copied.rename(artifact)
    shutil.rmtree(artifact.with_name("old"))


def python(code, folder, **environment):
    """Run a script in a process of its own, and return how it ended."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment, cwd=folder
    )
