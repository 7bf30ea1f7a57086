"""HookedSAE, the PyTorch original: a sparse autoencoder with a hook at every step of its forward pass.

    acts_pre  = (x - b_dec) @ W_enc + b_enc
    acts_post = relu(acts_pre)
    recons    = acts_post @ W_dec + b_dec
    error     = input - recons                (from a pass without hooks; only with `use_error_term`)
    output    = recons [+ error]

`architectures.py` has the other architectures: subclasses that override `preactivations`, `activation` or `decode`.

Source: the class of the same name in TransformerLens 2.0 to 2.2 (added in pull request 536, removed in 600), which this
class reproduces on TransformerLens' `HookedRootModule`.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import einops
import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from runtime.arrays.arguments import as_integer
from runtime.artifact.labels import Labels
from runtime.errors import InputError
from runtime.session.batch import flat_shape

from .dtypes import torch_dtype

try:  # transformer_lens 3.3 and later
    from transformer_lens import HookedRootModule
except ImportError:  # earlier releases; 4.x no longer has this module
    from transformer_lens.hook_points import HookedRootModule  # type: ignore[no-redef]


NORMALIZATIONS = ("none", "constant_norm_rescale", "layer_norm")
LAYER_NORM_EPS = 1e-5

Config = TypeVar("Config", bound="HookedSAEConfig")


@dataclass
class HookedSAEConfig:
    """Configuration of a `HookedSAE`.

    Attributes:
        d_sae: Number of features.
        d_in: Width of the activations; `n_heads * d_head` for a `hook_z` SAE.
        hook_name: TransformerLens name of the hook that the activations come from. If it ends in `_z`, the SAE takes
            `[..., n_heads, d_head]` as well as `[..., d_in]`.
        model_name: Name of the language model, as the checkpoint gives it. It is stored in the artifact and has no
            effect on the computation.
        neuronpedia_id: Identifier of the SAE on Neuronpedia, such as "gpt2-small/8-res-jb". It is stored as well.
        use_error_term: Whether to add `input - recons` to the output, so that the SAE changes nothing until a hook
            edits a feature. It is read at every call.
        dtype: Dtype of the parameters, given as a name ("float16"), a `torch.dtype` or a numpy dtype; kept as a
            `torch.dtype`.
        seed: Seed of the initial weights; None draws them from torch's global generator.
        device: Device of the parameters; None means CUDA if available, otherwise the CPU.
        apply_b_dec_to_input: Whether to subtract `b_dec` from the input before encoding.
        normalize_activations: Normalisation of the input before `b_dec` is subtracted, undone after decoding. With
            `n = d_in`: "none"; "constant_norm_rescale", multiply by `sqrt(n) / ||x||`; "layer_norm", subtract the mean
            and divide by the standard deviation (with n - 1) plus 1e-5, undone without the 1e-5. Source: SAELens 6,
            `sae_lens/saes/sae.py`.
    """

    d_sae: int
    d_in: int
    hook_name: str
    model_name: str | None = field(default=None, kw_only=True)
    neuronpedia_id: str | None = field(default=None, kw_only=True)
    use_error_term: bool = False
    dtype: Any = torch.float32
    seed: int | None = None
    device: str | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"

    def __post_init__(self) -> None:
        self.dtype = torch_dtype(self.dtype)
        self.d_sae, self.d_in = as_integer("d_sae", self.d_sae, 1), as_integer("d_in", self.d_in, 1)
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if not isinstance(self.normalize_activations, str) or self.normalize_activations not in NORMALIZATIONS:
            known = ", ".join(NORMALIZATIONS)
            raise InputError(f"normalize_activations is {self.normalize_activations!r}; it must be one of {known}.")

    @classmethod
    def from_dict(cls: type[Config], config: dict[str, Any]) -> Config:
        """Return the config with the keys and values of a dict.

        Raises:
            InputError: A key is unknown, or a key without a default is missing.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        unknown, missing = sorted(set(config) - known), sorted(needed - set(config))
        if unknown or missing:
            wrong = [*([f"got unknown keys {unknown}"] if unknown else []), *([f"misses {missing}"] if missing else [])]
            raise InputError(f"{cls.__name__} {' and '.join(wrong)}; its keys are {sorted(known)}.")
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """Return the config as a dict."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class HookedSAE(HookedRootModule):
    """A ReLU sparse autoencoder with a HookPoint on each of its six tensors; the base class of all architectures.

    It takes `[..., d_in]`, or `[..., n_heads, d_head]` if `hook_name` ends in `_z`, and returns a tensor of the same
    shape. `run_with_cache`, `run_with_hooks` and `hooks` are those of TransformerLens' `HookedRootModule`.

    A tensor that a hook returns replaces the tensor at that hook, except at `hook_sae_input`, where it is discarded;
    edits in place take effect there as well. The error is computed in a pass without hooks: edits do not change it, and
    it carries no gradient.

    A subclass defines another architecture: its name, `architecture`; its `Config`, if it has more options; its
    `parameter_shapes`; any of `preactivations`, `activation` and `decode`; and `features_compete` and `undetermined` if
    `activation` decides about a feature by more than its own preactivation.

    Raises:
        InputError: When called, if the shape or dtype of the input does not fit.
    """

    architecture: ClassVar[str] = "standard"
    Config: ClassVar[type[HookedSAEConfig]] = HookedSAEConfig
    features_compete: ClassVar[bool] = False  # whether a feature can be on only if others are off
    cfg: Any  # an instance of `Config`
    feature_ids: tuple[int, ...] | None  # ids of the features in the SAE that they were taken from; None: a whole SAE
    provenance: dict[str, str]  # how its checkpoint was read; the exporter adds it to the manifest's
    labels: Labels | None = None  # of its features, if it was read from an artifact; the exporter stores them
    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, cfg: HookedSAEConfig | dict[str, Any]) -> None:
        super().__init__()
        if isinstance(cfg, dict):
            cfg = self.Config.from_dict(cfg)
        if not isinstance(cfg, self.Config):
            raise InputError(
                f"{type(self).__name__} takes a {self.Config.__name__} or a dict of its keys, not {cfg!r}."
            )
        self.cfg = cfg
        self.feature_ids = None
        self.provenance = {}

        # Weights are drawn on the CPU so that a seed gives the same weights on every device.
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
        """Return the shapes of the parameters. Matrices are drawn Kaiming-uniform in this order; vectors are zero."""
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
        """Run the forward pass with its hooks and return `hook_sae_output`; the error is `target - recons`."""
        self.hook_sae_input(input)  # a value that a hook returns here is discarded, as in TransformerLens
        x = self.flatten(input).to(self.W_enc.dtype)  # widens only: `flatten` refuses other dtypes
        acts_pre = self.hook_sae_acts_pre(self.preactivations(x))
        acts_post = self.hook_sae_acts_post(self.activation(acts_pre, x))
        recons = self.hook_sae_recons(self.shaped(self.decode(acts_post, x), input))
        if not self.cfg.use_error_term:
            return self.hook_sae_output(recons)
        with torch.no_grad():
            # A second pass without hooks, so that the error does not cancel what an edit does to the reconstruction.
            recons_clean = self.shaped(self.decode(self.encode(x), x), input)
            assert target is not None
            error = self.hook_sae_error(target - recons_clean)
        return self.hook_sae_output(recons + error)

    def preactivations(self, x: Tensor) -> Tensor:
        """Return the preactivations, `[..., d_sae]`, of flat `x`, `[..., d_in]`."""
        return einops.einsum(self.centered(x), self.W_enc, "... d_in, d_in d_sae -> ... d_sae") + self.b_enc

    def activation(self, acts_pre: Tensor, x: Tensor) -> Tensor:
        """Return the feature activations, `[..., d_sae]`."""
        return torch.relu(acts_pre)

    def undetermined(self, acts_pre: Tensor, acts_post: Tensor, tolerance: Tensor) -> Tensor | None:
        """Return which features may be on or off for the same preactivations, `[..., d_sae]` bool; None if none may.

        The proof accepts both decisions about such a feature, with `acts_pre` as its activation if it is on.

        Args:
            acts_pre: Preactivations, `[..., d_sae]`.
            acts_post: The activations that were computed from them, `[..., d_sae]`.
            tolerance: Largest error that each preactivation may have, `[..., d_sae]`.
        """
        return None

    def encode(self, x: Tensor) -> Tensor:
        """Return the feature activations of flat `x`, `[..., d_sae]`, without running hooks."""
        return self.activation(self.preactivations(x), x)

    def decode(self, acts_post: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the flat reconstruction, `[..., d_in]`, without running hooks.

        Args:
            acts_post: Feature activations, `[..., d_sae]`.
            x: Flat input, `[..., d_in]`; needed to undo `normalize_activations`.

        Raises:
            InputError: `x` is needed and missing.
        """
        recons = einops.einsum(acts_post, self.W_dec, "... d_sae, d_sae d_in -> ... d_in") + self.b_dec
        if self.cfg.normalize_activations == "none":
            return recons
        if x is None:
            raise InputError(
                f"normalize_activations is {self.cfg.normalize_activations!r}: decode needs the input x to undo it."
            )
        shift, scale = self._statistics(x)
        return recons * scale + shift

    def centered(self, x: Tensor) -> Tensor:
        """Return flat `x` as it is multiplied by `W_enc`: normalised, and with `b_dec` subtracted, as configured."""
        if self.cfg.normalize_activations != "none":
            shift, scale = self._statistics(x)
            eps = LAYER_NORM_EPS if self.cfg.normalize_activations == "layer_norm" else 0.0
            x = (x - shift) / (scale + eps)
        return x - self.b_dec if self.cfg.apply_b_dec_to_input else x

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shift and scale of the normalisation for each token, `[..., 1]` each."""
        x = x.to(self.W_dec.dtype)
        if self.cfg.normalize_activations == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            variance = (x - mean).square().sum(dim=-1, keepdim=True) / (self.cfg.d_in - 1)
            return mean, variance.sqrt()
        norm = x.square().sum(dim=-1, keepdim=True).sqrt()
        return torch.zeros_like(norm), norm / self.cfg.d_in**0.5

    def shaped(self, recons: Tensor, input: Tensor) -> Tensor:
        """Return a flat reconstruction in the shape of `hook_sae_recons`."""
        return recons.reshape(input.shape)

    def flatten(self, input: Tensor) -> Tensor:
        """Return `input` as `[..., d_in]`.

        Raises:
            InputError: The shape or dtype does not fit.
        """
        self._check_dtype(input)
        shape = flat_shape(input.shape, self.cfg.d_in, self.cfg.hook_name)
        if len(shape) == input.ndim:
            return input
        return einops.rearrange(input, "... n_heads d_head -> ... (n_heads d_head)")

    def _check_dtype(self, input: Tensor) -> None:
        """Refuse an input that type promotion would not compute in the dtype of the weights."""
        dtype = self.W_enc.dtype
        if input.dtype == dtype:
            return
        numeric = input.dtype != torch.bool and not input.dtype.is_complex
        widens = dtype in (torch.float32, torch.float64)  # half weights take their own dtype only
        if not (widens and numeric and torch.promote_types(input.dtype, dtype) == dtype):
            raise InputError(f"The input is {input.dtype}; this SAE is {dtype}. Pass input.to({dtype}).")
