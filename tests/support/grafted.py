"""A small grafted decoder, the same model with the same SAEs in NumPy, and a tokenizer for it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from runtime.hosts.manifest import MANIFEST
from saeexport import export, load
from saeexport.grafting.graft import graft
from tests.support.samples import make_sae, normal
from tests.support.tiny_hosts import D_MODEL, TinyHost, value_at

POST, PRE, Z = "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"
"""The first two are one value of the host, so that the second SAE reads what the first gives."""

HOOKS = [POST, PRE, Z]

ATOL = 2e-5
"""Values of the small host have sizes up to 10, and float32 rounds each of some hundred operators to 5e-7."""


@dataclass
class Grafted:
    """A grafted host and its model.

    Attributes:
        path: Folder of the grafted host.
        model: The host.
        saes: The PyTorch SAEs by hook.
    """

    path: Path
    model: TinyHost
    saes: dict = field(default_factory=dict)

    def run(self, feeds, attached=(), use_error_term=False, edits=None, replace=None):
        """Return the logits and the activations of the model with SAEs attached, in float64, and their features.

        Args:
            feeds: Inputs.
            attached: Hooks.
            use_error_term: Whether their error terms are on.
            edits: Functions of the features' activations, by hook.
            replace: Functions of the activation at a hook without an attached SAE, by hook.
        """
        features = {}

        def through(hook):
            def call(x):
                sae = self.saes[hook].double()
                flat = torch.from_numpy(x.reshape(-1, D_MODEL))
                with torch.no_grad():
                    acts = sae.encode(flat)
                    clean = sae.decode(acts)
                    edited = (edits or {}).get(hook, lambda same: same)(acts.clone())
                    y = sae.decode(edited) + ((flat - clean) if use_error_term else 0)
                features[hook] = edited.numpy().reshape(*feeds["input_ids"].shape, -1)
                return y.numpy().reshape(x.shape)

            return call

        functions = {hook: through(hook) for hook in attached} | (replace or {})
        if POST in functions and PRE in functions:  # one value: the second reads what the first gives
            first, second = functions.pop(POST), functions[PRE]
            functions[PRE] = lambda x: second(first(x))
        elif POST in functions:
            functions[PRE] = functions.pop(POST)
        return self.model.run(feeds, functions), features


def small_saes(folder, hooks, **config):
    """Export a random SAE for each hook, and return their folders and themselves."""
    paths, saes = {}, {}
    for hook in hooks:
        i = HOOKS.index(hook)
        sae = make_sae(d_in=D_MODEL, d_sae=24, hook_name=hook, seed=i, **config)
        export(sae, folder / hook, activations=torch.from_numpy(normal(64, D_MODEL, seed=i)))
        paths[hook], saes[hook] = folder / hook, load(folder / hook).cpu()
    return paths, saes


def graft_tiny(folder, hooks=(POST, PRE, Z), cache=True, tokenizer=False, **options):
    """Graft small SAEs into a small decoder.

    Args:
        folder: Folder for the host, the SAEs and the grafted host.
        hooks: Hooks.
        cache: Whether the decoder has a cache.
        tokenizer: Whether there is a tokenizer beside the host.
        options: Further arguments of `graft`.
    """
    model = TinyHost(cache=cache)
    host = model.write(folder / "tiny.onnx")
    if tokenizer:
        (folder / "tokenizer.json").write_text(json.dumps(word_tokenizer()))
    paths, saes = small_saes(folder, hooks)
    places = {f"{hook}@{value_at(model, hook)}": path for hook, path in paths.items()}
    graft(host, places, folder / "grafted", force=True, **options)
    return Grafted(folder / "grafted", model, saes)


def word_tokenizer():
    """Return the content of a tokenizer.json whose tokens are the words "w1" to "w39"; 0 is the padding."""
    vocabulary = {"[PAD]": 0, **{f"w{i}": i for i in range(1, 40)}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w1"},
    }  # fmt: skip


def rewrite_manifest(folder, change):
    """Change the content of `host.json` with a function of it, and give it the checksums of the files as they are."""
    from runtime.artifact.checksum import with_checksum
    from runtime.artifact.files import hash_file

    content = json.loads((folder / MANIFEST).read_text())
    del content["checksum"]
    change(content)
    for name in content["files"]:
        record = hash_file(folder / name)
        content["files"][name] = {"sha256": record.sha256, "bytes": record.bytes}
    (folder / MANIFEST).write_text(with_checksum(content))


def assert_near(actual, expected, mask):
    """Compare the tokens that are not masked."""
    np.testing.assert_allclose(np.asarray(actual)[mask], np.asarray(expected)[mask], rtol=0, atol=ATOL)
