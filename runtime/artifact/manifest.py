"""`sae.json`, the manifest of an artifact: the configuration, the graphs, the parity record and the checksums.

The reader owns the format: these classes have the keys of `sae.json`, one for one, except for the checksum of its own
text (`checksum.py`). Unknown keys are ignored, so that a later release may add some; a change that an older reader
would misunderstand raises `FORMAT_VERSION`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .checksum import with_checksum
from .engines import Requirements
from .manifest_format import ManifestFormat
from .names import HOOK_NAMES

FORMAT_VERSION = 1
MANIFEST = "sae.json"


SAE_FORMAT = ManifestFormat(MANIFEST, FORMAT_VERSION, "export the SAE again")
"""The format of `sae.json`."""

INT8 = "int8"
"""Value of `weights_dtype` for quantised weights; otherwise the weights have the SAE's dtype."""

CUSTOM = "custom:"
"""Prefix of the architecture of an SAE whose class a user wrote; the name of the class follows."""


@dataclass(frozen=True)
class SAEConfig:
    """The configuration of the HookedSAE that was exported.

    Attributes:
        architecture: How the SAE encodes and decodes; "standard" is the ReLU SAE, "custom:<class>" a user's class.
        d_in: Width of the input.
        d_sae: Number of features.
        hook_name: Name of the model's activation that the SAE was trained on; "" if it is not known.
        model_name: Name of the language model that the SAE belongs to, as in its checkpoint; None if it is not known.
        neuronpedia_id: Identifier of the SAE on Neuronpedia, such as "gpt2-small/8-res-jb"; None if it is not known.
        use_error_term: Whether the output is the reconstruction plus the error.
        dtype: Dtype of the activations and, unless they are int8, of the weights: "float32", "float16" or "bfloat16".
        seed: Seed of the initial weights, if there was one.
        head_shape: (n_heads, d_head) if the graphs take activations with their head dimension, else None.
        d_out: For a transcoder, the width of the target, which is an input of the graphs if there is an error term;
            None for an SAE, which predicts its input.
        options: The other keys of the architecture's config, such as k.
        fired_hooks: The hooks that fire in PyTorch, in order: all six, or five without the error term.
        feature_ids: Ids that the features have in the SAE that they were taken from, one for each feature; None for a
            whole SAE, whose `sae.json` does not have this key.
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
    feature_ids: tuple[int, ...] | None = field(default=None, kw_only=True)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one token's activation, `(d_in,)` or `(n_heads, d_head)`."""
        return self.head_shape or (self.d_in,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one token's reconstruction: that of the input, or `(d_out,)` for a transcoder."""
        return self.input_shape if self.d_out is None else (self.d_out,)

    @property
    def takes_target(self) -> bool:
        """Whether the graphs take the target as an input, too."""
        return self.d_out is not None and self.use_error_term

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks that the graphs compute, in firing order.

        All six, the error even if it does not fire. A transcoder without the error term has no target, and no error.
        """
        return HOOK_NAMES if self.d_out is None or self.use_error_term else self.fired_hooks


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of a graph. A dimension given by a name may have any size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One `.onnx` file: its inputs and outputs, in order, its purpose, and what an engine must support to load it.

    `requires` is None in manifests of earlier releases and of grafted hosts, which do not have this key.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    description: str = field(compare=False)  # the wording is not part of the contract
    requires: Requirements | None = field(default=None, compare=False)


@dataclass(frozen=True)
class GoldenSpec:
    """The golden batch.

    Attributes:
        file: Name of the file.
        tokens: Number of tokens.
        source: "activations" if a user passed them, "synthetic" if the exporter drew them.
    """

    file: str
    tokens: int
    source: str


@dataclass(frozen=True)
class Errors:
    """The distance of a tensor from the truth, see `runtime.parity`; both are ratios without a unit.

    Attributes:
        token: Largest norm of the difference, over tokens.
        element: Largest difference, over elements.
    """

    token: float
    element: float


@dataclass(frozen=True)
class HookParity:
    """The errors of the original and of the artifact at one hook, measured at export, and the artifact's budget."""

    original: Errors
    artifact: Errors
    budget: Errors


@dataclass(frozen=True)
class HookBudget:
    """The errors of the original at one hook in a precision that the exporter cannot run, and the artifact's budget."""

    original: Errors
    budget: Errors


@dataclass(frozen=True)
class ParityRecord:
    """The proof of parity made at export.

    Attributes:
        device: Where the graphs were run.
        tokens: Number of tokens.
        left_out: Number of further tokens that were left out because the original's own values cancel on them.
        hooks: Errors and budgets of `model`, by hook.
        steered: Errors and budgets of `steer` under an intervention, by hook.
        tf32: Errors of the original in TF32 arithmetic, which rounds the factors of float32 products, and budgets of
            `model` on a GPU that uses it, by hook; empty in half precision.
        tf32_steered: The same for `steer` under the intervention.
    """

    device: str
    tokens: int
    left_out: int
    hooks: dict[str, HookParity]
    steered: dict[str, HookParity]
    tf32: dict[str, HookBudget]
    tf32_steered: dict[str, HookBudget]


@dataclass(frozen=True)
class Features:
    """The features that are on in the float32 original and in an artifact of lower precision.

    Attributes:
        kept: Fraction of the features on in the original that are on in the artifact.
        gained: Number of features on in the artifact only, as a fraction of those on in the original.
        l0_original: Mean L0 of the original.
        l0: Mean L0 of the artifact.
    """

    kept: float
    gained: float
    l0_original: float
    l0: float


@dataclass(frozen=True)
class Fidelity:
    """The loss of an artifact of lower precision against the float32 original, measured at export.

    This is not parity: the errors come from the rounded weights. With int8 weights, `verify` allows twice the errors
    measured at export (`budget`).

    Attributes:
        device: Where the graphs were run.
        tokens: Number of tokens.
        left_out: Number of further tokens that were left out because the original's own values cancel on them.
        hooks: Errors of `model`, by hook; `original` is PyTorch's own error in float32.
        steered: Errors of `steer` under an intervention, by hook; only with int8 weights.
        features: Comparison of the features that are on.
        explained_original: Fraction of the variance of the activations that the original's reconstruction explains;
            None for a transcoder without a target.
        explained: The same fraction for the artifact.
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
    """The sha256 and the size in bytes of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of `sae.json`.

    Attributes:
        format_version: Version of this format.
        sae: Configuration of the SAE.
        weights: Name of the weights file.
        weights_dtype: Dtype of the weights: that of the SAE, or "int8".
        graphs: The graphs, by name.
        golden: The golden batch.
        parity: Proof against the original in the SAE's dtype; None with int8 weights.
        fidelity: Loss against the float32 original, with int8 weights or in half precision; None in float32, or if
            there was no float32 original.
        provenance: Versions of the software that made the artifact, by name; and what the exporter was told about the
            checkpoint that its files do not hold, with keys that begin with "checkpoint.", such as
            "checkpoint.norm_scaling_factor".
        files: Checksums, by file name.
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
        """The parity record, or the fidelity if there is none; every manifest that was parsed has one of them."""
        record = self.parity or self.fidelity
        assert record is not None
        return record

    def to_json(self) -> str:
        """Return the text of `sae.json` with its checksum, the same bytes for the same manifest."""
        return with_checksum(to_content(self))


LEFT_OUT = ("feature_ids", "requires")
"""Keys that a manifest does not have if their value is None."""


def to_content(manifest: Any) -> dict[str, Any]:
    """Return the keys and values of a manifest, a dataclass, as they are written."""
    return dataclasses.asdict(
        manifest,
        dict_factory=lambda pairs: {key: value for key, value in pairs if value is not None or key not in LEFT_OUT},
    )
