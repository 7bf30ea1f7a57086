"""`sae.json`, the manifest of an artifact: what the SAE is, which graphs there are, and what was proved at export.

The reader owns the format: these classes are what `sae.json` holds, key for key. Unknown keys are ignored, so that a
later release may add some; a change that an older reader would misunderstand raises `FORMAT_VERSION`.
"""

import dataclasses
import json
from dataclasses import dataclass, field

from .names import HOOK_NAMES

FORMAT_VERSION = 1
MANIFEST = "sae.json"

INT8 = "int8"
"""Of the weights; they are else of the SAE's dtype."""

CUSTOM = "custom:"
"""Before the architecture of an SAE whose class is its user's own, and after it the class's name."""


@dataclass(frozen=True)
class SAEConfig:
    """The HookedSAE that was exported.

    Attributes:
        architecture: how it encodes and decodes; "standard" is the ReLU SAE, and a name with "custom:" a user's class.
        dtype: of the activations and, if they are not int8, the weights: "float32", "float16" or "bfloat16".
        model_name: The language model that the SAE belongs to, as its checkpoint names it; None if it does not.
        neuronpedia_id: The SAE's identifier on Neuronpedia, such as "gpt2-small/8-res-jb"; None if it is not known.
        seed: of the initial weights, if there was one.
        head_shape: (n_heads, d_head) if the graphs take activations with their head dimension, else None.
        d_out: of a transcoder, the width of the activation that it predicts, which with the error term is an input,
            `target`; None for an SAE, which predicts its input.
        options: what the architecture's config has beyond these keys, such as k.
        fired_hooks: the hooks that fire in PyTorch, in order: all six, or five without the error term.
    """

    architecture: str
    d_in: int
    d_sae: int
    hook_name: str
    model_name: str | None = field(default=None, kw_only=True)
    neuronpedia_id: str | None = field(default=None, kw_only=True)
    use_error_term: bool
    dtype: str
    seed: int | None
    head_shape: tuple[int, ...] | None
    d_out: int | None
    options: dict[str, bool | int | float | str]
    fired_hooks: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One token's activation: `(d_in,)` or `(n_heads, d_head)`."""
        return self.head_shape or (self.d_in,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """One token's reconstruction: as the input, or of a transcoder `(d_out,)`."""
        return self.input_shape if self.d_out is None else (self.d_out,)

    @property
    def takes_target(self) -> bool:
        """Whether the graphs take, beside the input, the activation that the error is taken against."""
        return self.d_out is not None and self.use_error_term

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks that the graphs give, in firing order.

        All six; the error is there even where it does not fire, unless it would need a target that nobody gives.
        """
        return HOOK_NAMES if self.d_out is None or self.use_error_term else self.fired_hooks


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of a graph; a dimension that is a name may have any size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One `.onnx` file: what it takes and gives, in order, and what it is for, in words."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    description: str = field(compare=False)  # words may be improved; they are no part of the contract


@dataclass(frozen=True)
class GoldenSpec:
    """The batch that `golden.safetensors` holds.

    Attributes:
        source: "activations" if a user gave them, "synthetic" if the exporter drew them.
    """

    file: str
    tokens: int
    source: str


@dataclass(frozen=True)
class Errors:
    """How far a tensor is from the truth, see `runtime.parity`; both are ratios without a unit.

    Attributes:
        token: the largest, over tokens, of the norm of the difference.
        element: the largest, over all numbers, of the difference.
    """

    token: float
    element: float


@dataclass(frozen=True)
class HookParity:
    """What the export measured at one hook: PyTorch's own error, the artifact's, and the most it may be."""

    original: Errors
    artifact: Errors
    budget: Errors


@dataclass(frozen=True)
class ParityRecord:
    """The proof made at export, on `tokens` activations run on `device`: `model`, and `steer` under an intervention.

    `left_out` more were given, on which the original's own numbers cancel.

    Attributes:
        hooks: of `model`.
        steered: of `steer` under an intervention.
        tf32: the budgets of `hooks` on a GPU that rounds the factors of float32 products to TF32; in half precision
            there are none.
        tf32_steered: those of `steered`.
    """

    device: str
    tokens: int
    left_out: int
    hooks: dict[str, HookParity]
    steered: dict[str, HookParity]
    tf32: dict[str, Errors]
    tf32_steered: dict[str, Errors]


@dataclass(frozen=True)
class Features:
    """The features that are on in the float32 original and in an artifact of less precision.

    Attributes:
        kept: of those that are on in the original, the fraction that still is.
        gained: how many are on that are off in the original, as a fraction of those that are on there.
        l0_original: how many are on for a token, the mean.
        l0: the same of the artifact.
    """

    kept: float
    gained: float
    l0_original: float
    l0: float


@dataclass(frozen=True)
class Fidelity:
    """What an artifact of less precision loses, measured at export on `tokens` activations run on `device`.

    It is no parity: the errors are those that the rounded weights make. With int8 weights a machine that the artifact
    is deployed to is held to twice of them (`budget`).

    Attributes:
        hooks: of `model`, each hook's errors; `original` is what PyTorch's own is in float32.
        steered: the same of `steer` under an intervention; only with int8 weights.
        features: which are on.
        explained_original: the fraction of the variance of the activations that the original's reconstruction explains;
            None for a transcoder whose target nobody gave.
        explained: the same of the artifact's.
    """

    device: str
    tokens: int
    left_out: int
    hooks: dict[str, HookParity]
    steered: dict[str, HookParity]
    features: Features
    explained_original: float | None
    explained: float | None


@dataclass(frozen=True)
class FileRecord:
    """What a file must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of `sae.json`.

    Attributes:
        weights: the file.
        weights_dtype: that of the SAE, for the state dict as it is, or "int8".
        parity: the proof against the original in the SAE's dtype; None with int8 weights.
        fidelity: what is lost against the float32 original, with int8 weights or in half precision; else, or if there
            was no float32 original, None.
    """

    format_version: int
    sae: SAEConfig
    weights: str
    weights_dtype: str
    graphs: dict[str, GraphSpec]
    golden: GoldenSpec
    parity: ParityRecord | None
    fidelity: Fidelity | None
    provenance: dict[str, str]
    files: dict[str, FileRecord]

    @property
    def record(self) -> ParityRecord | Fidelity:
        """What was measured at export: the proof, or the fidelity; a manifest that was read has one of them."""
        record = self.parity or self.fidelity
        assert record is not None
        return record

    def to_json(self) -> str:
        """Return the text of `sae.json`: the same manifest gives the same bytes."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"
