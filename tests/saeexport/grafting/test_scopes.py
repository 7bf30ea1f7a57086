"""The scopes that exporters write propose the value that the numbers confirm."""

import pytest

from saeexport.grafting.candidates import Reference, rank
from saeexport.grafting.given import prepare
from saeexport.grafting.host import load_host
from saeexport.grafting.scopes import propose
from tests.hosts.exporters import dynamo, torchscript
from tests.support.language_models import WIDTH, saved

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
HOOKS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory)


@pytest.mark.parametrize(
    ("name", "export"), [("bert", torchscript(17)), ("bert", dynamo()), ("gpt2", dynamo()), ("llama", dynamo())]
)
def test_the_value_at_a_hook_is_proposed(folder, tmp_path, name, export):
    host = load_host(export(folder(name), tmp_path))
    hooks = [f"blocks.1.{hook}" for hook in HOOKS]
    if name == "bert":
        hooks.append("blocks.1.hook_normalized_resid_post")
    given = prepare(host, hooks, folder(name), None).reference
    for hook in hooks:
        ranked = rank(host, hook, NO_SAE, Reference(given.feeds, {hook: given.activations[hook]}))
        same = {candidate.value for candidate in ranked if candidate.error < 1e-5}
        proposed = propose(host.graph, hook, WIDTH)
        assert same & proposed, (hook, same, proposed)
        assert len(proposed) <= 5 < len(ranked) / 5


def test_nothing_is_proposed_without_scopes_or_for_a_name_that_is_no_hook(tmp_path):
    from tests.support.tiny_hosts import D_MODEL, TinyHost

    host = load_host(TinyHost().write(tmp_path / "host.onnx"))
    assert propose(host.graph, "blocks.1.hook_resid_post", D_MODEL) == set()
    assert propose(host.graph, "layers.1", D_MODEL) == set()


class NO_SAE:  # noqa: N801
    """Stands for the artifact of a transcoder, of which nothing is measured."""

    class manifest:  # noqa: N801
        class sae:  # noqa: N801
            d_in, d_sae, d_out, dtype = WIDTH, 2 * WIDTH, 1, "float32"
