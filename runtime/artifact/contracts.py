"""The graphs of an artifact: the inputs and outputs of each, by name and in order, and its purpose."""

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
    """The inputs and outputs of a graph.

    Attributes:
        inputs: Names of the inputs, in order.
        outputs: Names of the outputs, in order.
        description: Purpose of the graph, a text for people. It is written into the artifact.
        for_cpu: Whether the graph is written for ONNX Runtime's CPU provider; if not, it is portable, without control
            flow.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    description: str
    for_cpu: bool = False


PORTABLE = {
    MODEL: Contract((INPUT,), HOOK_NAMES, "The whole SAE."),
    ENCODE: Contract((INPUT,), FEATURE_HOOKS, "The encoder alone."),
    ACTIVATE: Contract((HOOK_ACTS_PRE,), (HOOK_ACTS_POST,), "The activation function alone, for edited acts_pre."),
    DECODE: Contract((HOOK_ACTS_POST,), (HOOK_RECONS,), "The decoder alone."),
    STEER: Contract(
        (INPUT, *INTERVENTION),
        HOOK_NAMES,
        "The whole SAE with an intervention on m features, like a forward hook on hook_sae_acts_post: "
        "acts_post[:, feature_ids] = acts_post[:, feature_ids] * feature_scale + feature_shift. Scale 0 ablates, scale "
        "0 with a shift clamps, a scale alone amplifies, a shift alone adds. recons is computed from the edited "
        "features, error from the clean pass, and output is their sum or recons alone. feature_scale and feature_shift "
        "have one row for all tokens, [1, m], or one per token, [tokens, m]; m may be 0. feature_ids must be distinct: "
        "for duplicates ONNX leaves acts_post undefined, and recons would get the sum of their edits. They must lie in "
        "[0, d_sae): other ids make the run fail, except that -d_sae to -1 count from the end. A scale or shift that "
        "is NaN or infinite makes the whole reconstruction NaN or infinite.",
    ),
    FEATURES: Contract(
        (INPUT, K),
        (INDICES, VALUES, L0),
        "The k features of each token with the largest activations in absolute value, the largest first, and l0, the "
        "number of features that are on. If l0 <= k, all of them are among the k. Places after the last feature "
        "that is on have the index -1 and the value 0. A token with NaN among its activations has the index -1 and the "
        "value NaN in every place, and l0 = -1. Of equally strong features, the one with the smaller id comes first in "
        "ONNX Runtime on a CPU; other devices may order them differently. k is from 1 to d_sae.",
    ),
}
"""The graphs that run on every device, for an SAE that predicts its input and has six hooks."""

SPARSE = {name: f"{name}.sparse" for name in (MODEL, DECODE, STEER, FEATURES)}
"""CPU variants in float32: same inputs and outputs, but only decoder rows, or groups, of active features are read."""

WIDE = {name: f"{name}.wide" for name in PORTABLE}
"""CPU variants in half precision: same inputs and outputs, computed in float32, with every result rounded."""

CPU_VARIANTS = {FLOAT32: SPARSE, FLOAT16: WIDE, BFLOAT16: WIDE}
"""For each dtype, the name of the CPU variant of each portable graph that has one."""


def _for_cpu(variants: Mapping[str, str], how: str) -> dict[str, Contract]:
    return {
        variant: dataclasses.replace(
            PORTABLE[name], for_cpu=True, description=f"CPU variant of {name}, for ONNX Runtime only: {how}."
        )
        for name, variant in variants.items()
    }


CONTRACTS = {
    **PORTABLE,
    ACTS: Contract(
        (INPUT,), (HOOK_ACTS_POST,), "The feature activations alone, for ONNX Runtime on a CPU.", for_cpu=True
    ),
    **_for_cpu(SPARSE, "the same results, reading only what active features need"),
}
"""The graphs of every artifact in float32."""

HALF_CONTRACTS = {**PORTABLE, **_for_cpu(WIDE, "computed in float32, with every result rounded to half precision")}
"""The graphs of every artifact in float16 or bfloat16."""


def whole_variant(graph: str) -> str | None:
    """Return the CPU variant of `model` that is written like a CPU variant: "model.sparse" for "steer.sparse".

    None for a portable graph, and for graphs that are not an artifact's.
    """
    if graph == ACTS:
        return SPARSE[MODEL]
    return next((variants[MODEL] for variants in (SPARSE, WIDE) if graph in variants.values()), None)


def contracts_of(dtype: str) -> Mapping[str, Contract]:
    """Return the contracts of the graphs of an artifact in a dtype."""
    return CONTRACTS if dtype == FLOAT32 else HALF_CONTRACTS


def graph_file(name: str) -> str:
    """Return the name of a graph's file."""
    return f"{name}.onnx"


def contract(graph: str, sae: SAEConfig, needs_input: bool = False) -> Contract:
    """Return the contract of a graph of an SAE.

    Args:
        graph: Key of `contracts_of(sae.dtype)`.
        sae: Configuration of the SAE.
        needs_input: Whether `activate` or `decode` also needs the SAE's input, as its first input: a gate reads it, a
            normalisation is undone with it, a skip connection adds it.
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
    """Return the specs of an SAE's graphs; `needing_input` names those with `needs_input`, see `contract`."""

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
