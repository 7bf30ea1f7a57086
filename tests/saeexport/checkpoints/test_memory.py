"""SAEs of other libraries are converted from memory; `tests/peers` does it with the libraries themselves.

Here classes stand in for theirs, which have the same names, attributes and state dicts.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from runtime.errors import CheckpointError, ExportError
from saeexport import HookedSAE, HookedSAEConfig, convert, export, load, verify

D_IN, D_SAE, K = 8, 32, 4
X = torch.randn(16, D_IN, generator=torch.Generator().manual_seed(1))


def class_of(library, name, *bases, **members):
    """Return a class that says to be of a library's module."""
    return type(name, bases, {"__module__": library, **members})


def parameters(**shapes):
    draws = torch.Generator().manual_seed(2)
    return {name: nn.Parameter(torch.randn(shape, generator=draws) * 0.3) for name, shape in shapes.items()}


def filled(kind, named):
    module = kind()
    for name, parameter in named.items():
        module.register_parameter(name, parameter)
    return module


SAELENS_BASE = class_of("sae_lens.saes.sae", "SAE", nn.Module, process_state_dict_for_saving=lambda self, state: None)


def saelens_sae(architecture="standard", kind=None, **options):
    kind = kind or class_of(f"sae_lens.saes.{architecture}_sae", "AnSAE", SAELENS_BASE)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    sae = filled(kind, parameters(**shapes))
    config = {
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.1.hook_resid_pre", "model_name": "gpt2-small"},
        **options,
    }
    sae.cfg = SimpleNamespace(to_dict=lambda: copy.deepcopy(config))
    return sae


def test_a_standard_sae_of_saelens():
    sae = saelens_sae()
    converted = convert(sae)
    assert type(converted) is HookedSAE
    assert converted.cfg.hook_name == "blocks.1.hook_resid_pre"
    assert converted.cfg.model_name == "gpt2-small"
    expected = torch.relu((X - sae.b_dec) @ sae.W_enc + sae.b_enc)
    _, cache = converted.run_with_cache(X)
    assert_close(cache["hook_sae_acts_post"], expected)
    assert_close(cache["hook_sae_recons"], expected @ sae.W_dec + sae.b_dec)


def test_top_k_with_rescaled_features_has_other_preactivations():
    """SAELens' acts_pre is not multiplied by the norms of the decoder, that of a HookedSAE is."""
    sae = saelens_sae("topk", k=K, rescale_acts_by_decoder_norm=True)
    norms = sae.W_dec.norm(dim=-1)
    _, cache = convert(sae).run_with_cache(X)
    assert_close(cache["hook_sae_acts_pre"], ((X - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms)


def test_the_error_term_is_kept():
    sae = saelens_sae()
    sae.use_error_term = True
    assert convert(sae).cfg.use_error_term
    assert not convert(saelens_sae()).cfg.use_error_term


def test_arguments_are_those_of_load():
    sae = saelens_sae(normalize_activations="expected_average_only_in", new_option=3)
    with pytest.raises(CheckpointError, match="norm_scaling_factor"):
        convert(sae, ignore_config=["new_option"])
    with pytest.raises(CheckpointError, match="new_option"):
        convert(sae, already_folded=True)
    converted = convert(
        sae, norm_scaling_factor=0.5, ignore_config=["new_option"], hook_name="h", dtype="float16"
    )  # fmt: skip
    assert (converted.cfg.hook_name, converted.W_enc.dtype) == ("h", torch.float16)
    assert converted.provenance["checkpoint.norm_scaling_factor"] == "0.5"
    assert_close(converted.W_enc.float(), sae.W_enc * 0.5, rtol=1e-3, atol=1e-4)


def test_half_precision_is_widened_before_factors_are_folded(tmp_path):
    sae = saelens_sae("topk", k=K, rescale_acts_by_decoder_norm=True, dtype="bfloat16").to(torch.bfloat16)
    folded = sae.W_enc.double() * sae.W_dec.double().norm(dim=-1)
    for converted in (convert(sae, dtype="float32"), load(export(sae, tmp_path / "sae", dtype="float32"))):
        assert_close(converted.W_enc.double(), folded, rtol=1e-7, atol=1e-7)


def test_export_and_verify_convert(tmp_path):
    sae = saelens_sae("topk", k=K, rescale_acts_by_decoder_norm=True)
    artifact = export(sae, tmp_path / "sae")
    assert artifact.manifest.sae.architecture == "topk"
    verify(artifact, sae).raise_for_failures()
    verify(artifact, convert(sae)).raise_for_failures()
    with torch.no_grad():
        sae.W_enc[0, 0] += 1
    assert verify(artifact, sae).problems


def test_a_compiled_module_is_unwrapped():
    sae = saelens_sae()
    assert_close(convert(torch.compile(sae, backend="eager")).W_enc, sae.W_enc)


def test_sparsify():
    base = class_of("sparsify.sparse_coder", "SparseCoder", nn.Module)
    coder = filled(base, parameters(W_dec=(D_SAE, D_IN), b_dec=(D_IN,)))
    coder.encoder, coder.d_in = nn.Linear(D_IN, D_SAE), D_IN
    config = {"activation": "topk", "expansion_factor": 4, "num_latents": 0, "k": K, "transcode": False}
    coder.cfg = SimpleNamespace(to_dict=lambda: dict(config))
    converted = convert(coder)
    assert (converted.architecture, converted.cfg.k, converted.cfg.d_sae) == ("topk", K, D_SAE)
    assert_close(converted.W_enc, coder.encoder.weight.T)


@pytest.mark.parametrize("subtracts", [True, False])
def test_dictionary_learning(subtracts):
    base = class_of("dictionary_learning.dictionary", "Dictionary", nn.Module)
    kind = class_of("dictionary_learning.dictionary", "JumpReluAutoEncoder", base)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    dictionary = filled(kind, parameters(**shapes, threshold=(D_SAE,)))
    dictionary.threshold.data.abs_()
    dictionary.activation_dim, dictionary.dict_size, dictionary.apply_b_dec_to_input = D_IN, D_SAE, subtracts
    converted = convert(dictionary)
    assert (converted.architecture, converted.cfg.apply_b_dec_to_input) == ("jumprelu", subtracts)


def test_a_matryoshka_dictionary_with_groups_that_are_off_is_refused():
    base = class_of("dictionary_learning.dictionary", "Dictionary", nn.Module)
    kind = class_of("dictionary_learning.trainers.matryoshka_batch_top_k", "MatryoshkaBatchTopKSAE", base)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    dictionary = filled(kind, parameters(**shapes))
    buffers = {"k": torch.tensor(K), "threshold": torch.tensor(0.5), "group_sizes": torch.tensor([8, 8, 16])}
    for name, value in buffers.items():
        dictionary.register_buffer(name, value)
    dictionary.activation_dim, dictionary.dict_size, dictionary.active_groups = D_IN, D_SAE, 3
    assert convert(dictionary).architecture == "jumprelu"
    dictionary.active_groups = 2
    with pytest.raises(CheckpointError, match="2 of the 3 groups of the MatryoshkaBatchTopKSAE are active; .* to 3"):
        convert(dictionary)


def test_sentence_transformers():
    module = "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder"
    kind = class_of(
        module,
        "SparseAutoEncoder",
        nn.Module,
        get_config_dict=lambda self: {"input_dim": D_IN, "hidden_dim": D_SAE, "k": K, "k_aux": 8, "normalize": False},
    )
    csr = filled(kind, parameters(pre_bias=(D_IN,), latent_bias=(D_SAE,)))
    csr.encoder = nn.Linear(D_IN, D_SAE, bias=False)
    converted = convert(csr)
    assert_close(converted.W_enc, csr.encoder.weight.T)
    assert_close(converted.W_dec, csr.encoder.weight)


def test_a_class_that_inherits_from_a_library_is_refused(tmp_path):
    kind = class_of("my_project.models", "MySAE", SAELENS_BASE)
    for attempt in (convert, lambda sae: export(sae, tmp_path / "sae")):
        with pytest.raises(CheckpointError, match=r"my_project\.models\.MySAE inherits from sae_lens\.saes\.sae\.SAE"):
            attempt(saelens_sae(kind=kind))
    assert not (tmp_path / "sae").exists()


def test_other_objects_are_refused():
    for other in (nn.Linear(2, 2), HookedSAE(HookedSAEConfig(d_in=4, d_sae=8, hook_name="h")), None):
        with pytest.raises(CheckpointError, match="cannot be converted"):
            convert(other)


def test_hook_functions_are_refused():
    sae = saelens_sae()
    sae.register_forward_hook(lambda *_: None)
    with pytest.raises(ExportError, match="Hook functions are attached"):
        convert(sae)
