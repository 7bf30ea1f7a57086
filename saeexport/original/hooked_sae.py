"""HookedSAE, the PyTorch original: a sparse autoencoder whose every step can be read and changed by hooks.

    acts_pre  = (x - b_dec) @ W_enc + b_enc
    acts_post = relu(acts_pre)
    recons    = acts_post @ W_dec + b_dec
    error     = input - recons                (of a pass without hooks; only with `use_error_term`)
    output    = recons [+ error]

`architectures.py` has the others: a class each, with other `preactivations`, `activation` or `decode`.

Source: the class of this name in TransformerLens 2.0 to 2.2 (pull request 536, removed in 600), which this one
reproduces on TransformerLens' `HookedRootModule`.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import einops
import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from runtime.errors import InputError
from runtime.session.batch import flat_shape

try:  # transformer_lens 3.3 and later
    from transformer_lens import HookedRootModule
except ImportError:  # before; 4.x no longer has this one
    from transformer_lens.hook_points import HookedRootModule  # type: ignore[no-redef]


NORMALIZATIONS = ("none", "constant_norm_rescale", "layer_norm")
LAYER_NORM_EPS = 1e-5

Config = TypeVar("Config", bound="HookedSAEConfig")


@dataclass
class HookedSAEConfig:
    """What a HookedSAE is made from.

    Attributes:
        d_sae: number of features.
        d_in: width of the activations; for a `hook_z` SAE, `n_heads * d_head`.
        hook_name: where in the language model the activations come from, in TransformerLens' names. One that ends in
            `_z` lets the SAE take `[..., n_heads, d_head]` as well as `[..., d_in]`.
        model_name: Name of the language model, as the checkpoint gives it. Kept in the artifact; changes no value.
        neuronpedia_id: The SAE's identifier on Neuronpedia, likewise.
        use_error_term: add `input - recons` to the output, so that the SAE changes nothing until a hook edits it.
            Read at every call.
        dtype: of the parameters.
        seed: makes the initial weights reproducible; None draws them from torch's global generator.
        device: where the parameters live; None means CUDA if present, else the CPU.
        apply_b_dec_to_input: subtract `b_dec` from what is encoded.
        normalize_activations: what is done to the input before that, and undone after decoding; with `n = d_in`:
            "none"; "constant_norm_rescale", times `sqrt(n) / ||x||`; "layer_norm", less its mean, over its standard
            deviation (of n - 1) plus 1e-5, and undone without the 1e-5. Source: SAELens 6, `sae_lens/saes/sae.py`.
    """

    d_sae: int
    d_in: int
    hook_name: str
    model_name: str | None = field(default=None, kw_only=True)
    neuronpedia_id: str | None = field(default=None, kw_only=True)
    use_error_term: bool = False
    dtype: torch.dtype = torch.float32
    seed: int | None = None
    device: str | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"

    def __post_init__(self) -> None:
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.normalize_activations not in NORMALIZATIONS:
            known = ", ".join(NORMALIZATIONS)
            raise ValueError(f"normalize_activations is {self.normalize_activations!r}; it must be one of {known}.")

    @classmethod
    def from_dict(cls: type[Config], config: dict[str, Any]) -> Config:
        """Return the config of a plain dict.

        Raises:
            ValueError: a key is unknown, or one without a default is missing.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        unknown, missing = sorted(set(config) - known), sorted(needed - set(config))
        if unknown or missing:
            raise ValueError(
                f"{cls.__name__} got unknown keys {unknown} and misses {missing}; its keys are {sorted(known)}."
            )
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """Return the config as a plain dict."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class HookedSAE(HookedRootModule):
    """A ReLU sparse autoencoder with a HookPoint on each of its six tensors, and the base of the other architectures.

    Called with `[..., d_in]`, or `[..., n_heads, d_head]` where `hook_name` ends in `_z`, it returns a tensor of the
    same shape. `run_with_cache`, `run_with_hooks` and `hooks` come from TransformerLens' `HookedRootModule`.

    A hook that *returns* a tensor replaces what it was given, except on `hook_sae_input`, whose return value is
    discarded; an edit in place takes effect there too. The error is of a pass without hooks: no edit changes it, and
    no gradient flows through it.

    Another architecture is a subclass that says what differs: `architecture`, its name; `Config`, if it has options of
    its own; `parameter_shapes`; and any of `preactivations`, `activation` and `decode`.

    Raises:
        InputError: (when called) the input's shape or dtype does not fit.
    """

    architecture: ClassVar[str] = "standard"
    Config: ClassVar[type[HookedSAEConfig]] = HookedSAEConfig
    cfg: Any  # of the type `Config`
    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, cfg: HookedSAEConfig | dict[str, Any]) -> None:
        super().__init__()
        if isinstance(cfg, dict):
            cfg = self.Config.from_dict(cfg)
        if not isinstance(cfg, self.Config):
            raise ValueError(
                f"{type(self).__name__} takes a {self.Config.__name__} or a dict of its keys, not {cfg!r}."
            )
        self.cfg = cfg

        # Drawn on the CPU, so that a seed means the same weights on every device.
        birthplace = "meta" if cfg.device == "meta" else "cpu"
        generator = None if cfg.seed is None else torch.Generator().manual_seed(cfg.seed)
        for name, shape in self.parameter_shapes(cfg).items():
            values = torch.zeros(shape, dtype=cfg.dtype, device=birthplace)
            if len(shape) == 2:
                nn.init.kaiming_uniform_(values, generator=generator)
            self.register_parameter(name, nn.Parameter(values.to(cfg.device)))

        self.hook_sae_input = HookPoint()
        self.hook_sae_acts_pre = HookPoint()
        self.hook_sae_acts_post = HookPoint()
        self.hook_sae_recons = HookPoint()
        self.hook_sae_error = HookPoint()
        self.hook_sae_output = HookPoint()
        self.setup()

    @classmethod
    def parameter_shapes(cls, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters, matrices drawn Kaiming-uniform in this order, vectors zero."""
        return {
            "W_enc": (cfg.d_in, cfg.d_sae),
            "b_enc": (cfg.d_sae,),
            "W_dec": (cfg.d_sae, cfg.d_in),
            "b_dec": (cfg.d_in,),
        }

    def forward(self, input: Tensor) -> Tensor:
        """Return `hook_sae_output`, with the shape of `input`."""
        return self.run(input, input)

    def run(self, input: Tensor, target: Tensor | None) -> Tensor:
        """Return `hook_sae_output`: the pass from hook to hook, the error taken against `target`."""
        self.hook_sae_input(input)  # what a hook returns here is discarded, as in the original
        x = self.flatten(input).to(self.W_enc.dtype)  # `flatten` has refused what that would narrow
        acts_pre = self.hook_sae_acts_pre(self.preactivations(x))
        acts_post = self.hook_sae_acts_post(self.activation(acts_pre, x))
        recons = self.hook_sae_recons(self.shaped(self.decode(acts_post, x), input))
        if not self.cfg.use_error_term:
            return self.hook_sae_output(recons)
        with torch.no_grad():
            # A second pass, past the hooks: the error must not hide what an edit does to the reconstruction.
            recons_clean = self.shaped(self.decode(self.encode(x), x), input)
            assert target is not None
            error = self.hook_sae_error(target - recons_clean)
        return self.hook_sae_output(recons + error)

    def preactivations(self, x: Tensor) -> Tensor:
        """Return what goes into the activation function, `[..., d_sae]`, for flat `x`, `[..., d_in]`."""
        return einops.einsum(self.centered(x), self.W_enc, "... d_in, d_in d_sae -> ... d_sae") + self.b_enc

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return the features' activations, `[..., d_sae]`."""
        return torch.relu(acts_pre)

    def encode(self, x: Tensor) -> Tensor:
        """Return the features' activations of flat `x`, `[..., d_sae]`, past the hooks."""
        return self.activation(self.preactivations(x), x)

    def decode(self, acts_post: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the reconstruction from activations, flat, `[..., d_in]`, past the hooks.

        Args:
            acts_post: `[..., d_sae]`.
            x: the flat input, which is needed if what was done to it has to be undone.

        Raises:
            InputError: `x` is needed.
        """
        recons = einops.einsum(acts_post, self.W_dec, "... d_sae, d_sae d_in -> ... d_in") + self.b_dec
        if self.cfg.normalize_activations == "none":
            return recons
        if x is None:
            raise InputError(
                f"normalize_activations is {self.cfg.normalize_activations!r}: decode needs the input, too."
            )
        shift, scale = self._statistics(x)
        return recons * scale + shift

    def centered(self, x: Tensor) -> Tensor:
        """Return flat `x` as the encoder's product takes it: normalised, and less `b_dec`, if the config says so."""
        if self.cfg.normalize_activations != "none":
            shift, scale = self._statistics(x)
            eps = LAYER_NORM_EPS if self.cfg.normalize_activations == "layer_norm" else 0.0
            x = (x - shift) / (scale + eps)
        return x - self.b_dec if self.cfg.apply_b_dec_to_input else x

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what normalisation subtracts from a token and what it divides it by, `[..., 1]` each."""
        x = x.to(self.W_dec.dtype)
        if self.cfg.normalize_activations == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            variance = (x - mean).square().sum(dim=-1, keepdim=True) / (self.cfg.d_in - 1)
            return mean, variance.sqrt()
        norm = x.square().sum(dim=-1, keepdim=True).sqrt()
        return torch.zeros_like(norm), norm / self.cfg.d_in**0.5

    def shaped(self, recons: Tensor, input: Tensor) -> Tensor:
        """Return a flat reconstruction in the shape that its hook shows."""
        return recons.reshape(input.shape)

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
