"""The architectures: their parameters, and how they encode and decode.

With `c` the input after the normalisation and the subtraction of `b_dec` that the config asks for:

    standard     acts_post = relu(acts_pre)                               acts_pre = c @ W_enc + b_enc
    jumprelu     acts_post = acts_pre where acts_pre > threshold (and > 0), else 0
    gated        acts_post = relu(acts_pre) where c @ W_enc + b_gate > 0  acts_pre = c @ W_enc * exp(r_mag) + b_mag
    topk         acts_post = relu(acts_pre) of the k largest acts_pre, else 0
    abstopk      acts_post = acts_pre of the k largest |acts_pre|, else 0
    transcoder   recons = acts_post @ W_dec + b_dec predicts another activation; with a skip, + input @ W_skip.T

Batch-top-k and Matryoshka SAEs are published with thresholds, as jumprelu.

Sources: JumpReLU, Rajamanoharan et al. 2024 (arXiv:2407.14435); gated, Rajamanoharan et al. 2024 (arXiv:2404.16014);
top-k, Gao et al. 2024 (arXiv:2406.04093); batch-top-k, Bussmann et al. 2024 (arXiv:2412.06410); transcoders, Dunefsky
et al. 2024 (arXiv:2406.11944), with a skip connection, Paulo et al. 2025 (arXiv:2501.18823); details as in SAELens 6.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import einops
import torch
from torch import Tensor, nn

from runtime.arrays.arguments import as_integer
from runtime.errors import InputError

from .hooked_sae import HookedSAE, HookedSAEConfig


class JumpReLUSAE(HookedSAE):
    """An SAE in which a feature is on if its preactivation exceeds the feature's threshold."""

    architecture = "jumprelu"
    threshold: nn.Parameter

    @classmethod
    def parameter_shapes(cls, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters, with `threshold`."""
        return {**super().parameter_shapes(cfg), "threshold": (cfg.d_sae,)}

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return the positive preactivations above their threshold and zeros elsewhere, `[..., d_sae]`."""
        return torch.relu(acts_pre) * (acts_pre > self.threshold)


class GatedSAE(HookedSAE):
    """An SAE whose product `c @ W_enc` gives the gates and, rescaled, the magnitudes, which are `acts_pre`."""

    architecture = "gated"
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    @classmethod
    def parameter_shapes(cls, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters, with `b_gate`, `b_mag` and `r_mag` instead of `b_enc`."""
        shapes = super().parameter_shapes(cfg)
        del shapes["b_enc"]
        return {**shapes, **dict.fromkeys(("b_gate", "b_mag", "r_mag"), (cfg.d_sae,))}

    def preactivations(self, x: Tensor) -> Tensor:
        """Return the magnitudes before the ReLU, `[..., d_sae]`."""
        return self._product(x) * self.r_mag.exp() + self.b_mag

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return the magnitudes of the features with an open gate and zeros elsewhere, `[..., d_sae]`."""
        return torch.relu(acts_pre) * (self._product(x) + self.b_gate > 0)

    def undetermined(self, acts_pre: Tensor, acts_post: Tensor, tolerance: Tensor) -> Tensor:
        """Return the features whose gate is within the tolerance of opening, if they can be on, `[..., d_sae]`.

        The gate and the magnitude come from one product. The gate opens where that is `-b_gate`, which is where
        `acts_pre` is `b_mag - b_gate * exp(r_mag)`. An error of the product shows in `acts_pre` times `exp(r_mag)`, so
        that for a feature with a smaller factor than usual a smaller distance is as many errors.
        """
        factor = self.r_mag.exp()
        distance = (acts_pre - (self.b_mag - self.b_gate * factor)).abs()
        errors = tolerance * (factor / factor.median()).clamp(max=1)
        return (distance <= errors) & (acts_pre > -tolerance)

    def _product(self, x: Tensor) -> Tensor:
        return einops.einsum(self.centered(x), self.W_enc, "... d_in, d_in d_sae -> ... d_sae")


@dataclass
class TopKConfig(HookedSAEConfig):
    """Configuration of a top-k SAE.

    Attributes:
        k: Number of features that may be on for a token, at most `d_sae`.
    """

    k: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.k = as_integer("k", self.k, 1, self.d_sae, most_is="d_sae = ")


class TopKSAE(HookedSAE):
    """An SAE that keeps the k largest preactivations of each token, if they are positive."""

    architecture = "topk"
    features_compete = True
    Config: ClassVar[type[HookedSAEConfig]] = TopKConfig

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return the k largest preactivations after a ReLU and zeros elsewhere, `[..., d_sae]`."""
        values, features = acts_pre.topk(self.cfg.k, dim=-1)
        return torch.zeros_like(acts_pre).scatter(-1, features, torch.relu(values))

    def undetermined(self, acts_pre: Tensor, acts_post: Tensor, tolerance: Tensor) -> Tensor:
        """Return the features that tie exactly for the last place, `[..., d_sae]`."""
        return _ties(acts_pre, acts_post != 0)


class AbsTopKSAE(HookedSAE):
    """An SAE that keeps the k preactivations of each token with the largest absolute values, with their sign."""

    architecture = "abstopk"
    features_compete = True
    Config = TopKConfig

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return the k preactivations with the largest absolute values and zeros elsewhere, `[..., d_sae]`."""
        features = acts_pre.abs().topk(self.cfg.k, dim=-1).indices
        return torch.zeros_like(acts_pre).scatter(-1, features, acts_pre.gather(-1, features))

    def undetermined(self, acts_pre: Tensor, acts_post: Tensor, tolerance: Tensor) -> Tensor:
        """Return the features that tie exactly for the last place, `[..., d_sae]`."""
        return _ties(acts_pre.abs(), acts_post != 0)


def _ties(size: Tensor, on: Tensor) -> Tensor:
    """Return the features that are as large as the smallest one that is on, if one of them is off, `[..., d_sae]`."""
    last = torch.where(on, size, torch.inf).amin(dim=-1, keepdim=True)
    tied: Tensor = size == last
    return tied & (tied & ~on).any(dim=-1, keepdim=True)


@dataclass
class TranscoderConfig(HookedSAEConfig):
    """Configuration of a transcoder.

    Attributes:
        d_out: Width of the predicted activation.
        hook_name_out: TransformerLens name of the hook of the predicted activation.
    """

    apply_b_dec_to_input: bool = False
    d_out: int = -1
    hook_name_out: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.d_out = as_integer("d_out", self.d_out, 1)
        if self.apply_b_dec_to_input or self.normalize_activations != "none":
            raise InputError(
                f"apply_b_dec_to_input is {self.apply_b_dec_to_input} and normalize_activations is "
                f"{self.normalize_activations!r}; a transcoder's output is another activation than its input, so they "
                "must be False and 'none'."
            )


class Transcoder(HookedSAE):
    """An SAE that predicts another activation than it reads, such as the output of an MLP from its input.

    It takes `[..., d_in]` and returns `[..., d_out]`. With the error term it also takes `target`, the activation
    that it predicts, and the error is `target - recons`. Without the error term `hook_sae_error` does not fire.
    """

    architecture = "transcoder"
    Config: ClassVar[type[HookedSAEConfig]] = TranscoderConfig

    @classmethod
    def parameter_shapes(cls, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters, with a decoder to `d_out`."""
        return {**super().parameter_shapes(cfg), "W_dec": (cfg.d_sae, cfg.d_out), "b_dec": (cfg.d_out,)}

    def forward(self, input: Tensor, target: Tensor | None = None) -> Tensor:
        """Return `hook_sae_output`, `[..., d_out]`.

        Args:
            input: Activation to read, `[..., d_in]`.
            target: Activation to predict, `[..., d_out]`. It must be given with the error term, and only then.

        Raises:
            InputError: A shape or dtype does not fit, or the target is missing or not needed.
        """
        shape = (*self.flatten(input).shape[:-1], self.cfg.d_out)
        needed = self.cfg.use_error_term
        if needed != (target is not None) or (target is not None and tuple(target.shape) != shape):
            given = None if target is None else tuple(target.shape)
            wanted = f"a target of shape {shape}, the activation that it predicts" if needed else "no target"
            raise InputError(
                f"The target is {given}; this transcoder takes {wanted}, because use_error_term is {needed}."
            )
        return self.run(input, target)

    def shaped(self, recons: Tensor, input: Tensor) -> Tensor:
        """Return the prediction unchanged, `[..., d_out]`."""
        return recons


class SkipTranscoder(Transcoder):
    """A transcoder with a skip connection: its features predict what a linear map of the input does not."""

    architecture = "skip_transcoder"
    W_skip: nn.Parameter

    @classmethod
    def parameter_shapes(cls, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters, with `W_skip`."""
        return {**super().parameter_shapes(cfg), "W_skip": (cfg.d_out, cfg.d_in)}

    def decode(self, acts_post: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the prediction of the features plus that of the skip connection, `[..., d_out]`.

        Raises:
            InputError: `x`, the input, is missing.
        """
        if x is None:
            raise InputError("A skip transcoder's decode needs the input x for its skip connection.")
        return super().decode(acts_post) + einops.einsum(x, self.W_skip, "... d_in, d_out d_in -> ... d_out")


class JumpReLUTranscoder(JumpReLUSAE, Transcoder):
    """A transcoder with one threshold per feature."""

    architecture = "jumprelu_transcoder"


class JumpReLUSkipTranscoder(JumpReLUSAE, SkipTranscoder):
    """A skip transcoder with one threshold per feature."""

    architecture = "jumprelu_skip_transcoder"


@dataclass
class TopKTranscoderConfig(TranscoderConfig, TopKConfig):
    """Configuration of a top-k transcoder."""


class TopKTranscoder(TopKSAE, Transcoder):
    """A transcoder that keeps the k largest preactivations of each token."""

    architecture = "topk_transcoder"
    Config = TopKTranscoderConfig


class TopKSkipTranscoder(TopKSAE, SkipTranscoder):
    """A skip transcoder that keeps the k largest preactivations of each token."""

    architecture = "topk_skip_transcoder"
    Config = TopKTranscoderConfig


ARCHITECTURES: dict[str, type[HookedSAE]] = {
    cls.architecture: cls
    for cls in (
        HookedSAE,
        JumpReLUSAE,
        GatedSAE,
        TopKSAE,
        AbsTopKSAE,
        Transcoder,
        SkipTranscoder,
        JumpReLUTranscoder,
        JumpReLUSkipTranscoder,
        TopKTranscoder,
        TopKSkipTranscoder,
    )
}
"""The classes of all architectures, by their name in the manifest."""
