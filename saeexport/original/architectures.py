"""The architectures: what each adds to the parameters, how it encodes, how it decodes.

With `c` the input, normalised and less `b_dec` as the config says:

    standard     acts_post = relu(acts_pre)                               acts_pre = c @ W_enc + b_enc
    jumprelu     acts_post = acts_pre where acts_pre > threshold (and > 0), else 0
    gated        acts_post = relu(acts_pre) where c @ W_enc + b_gate > 0  acts_pre = c @ W_enc * exp(r_mag) + b_mag
    topk         acts_post = relu(acts_pre) of the k largest acts_pre, else 0
    abstopk      acts_post = acts_pre of the k largest |acts_pre|, else 0
    transcoder   recons = acts_post @ W_dec + b_dec, of another activation than the input; [skip:] + input @ W_skip.T

Batch-top-k and Matryoshka SAEs are published with a threshold, as jumprelu.

Sources: JumpReLU, Rajamanoharan et al. 2024 (arXiv:2407.14435); gated, Rajamanoharan et al. 2024 (arXiv:2404.16014);
top-k, Gao et al. 2024 (arXiv:2406.04093); batch-top-k, Bussmann et al. 2024 (arXiv:2412.06410); transcoders, Dunefsky
et al. 2024 (arXiv:2406.11944), with a skip connection, Paulo et al. 2025 (arXiv:2501.18823); in the details SAELens 6.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import einops
import torch
from torch import Tensor, nn

from runtime.errors import InputError

from .hooked_sae import HookedSAE, HookedSAEConfig


class JumpReLUSAE(HookedSAE):
    """A feature is on if it exceeds a threshold of its own, strictly."""

    architecture = "jumprelu"
    threshold: nn.Parameter

    @classmethod
    def parameter_shapes(cls, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Add `threshold`."""
        return {**super().parameter_shapes(cfg), "threshold": (cfg.d_sae,)}

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return what exceeds the threshold, `[..., d_sae]`."""
        return torch.relu(acts_pre) * (acts_pre > self.threshold)


class GatedSAE(HookedSAE):
    """One product decides which features are on and, rescaled, how much; `acts_pre` is the latter."""

    architecture = "gated"
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    @classmethod
    def parameter_shapes(cls, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Have `b_gate`, `b_mag` and `r_mag` instead of `b_enc`."""
        shapes = super().parameter_shapes(cfg)
        del shapes["b_enc"]
        return {**shapes, **dict.fromkeys(("b_gate", "b_mag", "r_mag"), (cfg.d_sae,))}

    def preactivations(self, x: Tensor) -> Tensor:
        """Return the magnitudes before their ReLU, `[..., d_sae]`."""
        return self._product(x) * self.r_mag.exp() + self.b_mag

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return the magnitudes of the features whose gate is open, `[..., d_sae]`."""
        return torch.relu(acts_pre) * (self._product(x) + self.b_gate > 0)

    def _product(self, x: Tensor) -> Tensor:
        return einops.einsum(self.centered(x), self.W_enc, "... d_in, d_in d_sae -> ... d_sae")


@dataclass
class TopKConfig(HookedSAEConfig):
    """`HookedSAEConfig` and k.

    Attributes:
        k: how many features may be on for a token, at most d_sae.
    """

    k: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k is {self.k}; it must lie in [1, d_sae = {self.d_sae}].")


class TopKSAE(HookedSAE):
    """Only the k largest preactivations of a token are kept, and of those the positive ones."""

    architecture = "topk"
    Config: ClassVar[type[HookedSAEConfig]] = TopKConfig

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return the k largest where they are positive, `[..., d_sae]`."""
        values, features = acts_pre.topk(self.cfg.k, dim=-1)
        return torch.zeros_like(acts_pre).scatter(-1, features, torch.relu(values))


class AbsTopKSAE(HookedSAE):
    """Only the k largest preactivations of a token in absolute value are kept, with their sign."""

    architecture = "abstopk"
    Config = TopKConfig

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return the k largest in absolute value, `[..., d_sae]`."""
        features = acts_pre.abs().topk(self.cfg.k, dim=-1).indices
        return torch.zeros_like(acts_pre).scatter(-1, features, acts_pre.gather(-1, features))


@dataclass
class TranscoderConfig(HookedSAEConfig):
    """`HookedSAEConfig`, and what is predicted.

    Attributes:
        d_out: width of the predicted activation.
        hook_name_out: where in the language model that is, in TransformerLens' names.
    """

    apply_b_dec_to_input: bool = False
    d_out: int = -1
    hook_name_out: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_out < 1:
            raise ValueError(f"d_out is {self.d_out}; it must be the width of the predicted activation.")
        if self.apply_b_dec_to_input or self.normalize_activations != "none":
            raise ValueError(
                f"apply_b_dec_to_input is {self.apply_b_dec_to_input}, normalize_activations "
                f"{self.normalize_activations!r}; a transcoder's output is another activation than its input, so they "
                "must be False and 'none'."
            )


class Transcoder(HookedSAE):
    """It predicts another activation than it reads, such as an MLP's output from its input.

    Called with `[..., d_in]`, it returns `[..., d_out]`. With the error term it also needs that activation, `target`:
    the error is `target - recons`. Without, `hook_sae_error` does not fire.
    """

    architecture = "transcoder"
    Config: ClassVar[type[HookedSAEConfig]] = TranscoderConfig

    @classmethod
    def parameter_shapes(cls, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Have a decoder to `d_out`."""
        return {**super().parameter_shapes(cfg), "W_dec": (cfg.d_sae, cfg.d_out), "b_dec": (cfg.d_out,)}

    def forward(self, input: Tensor, target: Tensor | None = None) -> Tensor:
        """Return `hook_sae_output`, `[..., d_out]`.

        Args:
            input: `[..., d_in]`.
            target: `[..., d_out]`, the activation that is predicted; needed with the error term, and only then.

        Raises:
            InputError: the shape or dtype of one does not fit, or the target is missing or not needed.
        """
        shape = (*self.flatten(input).shape[:-1], self.cfg.d_out)
        needed = self.cfg.use_error_term
        if needed != (target is not None) or (target is not None and tuple(target.shape) != shape):
            given = None if target is None else tuple(target.shape)
            wanted = f"a target of shape {shape}, the activation that it predicts" if needed else "no target"
            raise InputError(
                f"The target is {given}; this transcoder, use_error_term={needed}, takes {wanted}, for its error term."
            )
        return self.run(input, target)

    def shaped(self, recons: Tensor, input: Tensor) -> Tensor:
        """Return the prediction as it is, `[..., d_out]`."""
        return recons


class SkipTranscoder(Transcoder):
    """A transcoder that leaves to its features what a linear map of the input cannot predict."""

    architecture = "skip_transcoder"
    W_skip: nn.Parameter

    @classmethod
    def parameter_shapes(cls, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Add `W_skip`."""
        return {**super().parameter_shapes(cfg), "W_skip": (cfg.d_out, cfg.d_in)}

    def decode(self, acts_post: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the features' prediction and the skip connection's, `[..., d_out]`.

        Raises:
            InputError: `x`, the input, is missing.
        """
        if x is None:
            raise InputError("A skip transcoder's decode needs the input, too.")
        return super().decode(acts_post) + einops.einsum(x, self.W_skip, "... d_in, d_out d_in -> ... d_out")


class JumpReLUTranscoder(JumpReLUSAE, Transcoder):
    """A transcoder whose features have thresholds."""

    architecture = "jumprelu_transcoder"


class JumpReLUSkipTranscoder(JumpReLUSAE, SkipTranscoder):
    """A skip transcoder whose features have thresholds."""

    architecture = "jumprelu_skip_transcoder"


@dataclass
class TopKTranscoderConfig(TranscoderConfig, TopKConfig):
    """`TranscoderConfig` and k."""


class TopKTranscoder(TopKSAE, Transcoder):
    """A transcoder of which only the k largest features of a token are kept."""

    architecture = "topk_transcoder"
    Config = TopKTranscoderConfig


class TopKSkipTranscoder(TopKSAE, SkipTranscoder):
    """A skip transcoder of which only the k largest features of a token are kept."""

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
"""By the name that the manifest has."""
