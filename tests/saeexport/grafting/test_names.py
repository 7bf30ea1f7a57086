"""Every row of the tables in `names`: against TransformerLens where it has the model, else against the equations."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

from runtime.errors import GraftError
from saeexport.grafting import names, reference
from tests.support.language_models import DECODERS, ENCODERS, HEADS, LAYERS, VOCABULARY, build, saved

HOOKS = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z",
    "mlp.hook_post", "mlp.hook_in", "hook_in", "hook_out", "attn.o.hook_in", "mlp.hook_out", "mlp.out.hook_in",
)  # fmt: skip
"""Those that decoders have; of the last five, which are aliases, TransformerLens has its own tensors."""

ABSENT = {("gpt_neox", "hook_resid_mid")}
INTERNAL = {"gemma2": {"mlp.hook_out"}}
"""TransformerLens' `mlp.hook_out` of Gemma 2 is before the norm, `hook_mlp_out` behind it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory)


def feeds(batch=2, positions=9):
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (batch, positions))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def assert_same(got, expected, bound=2e-6):
    assert got.size == expected.size
    error = np.abs(got.reshape(expected.shape) - expected).max() / np.abs(expected).max()
    assert error <= bound


@pytest.fixture(scope="module")
def lens(folder):
    """Return (the Hugging Face model, TransformerLens' cache and model) of a decoder."""
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    made = {}

    def of(name):
        if name not in made:
            path = folder(name)
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            bridge = TransformerBridge.boot_transformers(
                str(path), hf_model=reference.load_model(path), tokenizer=tokenizer, device="cpu"
            )
            with torch.no_grad():
                _, cache = bridge.run_with_cache(torch.from_numpy(feeds()["input_ids"]), prepend_bos=False)
            made[name] = reference.load_model(path), cache, bridge
        return made[name]

    return of


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DECODERS)
def test_hooks_of_a_decoder_are_those_of_transformer_lens(lens, name):
    model, cache, _ = lens(name)
    hooks = [f"blocks.1.{hook}" for hook in HOOKS if (name, hook) not in ABSENT and hook not in INTERNAL.get(name, ())]
    captured = reference.capture(model, feeds(), hooks)
    for hook in hooks:
        assert_same(captured[hook], cache[hook].numpy())
    assert captured["blocks.1.attn.hook_z"].shape[2] == HEADS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DECODERS)
def test_a_splice_reaches_what_a_hook_of_transformer_lens_reaches(lens, name):
    model, _, bridge = lens(name)
    for hook in ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out"):

        def replace(tensor, hook=None):
            return tensor * 0.5 + 1

        with torch.no_grad():
            expected = bridge.run_with_hooks(
                torch.from_numpy(feeds()["input_ids"]), prepend_bos=False, fwd_hooks=[(f"blocks.1.{hook}", replace)]
            ).numpy()
        spliced = reference.run_spliced(model, feeds(), {f"blocks.1.{hook}": Affine()})["logits"]
        assert_same(spliced, expected)


class Affine(nn.Module):
    """Stands for an SAE: `x * 0.5 + 1`."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.cfg = type("cfg", (), {"use_error_term": False})

    def forward(self, x):
        return x * self.factor + 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_a_splice_between_attention_and_mlp_reaches_the_skip_connection(folder, name):
    model = reference.load_model(folder(name))
    hooks = [f"blocks.{LAYERS - 1}.hook_resid_{place}" for place in ("mid", "post")]
    clean = reference.capture(model, feeds(), hooks)
    seen = {}
    place = names.find_place(model, hooks[1])
    with reference.hooked(model, place, reference.keep_in(seen, place)):
        reference.run_spliced(model, feeds(), {hooks[0]: Affine()})
    mlp = model.get_submodule(names.find_place(model, f"blocks.{LAYERS - 1}.mlp.hook_in").module)
    norm = model.get_submodule(names.find_place(model, hooks[0]).module)
    replaced = torch.from_numpy(clean[hooks[0]]) * 0.5 + 1
    with torch.no_grad():
        added = mlp(norm(replaced))
        if name == "gemma2":
            added = model.model.layers[LAYERS - 1].post_feedforward_layernorm(added)
    assert_same(seen[place].numpy(), (replaced + added).numpy())


PARTS = {
    "bert": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
    "mpnet": ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm",
              "intermediate.dense", "output.dense", "output.LayerNorm"),
    "distilbert": ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
                   "ffn.lin1", "ffn.lin2", "output_layer_norm"),
}  # fmt: skip
PARTS["roberta"] = PARTS["bert"]


def post_norm_block(weights, parts, x, bias):
    """Return the hooks of a block that normalises after it adds, computed in float64 from its weights."""

    def linear(part, x):
        return x @ weights[f"{part}.weight"].T + weights[f"{part}.bias"]

    def norm(part, x):
        scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt()
        return scaled * weights[f"{part}.weight"] + weights[f"{part}.bias"]

    def heads(x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    query, key, value, out, norm_1, up, down, norm_2 = parts
    q, k, v = heads(linear(query, x)), heads(linear(key, x)), heads(linear(value, x))
    pattern = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
    hooks = {"hook_resid_pre": x, "attn.hook_z": (pattern @ v).transpose(1, 2)}
    hooks["hook_attn_out"] = linear(out, hooks["attn.hook_z"].flatten(-2))
    hooks["hook_resid_mid"] = x + hooks["hook_attn_out"]
    hooks["mlp.hook_in"] = norm(norm_1, hooks["hook_resid_mid"])
    hooks["mlp.hook_post"] = gelu(linear(up, hooks["mlp.hook_in"]))
    hooks["hook_mlp_out"] = linear(down, hooks["mlp.hook_post"])
    hooks["hook_resid_post"] = hooks["mlp.hook_in"] + hooks["hook_mlp_out"]
    hooks["hook_normalized_resid_post"] = norm(norm_2, hooks["hook_resid_post"])
    return hooks


@pytest.mark.parametrize("name", ENCODERS)
def test_hooks_of_an_encoder_are_those_of_the_equations(folder, name):
    model = reference.load_model(folder(name))
    hooks = [f"blocks.1.{hook}" for hook in post_norm_block_hooks()]
    captured = reference.capture(model, feeds(), [*hooks, "blocks.0.hook_normalized_resid_post"])
    before = torch.from_numpy(captured["blocks.0.hook_normalized_resid_post"]).double()
    bias = model.encoder.compute_position_bias(before.float()).double() if name == "mpnet" else 0.0
    _, block = names.find_block(model, 1, hooks[0])
    weights = {key: value.double() for key, value in block.state_dict().items()}
    with torch.no_grad():
        expected = post_norm_block(weights, PARTS[name], before, bias)
    assert set(expected) == set(post_norm_block_hooks())
    for hook, tensor in expected.items():
        assert_same(captured[f"blocks.1.{hook}"], tensor.numpy())


def post_norm_block_hooks():
    return (*HOOKS[:8], "hook_normalized_resid_post")


def test_gains_and_biases_of_the_models_separate_the_tensors_around_them():
    for path, parameter in build("llama").named_parameters():
        if "norm" in path:
            assert (parameter - 1).abs().max() > 0.1, path


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("blocks.1.ln2.hook_normalized", "before the gain"),
        ("blocks.1.attn.hook_pattern", "attention is one operator"),
        ("blocks.1.hook_mlp_in", "name hook_resid_mid"),
        ("blocks.1.hook_q_input", "copy for each head"),
        ("blocks.1.hook_resid", "not a known hook"),
        ("hook_embed", "not a hook in a block"),
        ("", "not a hook in a block"),
        ("blocks.3.hook_resid_post", "3 blocks, blocks.0 to blocks.2"),
        ("blocks.1.hook_normalized_resid_post", "only models that normalise after they add"),
    ],
)
def test_a_hook_without_a_tensor_is_refused_with_the_reason(hook, reason):
    with pytest.raises(GraftError, match=reason):
        names.find_place(build("gpt2"), hook)


def test_parallel_blocks_have_no_residual_stream_between_attention_and_mlp():
    with pytest.raises(GraftError, match="run in parallel"):
        names.find_place(build("gpt_neox"), "blocks.1.hook_resid_mid")


def test_a_block_of_unknown_structure_is_refused():
    model = build("llama")
    del model.model.layers[1].post_attention_layernorm
    with pytest.raises(GraftError, match="structure of LlamaDecoderLayer is unknown. Known are the blocks of BERT"):
        names.find_place(model, "blocks.1.hook_resid_post")


def test_blocks_that_cannot_be_told_are_refused():
    model = build("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(GraftError, match="lists of 7 modules, as many as the config has layers: none"):
        names.find_place(model, "blocks.1.hook_resid_post")


def test_a_block_that_adds_with_a_factor_is_refused(folder):
    """Granite and others have Llama's submodules, but scale what they add."""
    model = reference.load_model(folder("llama"))
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 0.22)
    with pytest.raises(GraftError, match="do not add up"):
        reference.capture(model, feeds(), ["blocks.1.hook_resid_post"])
    assert reference.capture(model, feeds(), ["blocks.0.hook_resid_post"])
