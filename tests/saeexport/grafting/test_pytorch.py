"""A host that is exported from a model of transformers is proved against this model, with the SAEs in it."""

import numpy as np
import pytest

from runtime import Clamp, HostSession
from runtime.errors import GraftError
from saeexport import export, graft
from saeexport.grafting.huggingface import export_host
from tests.support.explaining import explaining_sae
from tests.support.language_models import WIDTH, save

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")


@pytest.fixture(scope="module")
def model_and_saes(tmp_path_factory):
    """Return the folder of a small Llama, and two SAEs for it."""
    folder = tmp_path_factory.mktemp("llama")
    save("llama", folder / "model")
    saes = []
    for seed, hook in enumerate(HOOKS):
        export(explaining_sae(WIDTH, hook, explained=0.7, seed=seed), folder / hook)
        saes.append(folder / hook)
    return folder / "model", saes


@pytest.fixture(scope="module")
def grafted(model_and_saes):
    model, saes = model_and_saes
    return graft(f"hf:{model}", saes, model.parent / "grafted")


def test_it_is_proved_against_pytorch(grafted):
    parity = grafted.manifest.parity
    assert parity.reference == "pytorch"
    assert [sae.evidence.method for sae in grafted.manifest.saes] == ["reference", "reference"]
    for records in (parity.tap, parity.detached, parity.splice, parity.edited, parity.decoded):
        assert 0 <= records["logits"].error <= records["logits"].budget < 1e-4
    assert 0 < parity.splice["logits"].own < 1e-5  # PyTorch and ONNX Runtime round differently
    assert parity.moved["logits"] > 100 * parity.splice["logits"].budget
    assert grafted.manifest.host.kind == "decoder"
    assert grafted.manifest.host.cache


def test_it_generates_with_a_clamped_feature(grafted):
    with HostSession(grafted.folder, "cpu") as host:
        plain = host.generate(np.array([3, 7, 11]), 8)
        edited = host.generate(np.array([3, 7, 11]), 8, edits={HOOKS[0]: {2: Clamp(30.0)}})
    assert not np.array_equal(plain, edited)


def test_another_model_is_refused(grafted, model_and_saes, tmp_path):
    """It has the same weights and shapes, and computes something else."""
    model, saes = model_and_saes
    save("llama", tmp_path / "other", rms_norm_eps=1.0)
    path = export_host(model, HOOKS, tmp_path / "host")
    with pytest.raises(GraftError, match="no value of the host .* is the tensor at the hook"):
        graft(path, saes, tmp_path / "out", hf=tmp_path / "other")
    assert not (tmp_path / "out").exists()
