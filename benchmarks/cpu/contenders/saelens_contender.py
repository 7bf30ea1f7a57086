"""SAELens' own SAE, which needs a release of TransformerLens that this project's environment does not have."""

from pathlib import Path

import numpy as np
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.cpu.contenders.cases import ARTIFACT, WATCHED
from benchmarks.cpu.contenders.names import Call
from benchmarks.cpu.contenders.uses import ALL_HOOKS, FEATURES, FEW
from runtime import read_artifact
from runtime.arrays.tensor import Array
from runtime.artifact.names import HOOK_ACTS_POST, INDICES, VALUES


class SAELens:
    """`StandardSAE` of SAELens as its user calls it: `run_with_cache` for all hooks, and else `encode`."""

    def __init__(self, folder: Path, use: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.use = use
        cfg = read_artifact(folder / ARTIFACT).manifest.sae
        self.sae = StandardSAE(StandardSAEConfig(d_in=cfg.d_in, d_sae=cfg.d_sae), use_error_term=True)
        weights = load_file(folder / ARTIFACT / "weights.safetensors")
        self.sae.load_state_dict({name: tensor.clone() for name, tensor in weights.items()})
        self.ids = torch.from_numpy(np.load(folder / WATCHED))

    def bind(self, x: Array) -> Call:
        """Return the call for an input."""
        tensor = torch.from_numpy(x)
        return lambda: self._run(tensor)

    def compute(self, x: Array) -> dict[str, Array]:
        """Return the outputs for an input."""
        return {name: tensor.numpy() for name, tensor in self._run(torch.from_numpy(x)).items()}

    @torch.inference_mode()
    def _run(self, x: Tensor) -> dict[str, Tensor]:
        if self.use == ALL_HOOKS:
            return dict(self.sae.run_with_cache(x)[1])
        acts = self.sae.encode(x)
        if self.use == FEATURES:
            values, indices = acts.topk(FEW)
            return {INDICES: indices, VALUES: values}
        return {HOOK_ACTS_POST: acts[..., self.ids]}
