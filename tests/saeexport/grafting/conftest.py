"""Small hosts, and SAEs for their hooks."""

import functools

import numpy as np
import pytest

from saeexport import export
from saeexport.grafting.graft import graft
from tests.support.explaining import explaining_sae
from tests.support.tiny_hosts import D_MODEL, value_at


def export_at(folder, host, hook, seed=0, name=None, **options):
    """Export an SAE for a hook of a small host, on the activations there, and return its folder."""
    activations = host.run(host.feeds())[hook].reshape(-1, D_MODEL).astype(np.float32)
    center = np.median(activations, axis=0)
    sae = explaining_sae(D_MODEL, hook, explained=0.5, center=center, seed=seed, **options)
    path = folder / "artifacts" / (name or f"{hook}.{seed}")
    export(sae, path, activations=activations, overwrite=True)
    return path


def graft_in(folder, host, *hooks, out="out", **options):
    """Graft an SAE at each hook of a small host, at the values that the test knows."""
    path = host.write(folder / "host.onnx", external=True)
    options.setdefault("force", True)
    saes = {f"{hook}@{value_at(host, hook)}": export_at(folder, host, hook, seed) for seed, hook in enumerate(hooks)}
    return graft(path, saes, folder / out, **options)


@pytest.fixture
def sae_at(tmp_path):
    """Return a function that exports an SAE for a hook of a small host, see `export_at`."""
    return functools.partial(export_at, tmp_path)


@pytest.fixture
def graft_into(tmp_path):
    """Return a function that grafts SAEs into a small host, see `graft_in`."""
    return functools.partial(graft_in, tmp_path)
