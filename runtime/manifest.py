"""`sae.json`, the manifest of an artifact: what the SAE is, which graphs there are, and what was proved at export.

The reader owns the format: these classes are what `sae.json` holds, key for key. Unknown keys are ignored, so that a
later release may add some; a change that an older reader would misunderstand raises `FORMAT_VERSION`.
"""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, field

FORMAT_VERSION = 1
MANIFEST = "sae.json"

HOOK_INPUT = "hook_sae_input"
HOOK_ACTS_PRE = "hook_sae_acts_pre"
HOOK_ACTS_POST = "hook_sae_acts_post"
HOOK_RECONS = "hook_sae_recons"
HOOK_ERROR = "hook_sae_error"
HOOK_OUTPUT = "hook_sae_output"

HOOK_NAMES = (HOOK_INPUT, HOOK_ACTS_PRE, HOOK_ACTS_POST, HOOK_RECONS, HOOK_ERROR, HOOK_OUTPUT)
"""The six hooks in firing order."""

FEATURE_HOOKS = (HOOK_ACTS_PRE, HOOK_ACTS_POST)
"""Those with one number per feature, `(..., d_sae)`; the others have the shape of the input."""

INPUT = "input"
TARGET = "target"
TOKENS = "tokens"

FEATURE_IDS = "feature_ids"
FEATURE_SCALE = "feature_scale"
FEATURE_SHIFT = "feature_shift"
INTERVENTION = (FEATURE_IDS, FEATURE_SCALE, FEATURE_SHIFT)
"""The inputs by which `steer.onnx` edits features."""

K = "k"
INDICES, VALUES, L0 = "indices", "values", "l0"
"""The input and the outputs of `features.onnx`."""

MODEL, ENCODE, ACTIVATE, DECODE, STEER = "model", "encode", "activate", "decode", "steer"
ACTS, FEATURES = "acts", "features"
SPARSE = {name: f"{name}.sparse" for name in (MODEL, DECODE, STEER)}
"""What takes and gives the same, and reads only the decoder's rows whose feature is on."""


@dataclass(frozen=True)
class Contract:
    """What a graph takes and gives, by name and in order, and what it is for, in words."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    description: str
    for_cpu: bool = False  # written for ONNX Runtime's CPU provider; the others are portable, without control flow


CONTRACTS = {
    MODEL: Contract((INPUT,), HOOK_NAMES, "The whole SAE."),
    ENCODE: Contract((INPUT,), FEATURE_HOOKS, "The encoder alone."),
    ACTIVATE: Contract((HOOK_ACTS_PRE,), (HOOK_ACTS_POST,), "The activation function alone, for edited acts_pre."),
    DECODE: Contract((HOOK_ACTS_POST,), (HOOK_RECONS,), "The decoder alone."),
    STEER: Contract(
        (INPUT, *INTERVENTION),
        HOOK_NAMES,
        "The whole SAE with an intervention on m features, as a forward hook on hook_sae_acts_post makes it: "
        "acts_post[:, feature_ids] = acts_post[:, feature_ids] * feature_scale + feature_shift. Scale 0 ablates, scale "
        "0 with a shift clamps, a scale alone amplifies, a shift alone adds. recons is that of the edited features, "
        "error that of the clean pass, output follows. feature_scale and feature_shift have one row for all tokens, "
        "[1, m], or one per token, [tokens, m]; m may be 0. feature_ids must be distinct: for duplicates ONNX leaves "
        "acts_post undefined, and recons would get the sum of their edits. They must lie in [0, d_sae): beyond, the "
        "run fails, and from -d_sae to -1 they count from the end. A scale or shift that is NaN or infinite spreads "
        "to the whole reconstruction.",
    ),
    ACTS: Contract((INPUT,), (HOOK_ACTS_POST,), "The activations alone, on a CPU.", for_cpu=True),
    FEATURES: Contract(
        (INPUT, K),
        (INDICES, VALUES, L0),
        "The k features of each token with the largest activations in absolute value, the largest first, and how many "
        "are on in all, l0: where l0 <= k nothing is missing. What is not on has the value 0. k is from 1 to d_sae.",
        for_cpu=True,
    ),
}
CONTRACTS |= {
    sparse: dataclasses.replace(
        CONTRACTS[name], for_cpu=True, description=f"As {name}, on a CPU at the price of its encoder, exactly."
    )
    for name, sparse in SPARSE.items()
}
"""The graphs that every artifact has, of an SAE that predicts its input and has six hooks."""


FLOAT32, INT8 = "float32", "int8"
"""Of the weights."""

CUSTOM = "custom:"
"""Before the architecture of an SAE whose class is its user's own, and after it the class's name."""


@dataclass(frozen=True)
class SAEConfig:
    """The HookedSAE that was exported.

    Attributes:
        architecture: how it encodes and decodes; "standard" is the ReLU SAE, and a name with "custom:" a user's class.
        dtype: of weights and activations, as numpy names it ("float32").
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

    `left_out` more were given, of which a feature is so near its threshold that correct programs differ there.
    """

    device: str
    tokens: int
    left_out: int
    hooks: dict[str, HookParity]
    steered: dict[str, HookParity]


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

    It is no parity: the errors are those that the rounded weights make, and a machine that it is deployed to is held to
    twice of them (`budget`).

    Attributes:
        hooks: of `model`, each hook's errors; `original` is what PyTorch's own is in float32.
        steered: the same of `steer` under an intervention.
        features: which are on.
        explained_original: the fraction of the variance of the activations that the original's reconstruction explains.
        explained: the same of the artifact's.
    """

    device: str
    tokens: int
    left_out: int
    hooks: dict[str, HookParity]
    steered: dict[str, HookParity]
    features: Features
    explained_original: float
    explained: float


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
        weights_dtype: "float32", the state dict as it is, or "int8".
        parity: the proof, of float32 weights; else None.
        fidelity: what is lost, of other weights; else None.
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


def graph_file(name: str) -> str:
    """Return the file of a graph."""
    return f"{name}.onnx"


def contract(graph: str, sae: SAEConfig, needs_input: bool = False) -> Contract:
    """Return what a graph of an SAE takes and gives.

    Args:
        graph: a key of `CONTRACTS`.
        sae: the configuration.
        needs_input: of `activate` and `decode`, whether they need the SAE's input too: a gate reads it, a
            normalisation is undone with it, a skip connection adds it. Then it comes first.
    """
    inputs, outputs = CONTRACTS[graph].inputs, CONTRACTS[graph].outputs
    if needs_input and inputs[0] != INPUT:
        inputs = (INPUT, *inputs)
    if outputs == HOOK_NAMES:
        outputs = sae.hooks
        if sae.takes_target:
            inputs = (INPUT, TARGET, *inputs[1:])
    return dataclasses.replace(CONTRACTS[graph], inputs=inputs, outputs=outputs)


def graph_specs(sae: SAEConfig, needing_input: Collection[str] = ()) -> dict[str, GraphSpec]:
    """Return what the graphs of an SAE are by contract; `needing_input` as `contract` says."""

    def tensor(name: str) -> TensorSpec:
        if name in (FEATURE_IDS, K):
            return TensorSpec(name, "int64", ("m",) if name == FEATURE_IDS else (1,))
        if name in (INDICES, VALUES, L0):
            dtype = sae.dtype if name == VALUES else "int64"
            return TensorSpec(name, dtype, (TOKENS,) if name == L0 else (TOKENS, K))
        if name in INTERVENTION:
            return TensorSpec(name, sae.dtype, ("rows", "m"))
        if name in FEATURE_HOOKS:
            shape: tuple[int, ...] = (sae.d_sae,)
        else:
            shape = sae.input_shape if name in (INPUT, HOOK_INPUT) else sae.output_shape
        return TensorSpec(name, sae.dtype, (TOKENS, *shape))

    specs = {}
    for name in CONTRACTS:
        graph = contract(name, sae, name.removesuffix(".sparse") in needing_input)
        inputs, outputs = tuple(map(tensor, graph.inputs)), tuple(map(tensor, graph.outputs))
        specs[name] = GraphSpec(graph_file(name), inputs, outputs, graph.description)
    return specs
