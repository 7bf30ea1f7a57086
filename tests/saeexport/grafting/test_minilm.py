"""A real SAE in the real encoder that it was trained on, exported by both of PyTorch's exporters."""

import warnings

import pytest
import torch

import saeexport
from runtime.artifact.folder import read_artifact
from runtime.errors import GraftError
from saeexport.grafting.candidates import Reference
from saeexport.grafting.given import prepare
from saeexport.grafting.host import load_host
from saeexport.grafting.locate import find
from tests.hosts.exporters import dynamo, torchscript

ARTIFACT = "models/minilm-layer3"
HOOK, NEIGHBOUR = "blocks.2.hook_normalized_resid_post", "blocks.1.hook_normalized_resid_post"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def folder():
    from docs.generate import ROOT, in_path

    with in_path(ROOT / "models" / "minilm"):
        from encoder import model_folder
    return model_folder()


@pytest.fixture(scope="module", params=["dynamo", "opset 14", "opset 17"])
def host(request, folder, tmp_path_factory):
    export = dynamo() if request.param == "dynamo" else torchscript(int(request.param.split()[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_host(export(folder, tmp_path_factory.mktemp("host")))


@pytest.fixture(scope="module")
def given(host, folder):
    return prepare(host, [HOOK, NEIGHBOUR], folder, None).reference


@pytest.fixture(scope="module")
def nameless(tmp_path_factory):
    """The SAE as an artifact that does not say where it was trained."""
    sae = saeexport.load(ARTIFACT)
    sae.cfg.hook_name = ""
    activations = torch.randn(64, 384, generator=torch.Generator().manual_seed(0)) + sae.b_dec.detach()
    return saeexport.export(sae, tmp_path_factory.mktemp("nameless") / "sae", activations)


def test_the_activation_and_the_sae_identify_the_same_value(host, given):
    by_numbers = find(host, HOOK, read_artifact(ARTIFACT), given)
    by_variance = find(host, HOOK, read_artifact(ARTIFACT), Reference(given.feeds))
    assert by_numbers.value == by_variance.value
    assert by_numbers.evidence.method == "reference"
    assert by_numbers.evidence.error < 2e-6 < 0.05 < by_numbers.evidence.runner_up_error
    assert by_variance.evidence.method == "variance_explained"
    assert by_variance.evidence.error is None
    assert 0.8 < by_variance.evidence.variance_explained < 0.9


def test_an_sae_of_the_next_layer_is_refused_by_its_numbers(host, given, nameless):
    with pytest.raises(GraftError, match=r"explains 7\d\.\d%, but it explains 8\d\.\d% of .*: it was trained there"):
        find(host, NEIGHBOUR, nameless, given)
    with pytest.raises(GraftError, match=r"explains most of .* \(84%\), but the names in the graph propose"):
        find(host, NEIGHBOUR, nameless, Reference(given.feeds))
    assert find(host, HOOK, nameless, given).evidence.error < 2e-6
