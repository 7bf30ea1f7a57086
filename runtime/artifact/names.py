"""The names of an artifact: its hooks, and the inputs and outputs of its graphs."""

HOOK_INPUT = "hook_sae_input"
HOOK_ACTS_PRE = "hook_sae_acts_pre"
HOOK_ACTS_POST = "hook_sae_acts_post"
HOOK_RECONS = "hook_sae_recons"
HOOK_ERROR = "hook_sae_error"
HOOK_OUTPUT = "hook_sae_output"

HOOK_NAMES = (HOOK_INPUT, HOOK_ACTS_PRE, HOOK_ACTS_POST, HOOK_RECONS, HOOK_ERROR, HOOK_OUTPUT)
"""The six hooks in firing order."""

FEATURE_HOOKS = (HOOK_ACTS_PRE, HOOK_ACTS_POST)
"""The hooks with one value per feature, `(..., d_sae)`; the others have the shape of the input or the target."""

INPUT = "input"
TARGET = "target"
TOKENS = "tokens"

FEATURE_IDS = "feature_ids"
FEATURE_SCALE = "feature_scale"
FEATURE_SHIFT = "feature_shift"
INTERVENTION = (FEATURE_IDS, FEATURE_SCALE, FEATURE_SHIFT)
"""The inputs of `steer.onnx` that describe the edits."""

K = "k"
INDICES, VALUES, L0 = "indices", "values", "l0"
"""The input and the outputs of `features.onnx`."""
