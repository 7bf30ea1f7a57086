"""The names of a grafted host: its graphs, its files, and the inputs and outputs that belong to a hook."""

from ..artifact.names import HOOK_INPUT, TARGET

TAP, SPLICE, FEATURES = "tap", "splice", "features"
MODES = (TAP, SPLICE, FEATURES)
"""The graphs of the whole host, in the order in which they are written."""

STAGE = "stage."
"""Prefix of the graphs of the host's stages; a number follows."""

DATA = "host.data"
"""Name of the file with the host's large initializers."""

SAES = "saes"
"""Name of the folder that holds a folder for each SAE, named like its hook."""

GOLDEN = "golden.safetensors"
TOKENIZER = "tokenizer.json"

INPUT_IDS, ATTENTION_MASK, POSITION_IDS, TOKEN_TYPE_IDS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "token_type_ids",
)
"""The inputs of a host that stand for text, as Hugging Face names them."""

LOGITS = "logits"
"""The output of a decoder from which the next token is chosen."""

ATTACH, USE_ERROR_TERM = "attach", "use_error_term"
SWITCHES = (ATTACH, USE_ERROR_TERM)


def stage(i: int) -> str:
    """Return the name of the graph of a stage of the host, counted from 0."""
    return f"{STAGE}{i}"


def at(hook: str, name: str) -> str:
    """Return the name that an input or output of an SAE has in a graph of the host: "<hook>.<name>"."""
    return f"{hook}.{name}"


def activation_name(sae_hook: str, hook: str) -> str:
    """Return the name of the output with the host's activation at a hook.

    Args:
        sae_hook: The hook that the SAE reads.
        hook: The hook: the same, or for a transcoder that of its target.
    """
    return at(sae_hook, HOOK_INPUT if hook == sae_hook else TARGET)


def sae_folder(hook: str) -> str:
    """Return the folder of an SAE, relative to that of the host."""
    return f"{SAES}/{hook}"
