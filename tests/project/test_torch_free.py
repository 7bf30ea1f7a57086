"""`runtime` needs numpy, ml_dtypes, onnxruntime and safetensors, and tqdm on its command line, but not PyTorch."""

import ast
import subprocess
import sys

import pytest

from tests.support.samples import ROOT, TINY

ALLOWED = {"ml_dtypes", "numpy", "onnxruntime", "safetensors"}
OF_SIGNATURES = {"cryptography", "model_signing", "OpenSSL"}  # imported when a signature is asked for
OF_TABLES = {"pyarrow", "scipy"}  # imported when features are converted, or written to a table
OF_FILES = {"signature.py": OF_SIGNATURES, "metrics.py": {"prometheus_client"}}
OF_FILES |= dict.fromkeys(
    ("features.py", "columns.py", "sources.py", "parts.py", "texts.py", "text_columns.py"), OF_TABLES
)
FURTHER = {"commands": {"tqdm"}, "hub": {"huggingface_hub"}, "hosts": {"tokenizers"}}  # in these folders
HEAVY = ("torch", "transformer_lens", "einops", "onnx", "onnx_ir", "onnxscript", "saeexport")

BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def imports_of(path):
    """Return the top-level names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_every_import_is_of_the_standard_library_or_allowed():
    refused = {}
    for path in sorted((ROOT / "runtime").rglob("*.py")):
        more = FURTHER.get(path.parent.name, set()) | OF_FILES.get(path.name, set())
        allowed = ALLOWED | more | set(sys.stdlib_module_names)
        if more := set(imports_of(path)) - allowed:
            refused[path] = more
    assert not refused


def test_it_works_where_pytorch_cannot_be_imported():
    code = f"""
import numpy, runtime
from runtime.commands.main import main
sae = runtime.SAESession({str(TINY)!r}, "cpu")
output, cache = sae.run_with_cache(numpy.ones((2, 6), "float32"))
assert list(cache) == list(sae.hook_names)
runtime.assert_parity({str(TINY)!r}, "cpu")
assert main(["verify", {str(TINY)!r}]) == 0
assert not {{*{HEAVY!r}, "huggingface_hub", "pyarrow", "scipy"}} & set(sys.modules), sys.modules.keys()
"""
    done = run(BLOCK + code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", HEAVY)
def test_the_block_blocks(package):
    done = run(f"{BLOCK}\nimport {package}")
    assert done.returncode == 1
    assert f"{package} is blocked" in done.stderr


def test_the_lint_rule_bans_pytorch(tmp_path):
    for package in HEAVY:
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", ROOT / "runtime" / "ruff.toml",
             "--stdin-filename", ROOT / "runtime" / "new.py", "--select", "TID251", "-"],
            input=f"import {package}\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "TID251" in done.stdout, (package, done.stdout, done.stderr)


def test_it_works_in_an_environment_with_its_own_dependencies_only():
    """The packages of `pip install .[cpu]` suffice; `make test` creates an environment with them."""
    python = ROOT / ".venv-runtime" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs .venv-runtime, which `make test` makes")
    code = f"import importlib.util as u; print([name for name in {HEAVY[:-1]!r} if u.find_spec(name)])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    done = subprocess.run(
        [python, "-m", "runtime", "verify", TINY, "--all"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.count(" ok")) == (0, 36), done.stderr


def test_without_pytorch_the_exporter_says_what_to_install():
    code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
import saeexport
"""
    done = run(code)
    assert done.returncode == 1
    assert 'pip install "saeexport[export]"' in done.stderr
