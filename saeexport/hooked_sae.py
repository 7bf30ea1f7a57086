"""HookedSAE, the PyTorch original: a sparse autoencoder whose every step can be read and changed by hooks.

    acts_pre  = (x - b_dec) @ W_enc + b_enc
    acts_post = relu(acts_pre)
    recons    = acts_post @ W_dec + b_dec
    error     = input - recons                (of a pass without hooks; only with `use_error_term`)
    output    = recons [+ error]

Source: the class of this name in TransformerLens 2.0 to 2.2 (pull request 536, removed in 600), which this one
reproduces on TransformerLens' `HookedRootModule`.
"""

from dataclasses import dataclass, fields
from typing import Any

import einops
import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from runtime.errors import InputError
from runtime.inputs import flat_shape

try:  # transformer_lens 3.3 and later
    from transformer_lens import HookedRootModule
except ImportError:  # before; 4.x no longer has this one
    from transformer_lens.hook_points import HookedRootModule  # type: ignore[no-redef]


@dataclass
class HookedSAEConfig:
    """What a HookedSAE is made from.

    Attributes:
        d_sae: number of features.
        d_in: width of the activations; for a `hook_z` SAE, `n_heads * d_head`.
        hook_name: where in the language model the activations come from, in TransformerLens' names. One that ends in
            `_z` lets the SAE take `[..., n_heads, d_head]` as well as `[..., d_in]`.
        use_error_term: add `input - recons` to the output, so that the SAE changes nothing until a hook edits it.
            Read at every call.
        dtype: of the parameters.
        seed: makes the initial weights reproducible; None draws them from torch's global generator.
        device: where the parameters live; None means CUDA if present, else the CPU.
    """

    d_sae: int
    d_in: int
    hook_name: str
    use_error_term: bool = False
    dtype: torch.dtype = torch.float32
    seed: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "HookedSAEConfig":
        """Return the config of a plain dict.

        Raises:
            ValueError: a key is unknown, or one without a default is missing.
        """
        known = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(config) - known), sorted({"d_sae", "d_in", "hook_name"} - set(config))
        if unknown or missing:
            raise ValueError(
                f"HookedSAEConfig got unknown keys {unknown} and misses {missing}; its keys are {sorted(known)}."
            )
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """Return the config as a plain dict."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class HookedSAE(HookedRootModule):
    """A ReLU sparse autoencoder with a HookPoint on each of its six tensors.

    Called with `[..., d_in]`, or `[..., n_heads, d_head]` where `hook_name` ends in `_z`, it returns a tensor of the
    same shape. `run_with_cache`, `run_with_hooks` and `hooks` come from TransformerLens' `HookedRootModule`.

    A hook that *returns* a tensor replaces what it was given, except on `hook_sae_input`, whose return value is
    discarded; an edit in place takes effect there too. The error is of a pass without hooks: no edit changes it, and
    no gradient flows through it.

    Raises:
        InputError: (when called) the input's shape or dtype does not fit.
    """

    def __init__(self, cfg: HookedSAEConfig | dict[str, Any]) -> None:
        super().__init__()
        if isinstance(cfg, dict):
            cfg = HookedSAEConfig.from_dict(cfg)
        if not isinstance(cfg, HookedSAEConfig):
            raise ValueError(f"HookedSAE takes a HookedSAEConfig or a dict of its keys, not {cfg!r}.")
        self.cfg = cfg

        # Drawn on the CPU, so that a seed means the same weights on every device.
        birthplace = "meta" if cfg.device == "meta" else "cpu"
        generator = None if cfg.seed is None else torch.Generator().manual_seed(cfg.seed)

        def kaiming(rows: int, columns: int) -> nn.Parameter:
            weight = torch.empty(rows, columns, dtype=cfg.dtype, device=birthplace)
            return nn.Parameter(nn.init.kaiming_uniform_(weight, generator=generator).to(cfg.device))

        self.W_enc = kaiming(cfg.d_in, cfg.d_sae)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, dtype=cfg.dtype, device=cfg.device))
        self.W_dec = kaiming(cfg.d_sae, cfg.d_in)
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in, dtype=cfg.dtype, device=cfg.device))

        self.hook_sae_input = HookPoint()
        self.hook_sae_acts_pre = HookPoint()
        self.hook_sae_acts_post = HookPoint()
        self.hook_sae_recons = HookPoint()
        self.hook_sae_error = HookPoint()
        self.hook_sae_output = HookPoint()
        self.setup()

    def forward(self, input: Tensor) -> Tensor:
        """Return `hook_sae_output`, with the shape of `input`."""
        self.hook_sae_input(input)  # what a hook returns here is discarded, as in the original
        x = self.flatten(input)
        acts_pre = self.hook_sae_acts_pre(self.preactivations(x))
        acts_post = self.hook_sae_acts_post(self.activation(acts_pre))
        recons = self.hook_sae_recons(self.decode(acts_post).reshape(input.shape))
        if not self.cfg.use_error_term:
            return self.hook_sae_output(recons)
        with torch.no_grad():
            # A second pass, past the hooks: the error must not hide what an edit does to the reconstruction.
            recons_clean = self.decode(self.encode(x)).reshape(input.shape)
            error = self.hook_sae_error(input - recons_clean)
        return self.hook_sae_output(recons + error)

    def preactivations(self, x: Tensor) -> Tensor:
        """Return what goes into the ReLU, `[..., d_sae]`, for flat `x`, `[..., d_in]`."""
        return einops.einsum(x - self.b_dec, self.W_enc, "... d_in, d_in d_sae -> ... d_sae") + self.b_enc

    def activation(self, acts_pre: Tensor) -> Tensor:
        """Return the features' activations, `[..., d_sae]`."""
        return torch.relu(acts_pre)

    def encode(self, x: Tensor) -> Tensor:
        """Return the features' activations of flat `x`, `[..., d_sae]`, past the hooks."""
        return self.activation(self.preactivations(x))

    def decode(self, acts_post: Tensor) -> Tensor:
        """Return the reconstruction from activations, flat, `[..., d_in]`, past the hooks."""
        return einops.einsum(acts_post, self.W_dec, "... d_sae, d_sae d_in -> ... d_in") + self.b_dec

    def flatten(self, input: Tensor) -> Tensor:
        """Return `input` as `[..., d_in]`.

        Raises:
            InputError: its shape or dtype does not fit.
        """
        self._check_dtype(input)
        shape = flat_shape(input.shape, self.cfg.d_in, self.cfg.hook_name)
        if len(shape) == input.ndim:
            return input
        return einops.rearrange(input, "... n_heads d_head -> ... (n_heads d_head)")

    def _check_dtype(self, input: Tensor) -> None:
        """Refuse what PyTorch's promotion would not compute in the dtype of the weights."""
        dtype = self.W_enc.dtype
        if input.dtype == dtype:
            return
        numeric = input.dtype != torch.bool and not input.dtype.is_complex
        widens = dtype in (torch.float32, torch.float64)  # half weights take their own dtype only
        if not (widens and numeric and torch.promote_types(input.dtype, dtype) == dtype):
            raise InputError(f"The input is {input.dtype}; this SAE is {dtype}. Pass input.to({dtype}).")
