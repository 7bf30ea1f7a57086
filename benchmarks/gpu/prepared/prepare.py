"""Writes the folder that is measured, which `artifacts.py` describes. Needs what an export needs, and no GPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.prepared.artifacts import (
    PARAMETERS,
    artifact_folder,
    draw_inputs,
    draw_weights,
    leave_weights_out,
)
from benchmarks.gpu.prepared.candidate_graphs import write_candidates
from runtime.arrays.dtypes import FLOAT32
from saeexport import HookedSAE, export

PROOF_TOKENS = 16  # the exporter proves the artifact on these


def prepare(folder: Path, shapes: Sequence[tuple[int, int]], dtypes: Sequence[str], with_weights: bool = True) -> None:
    """Export the missing artifacts: each size in float32, which all are compared with, and in `dtypes`."""
    wanted = [(shape, dtype) for shape in shapes for dtype in dict.fromkeys([FLOAT32, *dtypes])]
    missing = [case for case in wanted if not artifact_folder(folder, *case).exists()]
    sae: HookedSAE | None = None
    for shape, dtype in tqdm(missing, desc="preparing", unit="artifact", disable=None):
        if sae is None or (sae.cfg.d_in, sae.cfg.d_sae) != shape:
            sae = make_sae(*shape)
        weights = {name: getattr(sae, name).detach() for name in PARAMETERS}
        (activations,) = draw_inputs(weights, PROOF_TOKENS, 1)
        half: dict[str, Any] = {} if dtype == FLOAT32 else {"dtype": dtype}
        artifact = export(sae, artifact_folder(folder, shape, dtype), activations=activations, **half).path
        write_candidates(artifact)
        if not with_weights:
            leave_weights_out(artifact)


def make_sae(d_in: int, d_sae: int) -> HookedSAE:
    """Return the SAE of a size, with the error term on."""
    config = {"d_in": d_in, "d_sae": d_sae, "hook_name": "h", "use_error_term": True, "device": "meta"}
    sae = HookedSAE(config)
    state = {name: torch.from_numpy(array) for name, array in draw_weights(d_in, d_sae).items()}
    sae.load_state_dict(state, assign=True)
    return sae
