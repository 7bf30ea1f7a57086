"""Small hosts, and SAEs for their hooks."""

import numpy as np
import pytest

from saeexport import export
from saeexport.grafting.graft import graft
from tests.support.explaining import explaining_sae
from tests.support.tiny_hosts import D_MODEL, value_at


@pytest.fixture
def sae_at(tmp_path):
    """Return a function that exports an SAE for a hook of a small host, on the activations there."""

    def make(host, hook, seed=0, name=None, **options):
        activations = host.run(host.feeds())[hook].reshape(-1, D_MODEL).astype(np.float32)
        center = np.median(activations, axis=0)
        sae = explaining_sae(D_MODEL, hook, explained=0.5, center=center, seed=seed, **options)
        folder = tmp_path / "artifacts" / (name or f"{hook}.{seed}")
        export(sae, folder, activations=activations, overwrite=True)
        return folder

    return make


@pytest.fixture
def graft_into(tmp_path, sae_at):
    """Return a function that grafts an SAE at each hook of a small host, at the values that the test knows."""

    def make(host, *hooks, out="out", **options):
        path = host.write(tmp_path / "host.onnx", external=True)
        options.setdefault("force", True)
        saes = {f"{hook}@{value_at(host, hook)}": sae_at(host, hook, seed) for seed, hook in enumerate(hooks)}
        return graft(path, saes, tmp_path / out, **options)

    return make
