"""Converts an SAE that another library holds in memory, by the reader of that library's files.

An object is taken apart into the config and the state dict that its library would save, and `from_parts` of the format
does the rest: files and objects have the same meaning and the same refusals. The libraries are recognised by the module
of the class and are not imported.
"""

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from runtime.errors import CheckpointError

from ..original.dtypes import DTypeLike
from ..original.exportable import check_functions
from ..original.hooked_sae import HookedSAE
from .files import as_dense
from .formats import dictionary_learning, saelens, sentence_transformers, sparsify
from .registry import finish, request_of
from .request import Request, Source

Parts = tuple[dict[str, Any], dict[str, Tensor]]


def convert(
    sae: Any,
    *,
    hook_name: str | None = None,
    dtype: DTypeLike | None = None,
    norm_scaling_factor: float | None = None,
    already_folded: bool = False,
    normalize_activations: str | None = None,
    ignore_config: Iterable[str] = (),
) -> HookedSAE:
    """Return the HookedSAE that computes what an SAE of another library computes.

    SAELens' SAEs and transcoders, sparsify's `SparseCoder`, the dictionaries of dictionary_learning and
    sentence-transformers' `SparseAutoEncoder` can be converted. SAEs in training compute what their libraries save for
    inference: those with batch-top-k compare with their threshold. The HookedSAE is on CUDA if CUDA is available,
    otherwise on the CPU; parameters that are on this device and do not change are shared with `sae`.

    Args:
        sae: SAE of one of these libraries, without hook functions. A compiled module (`torch.compile`) is unwrapped.
        hook_name: TransformerLens name of the hook that the activations come from. None keeps that of `sae`, which is
            empty in libraries that do not store one.
        dtype: Dtype to convert the parameters to: a name ("float16"), a `torch.dtype` or a numpy dtype. None keeps the
            dtype of `sae`.
        norm_scaling_factor: Factor that the inputs are multiplied by before encoding; see `load`.
        already_folded: Whether the weights already include the factor; see `load`.
        normalize_activations: Normalisation of the input, instead of the one in the config of `sae`.
        ignore_config: Keys of the config to ignore although their effect is unknown.

    Raises:
        CheckpointError: The class is not one of these libraries', or an option of `sae` cannot be expressed; the
            message names it.
        ExportError: Hook functions are attached to `sae`.
        InputError: `dtype` is not a dtype that weights may have.
    """
    request = request_of(
        dtype=dtype,
        norm_scaling_factor=norm_scaling_factor,
        already_folded=already_folded,
        normalize_activations=normalize_activations,
        ignore_config=ignore_config,
    )
    converted = _convert(_uncompiled(sae), request)
    if hook_name is not None:
        converted.cfg.hook_name = hook_name
    return converted


def _uncompiled(sae: Any) -> Any:
    """Return the module that `torch.compile` wrapped, and every other object as it is."""
    return getattr(sae, "_orig_mod", sae)


def _convert(sae: Any, request: Request) -> HookedSAE:
    """Return an SAE of another library as a HookedSAE; the hook has the name that `sae` gives it."""
    library = library_of(sae)
    if library is None:
        raise CheckpointError(
            f"A {_class_name(sae)} cannot be converted. What can be converted: "
            f"{'; '.join(f'{known.classes} of {package}' for package, known in LIBRARIES.items())}. A class of your "
            "own needs the six hooks of a HookedSAE, and is exported as it is."
        )
    check_functions(sae)
    config, tensors = library.take_apart(sae)
    name = f"the {type(sae).__name__} in memory"
    source = Source(f"The config of {name}", name)
    converted: HookedSAE = library.form.from_parts(config, as_dense(tensors, name), source, request)
    converted.cfg.use_error_term = bool(getattr(sae, "use_error_term", False))  # an attribute that no file stores
    return finish(converted, f"{name}, which is read as {library.form.TITLE},", request)


def convert_if_needed(sae: Any, dtype: DTypeLike | None) -> Any:
    """Return an SAE of another library as a HookedSAE, and every other object as it is, unwrapped if it is compiled.

    Without this, SAELens' classes would pass for custom classes, because their hooks have the same names; but one of
    them, `hook_sae_acts_pre`, can mean something else.

    Args:
        sae: Any object.
        dtype: Dtype that the export will convert it to. An SAE in another dtype is returned in float32, so that the
            export rounds once, and measures what that loses.

    Raises:
        CheckpointError, ExportError, InputError: As for `convert`.
    """
    sae = _uncompiled(sae)
    if library_of(sae) is None:
        return sae
    return _convert(sae, request_of(export_dtype=dtype))


class Library(NamedTuple):
    """A library whose SAEs can be converted.

    Attributes:
        base: Class that all of its SAEs inherit from, as "module.name".
        classes: What can be converted, for people.
        form: Module of the format of its files.
        take_apart: Function that returns the config and the state dict that the library would save.
    """

    base: str
    classes: str
    form: ModuleType
    take_apart: Callable[[Any], Parts]


def library_of(sae: Any) -> Library | None:
    """Return the library that an object's class belongs to, or None.

    Raises:
        CheckpointError: The class inherits from a class of a library and is not the library's own, so that it may
            compute something else.
    """
    ancestors = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(sae).__mro__]
    for package, library in LIBRARIES.items():
        if library.base in ancestors:
            if not type(sae).__module__.startswith(f"{package}."):
                raise CheckpointError(
                    f"{_class_name(sae)} inherits from {library.base}; what it changes is not known, so only the "
                    f"classes of {package} itself can be converted. Copy its weights into one of them, or write it "
                    "as a HookedRootModule with the six hooks of a HookedSAE."
                )
            return library
    return None


def _saelens(sae: Any) -> Parts:
    """Source: SAELens 6.54, `SAE.save_model`."""
    tensors = sae.state_dict()
    sae.process_state_dict_for_saving(tensors)
    config = sae.cfg.to_dict()
    return config | {"metadata": dict(config["metadata"])}, tensors


def _sparsify(sae: Any) -> Parts:
    """Source: sparsify 1.3.3, `SparseCoder.save_to_disk`."""
    return {**sae.cfg.to_dict(), "d_in": sae.d_in}, sae.state_dict()


def _dictionary_learning(sae: Any) -> Parts:
    """Source: dictionary_learning 0.1.0, `trainSAE`, which saves the name of the class and the state dict.

    Raises:
        CheckpointError: Some groups of a Matryoshka dictionary are switched off, which no file stores.
    """
    groups = len(getattr(sae, "group_sizes", ()))
    if (active := getattr(sae, "active_groups", groups)) != groups:
        raise CheckpointError(
            f"{active} of the {groups} groups of the {type(sae).__name__} are active; the features of the others are "
            f"always off, which a HookedSAE cannot express. Set active_groups to {groups}."
        )
    trainer = {"dict_class": type(sae).__name__, "activation_dim": sae.activation_dim, "dict_size": sae.dict_size}
    if hasattr(sae, "apply_b_dec_to_input"):  # only JumpReluAutoEncoder has it
        trainer["apply_b_dec_to_input"] = sae.apply_b_dec_to_input
    return {"trainer": trainer}, sae.state_dict()


def _sentence_transformers(sae: Any) -> Parts:
    """Source: sentence-transformers 6.2, `SparseAutoEncoder.save`."""
    return sae.get_config_dict(), sae.state_dict()


LIBRARIES = {
    "sae_lens": Library("sae_lens.saes.sae.SAE", "SAEs and transcoders", saelens, _saelens),
    "sparsify": Library("sparsify.sparse_coder.SparseCoder", "SparseCoder", sparsify, _sparsify),
    "dictionary_learning": Library(
        "dictionary_learning.dictionary.Dictionary", "dictionaries", dictionary_learning, _dictionary_learning
    ),
    "sentence_transformers": Library(
        "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder.SparseAutoEncoder",
        "SparseAutoEncoder",
        sentence_transformers,
        _sentence_transformers,
    ),
}
"""The libraries by the package that their classes are in."""


def _class_name(sae: Any) -> str:
    return f"{type(sae).__module__}.{type(sae).__qualname__}"
