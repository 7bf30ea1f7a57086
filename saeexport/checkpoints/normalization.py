"""Reads the normalisation of a SAELens config, whose truth may lie outside the checkpoint's files.

"expected_average_only_in" means that the SAE was trained on inputs multiplied by a constant. Some checkpoints have it
in their weights. Others do not, and SAELens folds it in from its list of published SAEs. No key of the config tells one
from the other, so that the caller has to.

Source: SAELens 6.54, `SAE.fold_activation_norm_scaling_factor` and `SAE.from_pretrained_with_cfg_and_sparsity` in
`sae_lens/saes/sae.py`; the values are those of its `pretrained_saes.yaml`, of the releases in SAELens' own format that
have `norm_scaling_factor` or override `normalize_activations`.
"""

import math
from numbers import Real
from typing import Any, NamedTuple

from runtime.errors import CheckpointError

from ..original.hooked_sae import NORMALIZATIONS
from .options import Options
from .request import option_of

AVERAGE = "expected_average_only_in"


class Published(NamedTuple):
    """What SAELens' list says about a published SAE: a factor, or another normalisation than its config has."""

    repository: str
    d_sae: int
    factor: float | None = None
    normalization: str | None = None


_MLP = "tommmcgrath/gpt2-small-mlp-out-saes"
_MLP_FACTORS = (
    1.049317316132615, 2.3693984005104283, 1.6411934982190302, 1.8958522157897557, 1.81673478700627, 1.550234472245924,
    1.3237742807210804, 1.1042905114723296, 0.9123762783479742, 0.6955335635232373, 0.3619728926727644,
    0.2851548652550073,
)  # fmt: skip
PUBLISHED = {
    **{f"blocks.{layer}.hook_mlp_out": Published(_MLP, 24576, factor) for layer, factor in enumerate(_MLP_FACTORS)},
    "blocks.12.hook_resid_post": Published("jbloom/Gemma-2b-Residual-Stream-SAEs", 16384, 0.21381938399317255),
    **{
        f"blocks.{layer}.hook_resid_pre": Published(
            "JoshEngels/Mistral-7B-Residual-Stream-SAEs", 65536, normalization="constant_norm_rescale"
        )
        for layer in (8, 16, 24)
    },
}
"""SAELens' list, by the name of the hook."""


def read_normalization(options: Options, hook_name: str, d_sae: int) -> tuple[str, float]:
    """Return the normalisation of the input and the factor to fold into the weights, which is 1 if there is none.

    Args:
        options: Options of the config, with what the caller says.
        hook_name: Name of the hook that the activations come from, to find the SAE in SAELens' list.
        d_sae: Number of features, likewise.

    Raises:
        CheckpointError: The normalisation is not supported; or the config says that there is a factor and the caller
            does not say which, or that it is in the weights.
    """
    request, key = options.request, "normalize_activations"
    known = (*NORMALIZATIONS, AVERAGE)
    if request.normalize_activations is None:
        said = options.choose(key, known, NORMALIZATIONS[0])
    else:
        configured, said = options.take(key, object, None), request.take(key)
        if said not in known:
            raise CheckpointError(
                f"{key} = {said!r} was given ({option_of(key)}); it must be one of {', '.join(known)}."
            )
        request.notes.append(
            f"The normalisation of the input is {said} ({option_of(key)}); the config has {configured!r}."
        )
    if said != AVERAGE:
        return said, 1.0
    factor, folded = request.take("norm_scaling_factor"), request.take("already_folded")
    if folded and factor is None:
        request.notes.append("The weights include the factor of the input (--already-folded).")
        return NORMALIZATIONS[0], 1.0
    if factor is None:
        raise options.refused(key, said, _unknown_factor(hook_name, d_sae))
    if folded:
        raise CheckpointError(
            f"{options.source}: norm_scaling_factor = {factor!r} and already_folded were given; give one of the two."
        )
    check_factor(factor, options.source)
    request.notes.append(f"The factor of the input, {factor!r}, is folded into the weights (--norm-scaling-factor).")
    return NORMALIZATIONS[0], float(factor)


def _unknown_factor(hook_name: str, d_sae: int) -> str:
    """Return the reason to refuse a checkpoint whose factor is not known, with what SAELens' list says of it."""
    reason = (
        "its inputs were multiplied by a constant that is not in its files, and no key tells whether the weights "
        "include it. Give the constant (--norm-scaling-factor F, norm_scaling_factor=F), or say that the weights "
        "include it (--already-folded, already_folded=True)"
    )
    published = PUBLISHED.get(hook_name)
    if published is None or published.d_sae != d_sae:
        return reason
    if published.factor is not None:
        return f"{reason}. SAELens' list has {published.factor!r} for {hook_name} of {published.repository}"
    return (
        f"{reason}. SAELens' list reads {hook_name} of {published.repository} with another normalisation: "
        f"--normalize-activations {published.normalization}"
    )


def check_factor(factor: Any, source: str) -> None:
    """Refuse a factor of the input that cannot be folded into the weights.

    Raises:
        CheckpointError: It is not a positive, finite number.
    """
    number = isinstance(factor, Real) and not isinstance(factor, bool)
    if not (number and math.isfinite(factor) and factor > 0):
        raise CheckpointError(f"{source}: the factor of the input is {factor!r}; it must be a positive, finite number.")
