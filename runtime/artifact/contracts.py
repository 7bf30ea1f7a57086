"""The graphs of an artifact: what each takes and gives, by name and in order, and what it is for."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from .manifest import GraphSpec, SAEConfig, TensorSpec
from .names import (
    FEATURE_HOOKS,
    FEATURE_IDS,
    HOOK_ACTS_POST,
    HOOK_ACTS_PRE,
    HOOK_INPUT,
    HOOK_NAMES,
    HOOK_RECONS,
    INDICES,
    INPUT,
    INTERVENTION,
    L0,
    TARGET,
    TOKENS,
    VALUES,
    K,
)

MODEL, ENCODE, ACTIVATE, DECODE, STEER = "model", "encode", "activate", "decode", "steer"
FEATURES, ACTS = "features", "acts"

METADATA_PREFIX = "saeexport."
WEIGHTS_KEY = METADATA_PREFIX + "weights_sha256"


@dataclass(frozen=True)
class Contract:
    """What a graph takes and gives, by name and in order, and what it is for, in words."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    description: str
    for_cpu: bool = False  # written for ONNX Runtime's CPU provider; the others are portable, without control flow


PORTABLE = {
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
    FEATURES: Contract(
        (INPUT, K),
        (INDICES, VALUES, L0),
        "The k features of each token with the largest activations in absolute value, the largest first, and how many "
        "are on in all, l0: where l0 <= k nothing is missing. What is not on has the value 0. k is from 1 to d_sae.",
    ),
}
"""The graphs that run on every device, of an SAE that predicts its input and has six hooks."""

SPARSE = {name: f"{name}.sparse" for name in (MODEL, DECODE, STEER, FEATURES)}
"""What takes and gives the same in float32, and reads only what is on: decoder rows, or groups of features."""

WIDE = {name: f"{name}.wide" for name in PORTABLE}
"""What takes and gives the same in half precision, computes in float32 and rounds what every operator gives."""

CPU_VARIANTS = {FLOAT32: SPARSE, FLOAT16: WIDE, BFLOAT16: WIDE}
"""Of each dtype, the sisters of portable graphs that are written for the CPU."""


def _for_cpu(twins: Mapping[str, str], how: str) -> dict[str, Contract]:
    return {
        twin: dataclasses.replace(PORTABLE[name], for_cpu=True, description=f"As {name}, on a CPU{how}.")
        for name, twin in twins.items()
    }


CONTRACTS = {
    **PORTABLE,
    ACTS: Contract((INPUT,), (HOOK_ACTS_POST,), "The activations alone, on a CPU.", for_cpu=True),
    **_for_cpu(SPARSE, " at the price of its encoder, exactly"),
}
"""The graphs that every artifact in float32 has."""

HALF_CONTRACTS = {**PORTABLE, **_for_cpu(WIDE, ", where half precision is rounded to but not computed in")}
"""The graphs that every artifact in float16 or bfloat16 has."""


def contracts_of(dtype: str) -> Mapping[str, Contract]:
    """Return the graphs of an artifact in a dtype."""
    return CONTRACTS if dtype == FLOAT32 else HALF_CONTRACTS


def graph_file(name: str) -> str:
    """Return the file of a graph."""
    return f"{name}.onnx"


def contract(graph: str, sae: SAEConfig, needs_input: bool = False) -> Contract:
    """Return what a graph of an SAE takes and gives.

    Args:
        graph: a key of `contracts_of(sae.dtype)`.
        sae: the configuration.
        needs_input: of `activate` and `decode`, whether they need the SAE's input too: a gate reads it, a
            normalisation is undone with it, a skip connection adds it. Then it comes first.
    """
    found = contracts_of(sae.dtype)[graph]
    inputs, outputs = found.inputs, found.outputs
    if needs_input and inputs[0] != INPUT:
        inputs = (INPUT, *inputs)
    if outputs == HOOK_NAMES:
        outputs = sae.hooks
        if sae.takes_target:
            inputs = (INPUT, TARGET, *inputs[1:])
    return dataclasses.replace(found, inputs=inputs, outputs=outputs)


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
    for name in contracts_of(sae.dtype):
        graph = contract(name, sae, name.partition(".")[0] in needing_input)
        inputs, outputs = tuple(map(tensor, graph.inputs)), tuple(map(tensor, graph.outputs))
        specs[name] = GraphSpec(graph_file(name), inputs, outputs, graph.description)
    return specs
