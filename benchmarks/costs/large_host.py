"""Grafts an SAE into a large decoder with random weights: `python -m benchmarks.costs.large_host --layers 9`.

The decoder is a Llama of transformers, which is exported with an SAE in it, proved against PyTorch, and verified
without PyTorch, each in a process of its own. Prints the seconds and the peak of resident memory of each. A model of
more than 2 GB does not fit into one protobuf message, so that nothing on the way may put its weights into one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.shared.machine import describe_machine
from runtime.tables import format_table

WIDTH, MLP, HEADS, VOCABULARY = 2048, 8192, 16, 32000
HOOK = "blocks.1.hook_resid_post"

MAKE = f"""
import sys
from pathlib import Path
import numpy as np, torch, transformers
from saeexport import export
from saeexport.grafting.reference import capture, load_model
from tests.support.explaining import explaining_sae

folder, layers = Path(sys.argv[1]), int(sys.argv[2])
config = transformers.LlamaConfig(
    num_hidden_layers=layers, hidden_size={WIDTH}, intermediate_size={MLP}, num_attention_heads={HEADS},
    num_key_value_heads={HEADS}, vocab_size={VOCABULARY}, max_position_embeddings=512,
)
torch.manual_seed(0)
transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
ids = np.random.default_rng(0).integers(3, {VOCABULARY}, (4, 32))
model = load_model(folder / "model")
acts = capture(model, {{"input_ids": ids, "attention_mask": np.ones_like(ids)}}, ["{HOOK}"])["{HOOK}"]
acts = acts.reshape(-1, {WIDTH})
export(explaining_sae({WIDTH}, "{HOOK}", center=np.median(acts, axis=0)), folder / "sae", activations=acts)
"""

USE = """
import sys
import numpy as np
from runtime import Clamp, HostSession

with HostSession(sys.argv[1], "cpu") as host:
    host.generate([5, 11, 3], 8, edits={host.hook_names[0]: {3: Clamp(5.0)}}, use_error_term=False)
"""


def main() -> None:
    """Make, graft, verify, use and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=9, help="layers of 268 MB each (default: 9)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python, out = sys.executable, str(folder / "host")
        steps = {
            "make the model and an SAE": [python, "-c", MAKE, temporary, str(options.layers)],
            "saeexport graft hf:": [
                python, "-m", "saeexport", "graft", f"hf:{folder / 'model'}", "--sae", str(folder / "sae"), out,
            ],
            "python -m runtime verify": [python, "-m", "runtime", "verify", out, "--device", "cpu"],
            "generate 8 tokens": [python, "-c", USE, out],
        }  # fmt: skip
        rows = [(what, *run(command)) for what, command in steps.items()]
        weights = (folder / "host" / "host.data").stat().st_size / 1e9
    print(format_table(rows, header=("step", "seconds", "peak of resident memory")))
    print(f"{weights:.2f} GB of weights; {describe_machine(['torch', 'transformers', 'onnxruntime', 'onnx'])}")


def run(command: list[str]) -> tuple[str, str]:
    """Run a command and return its seconds and the peak of its resident memory.

    Raises:
        SystemExit: It failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command[:6])} failed with exit status {code}.")
    return f"{time.perf_counter() - start:.0f}", f"{usage.ru_maxrss * 1024 / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
