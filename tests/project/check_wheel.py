"""`make dist`: installs the built wheel in an empty environment outside the checkout, and uses it there.

In a checkout every file can be imported, so that a file that is missing from the wheel is noticed only here. The sdist
has to build the same wheel.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
EXPORT = """
import numpy as np
from runtime import SAESession
from saeexport import HookedSAE, HookedSAEConfig, export

cfg = HookedSAEConfig(d_sae=64, d_in=16, hook_name="blocks.0.hook_resid_pre", seed=0, device="cpu")
x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
artifact = export(HookedSAE(cfg), "exported", activations=x)
with SAESession(artifact.path, "cpu") as sae:
    print("exported and ran", sae(x).shape)
"""


def main() -> None:
    """Check the distributions in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path, help="the folder with one wheel and one sdist of this version")
    parser.add_argument("--onnxruntime", choices=["cpu", "gpu"], default="cpu", help="which extra (default: cpu)")
    parser.add_argument("--pip", nargs="*", default=[], help="further arguments of pip install")
    options = parser.parse_args()
    (wheel,), (sdist,) = options.dist.glob("*.whl"), options.dist.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder)
        python = outside / "environment" / "bin" / "python"
        artifact = ROOT / "models" / "tiny"

        def run(label: str, *command: str) -> None:
            done = subprocess.run(command, cwd=outside, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{label} failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
            tqdm.write(f"ok: {label}")

        # Python compiles a module when it is first imported, and most of what is installed never is.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        install = (python, "-m", "pip", "install", "--quiet", "--no-compile")
        extras = f"{options.onnxruntime},export"
        steps: list[tuple[str | Path, ...]] = [
            ("install the wheel", *install, *options.pip, f"{wheel.resolve()}[{extras}]"),
            ("install the build tools", *install, "build", "setuptools>=77"),
            ("build a wheel from the sdist",
             python, "-m", "build", "--wheel", "--no-isolation", "--outdir", outside / "again", outside / "source"),
            ("runtime doctor", python, "-m", "runtime", "doctor", artifact),
            ("runtime verify", python, "-m", "runtime", "verify", artifact, "--device", "cpu"),
            ("runtime report", python, "-m", "runtime", "report", artifact, "report.html", "--device", "cpu"),
            ("saeexport inspect", python.with_name("saeexport"), "inspect", artifact),
            ("install pytest", *install, *options.pip, "pytest>=8"),
            ("the pytest plugin", python, "-m", "pytest", f"--sae-artifact={artifact}", "--sae-device=cpu"),
            ("export from Python, and run", python, "-c", EXPORT),
            ("runtime verify of that export", python, "-m", "runtime", "verify", "exported", "--device", "cpu"),
        ]  # fmt: skip
        venv.create(outside / "environment", with_pip=True)
        subprocess.run(["tar", "-xzf", sdist.resolve(), "--one-top-level=source", "--strip-components=1"],
                       cwd=outside, check=True)  # fmt: skip
        for step in tqdm(steps, desc="make dist", disable=None):
            run(*map(str, step))
        built = next((outside / "again").glob("*.whl"))
        if names(built) != names(wheel):
            sys.exit(f"The sdist builds another wheel: {sorted(names(built) ^ names(wheel))}")
        where = subprocess.run([python, "-c", "import runtime; print(runtime.__file__)"], cwd=outside,
                               capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
        if Path(where).is_relative_to(ROOT):
            sys.exit(f"runtime was imported from the checkout: {where}")
        tqdm.write(f"{wheel.name} and {sdist.name}: installed, exported, verified outside the checkout")


def names(wheel: Path) -> set[str]:
    """Return the files that a wheel holds."""
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


if __name__ == "__main__":
    main()
